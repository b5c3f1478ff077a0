//! The allocation bitmap of exFAT (§7.1), held against every file and folder.

use super::boot::{Geometry, checksum32};
use super::directory::{Directory, Item, Stream};
use super::{doubt, root};
use crate::ByteRange;
use crate::filesystem::extents::FileExtents;
use crate::filesystem::links::{Links, Met, bit};
use crate::filesystem::used::UsedRanges;
use crate::filesystem::{Doubt, ReadAt, Usage};

/// The longest up-case table that is read; a whole one without compression has 128 KiB.
const MAX_UP_CASE: u64 = 1 << 20;

/// The used ranges of a volume, and where its files lie.
pub(super) fn usage(volume: &dyn ReadAt, geometry: &Geometry) -> Result<Usage, Doubt> {
    let links = geometry.links();
    let root = root(volume, geometry, &links)?;
    let system = System::find(volume, geometry, &links, root)?;
    let needed = geometry.clusters.div_ceil(8);
    let len = system.bitmap.len;
    if len < needed || len > needed.next_multiple_of(geometry.cluster) {
        return Err(doubt(format!(
            "an allocation bitmap of {len} bytes for {} clusters",
            geometry.clusters
        )));
    }
    let bitmap = read_whole(volume, geometry, &links, system.bitmap)?;
    check_up_case(volume, geometry, &links, &system)?;
    let mut walk = Walk {
        volume,
        geometry,
        links: &links,
        met: Met::new(geometry.clusters),
        bitmap: &bitmap,
        extents: FileExtents::new(),
    };
    for stream in [system.bitmap, system.up_case, root] {
        walk.claim(&stream, None)?;
    }
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        walk.folder(folder, &mut folders)?;
    }
    Ok(Usage {
        extents: walk.extents.finish(),
        ranges: used(geometry, &bitmap),
    })
}

/// What the root directory says of the file system itself.
struct System {
    bitmap: Stream,
    up_case: Stream,
    up_case_checksum: u32,
}

impl System {
    fn find(
        volume: &dyn ReadAt,
        geometry: &Geometry,
        links: &Links,
        root: Stream,
    ) -> Result<Self, Doubt> {
        let (mut bitmap, mut up_case) = (None, None);
        let mut directory = Directory::new(volume, geometry, links, root)?;
        while let Some(item) = directory.next()? {
            match item {
                Item::Bitmap {
                    second: false,
                    content,
                } if bitmap.is_none() => {
                    bitmap = Some(content);
                }
                Item::Bitmap { .. } => return Err(doubt("a second allocation bitmap (TexFAT)")),
                Item::UpCase { checksum, content } if up_case.is_none() => {
                    up_case = Some((checksum, content));
                }
                Item::UpCase { .. } => return Err(doubt("a second up-case table")),
                Item::Label(_) | Item::File(_) => {}
            }
        }
        let (up_case_checksum, up_case) = up_case.ok_or_else(|| doubt("no up-case table"))?;
        Ok(Self {
            bitmap: bitmap.ok_or_else(|| doubt("no allocation bitmap"))?,
            up_case,
            up_case_checksum,
        })
    }
}

fn check_up_case(
    volume: &dyn ReadAt,
    geometry: &Geometry,
    links: &Links,
    system: &System,
) -> Result<(), Doubt> {
    let (len, expected) = (system.up_case.len, system.up_case_checksum);
    if len == 0 || len > MAX_UP_CASE {
        return Err(doubt(format!("an up-case table of {len} bytes")));
    }
    let table = read_whole(volume, geometry, links, system.up_case)?;
    let found = checksum32(0, table.into_iter());
    if found == expected {
        Ok(())
    } else {
        Err(doubt(format!(
            "the up-case table has checksum {found:08x} (expected {expected:08x})"
        )))
    }
}

/// The content of a stream whose length the caller has checked.
fn read_whole(
    volume: &dyn ReadAt,
    geometry: &Geometry,
    links: &Links,
    stream: Stream,
) -> Result<Vec<u8>, Doubt> {
    let mut bytes = vec![0; stream.len as usize];
    let mut at = 0;
    stream.runs(volume, geometry, links, |first, count| {
        let end = bytes.len().min(at + (count * geometry.cluster) as usize);
        volume.read_at(geometry.place(first), &mut bytes[at..end])?;
        at = end;
        Ok(())
    })?;
    Ok(bytes)
}

/// The way through all folders.
struct Walk<'a> {
    volume: &'a dyn ReadAt,
    geometry: &'a Geometry,
    links: &'a Links,
    bitmap: &'a [u8],
    /// No cluster may be met twice, so loops end.
    met: Met,
    extents: FileExtents,
}

impl Walk<'_> {
    fn folder(&mut self, folder: Stream, folders: &mut Vec<Stream>) -> Result<(), Doubt> {
        let mut directory = Directory::new(self.volume, self.geometry, self.links, folder)?;
        while let Some(item) = directory.next()? {
            let Item::File(file) = item else {
                if folder.first == self.geometry.root {
                    continue;
                }
                return Err(doubt(
                    "the file system's own entries outside the root directory",
                ));
            };
            for other in &file.others {
                self.claim(other, None)?;
            }
            if file.is_directory {
                self.claim(&file.content, None)?;
                folders.push(file.content);
            } else {
                self.claim(&file.content, Some(file.valid))?;
            }
        }
        Ok(())
    }

    /// Takes the clusters of a stream, which must be in use and no other's. With the length of a
    /// file's content, its extents are kept; up to the end of its last sector, because systems fill
    /// that with zeros but leave in the rest of the cluster what was there before.
    fn claim(&mut self, stream: &Stream, content: Option<u64>) -> Result<(), Doubt> {
        let Self {
            volume,
            geometry,
            links,
            bitmap,
            met,
            extents,
        } = self;
        let mut offset = 0;
        stream.runs(*volume, geometry, links, |first, count| {
            // The run is there, so its end fits.
            for cluster in first..first + count as u32 {
                let (byte, mask) = bit(cluster);
                if bitmap[byte] & mask == 0 {
                    return Err(doubt(format!("cluster {cluster} is in a file and free")));
                }
                if !met.meet(cluster) {
                    return Err(doubt(format!("cluster {cluster} is in use twice")));
                }
            }
            let start = geometry.place(first);
            let len = count * geometry.cluster;
            if let Some(content) = content {
                let left = geometry.whole_sectors(content).saturating_sub(offset);
                extents.add(ByteRange::between(start, start + len.min(left)), offset);
            }
            offset += len;
            Ok(())
        })
    }
}

/// Everything before the clusters, and those that are marked.
fn used(geometry: &Geometry, bitmap: &[u8]) -> Vec<ByteRange> {
    let mut used = UsedRanges::new();
    used.add(ByteRange::between(0, geometry.heap));
    let mut add = |from: u64, to: u64| {
        let byte = |index| geometry.heap + index * geometry.cluster;
        used.add(ByteRange::between(byte(from), byte(to)));
    };
    for (at, byte) in (0u64..).step_by(8).zip(bitmap) {
        match byte {
            0 => {}
            0xff if at + 8 <= geometry.clusters => add(at, at + 8),
            byte => (at..geometry.clusters.min(at + 8))
                .filter(|index| byte >> (index - at) & 1 == 1)
                .for_each(|index| add(index, index + 1)),
        }
    }
    used.finish()
}
