//! A FAT32 with some files in it, as bytes: an EFI system partition for a disk that had none.
//!
//! Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03. Invariant: what comes out is the front of the
//! volume, with everything that it has in use; behind it all clusters are free, whatever their bytes.
//!
//! What is *not* here: names that are no short ones (8.3), and times, which a pure crate has none of.

use crate::SectorSize;
use crate::little_endian::put32;

const RESERVED: u64 = 32;
const FATS: u64 = 2;
/// What FAT32 has at least, and FAT16 at most.
const LEAST_CLUSTERS: u64 = 65_525;
/// From so many clusters on they become larger.
const MANY_CLUSTERS: u64 = 1 << 21;
const ROOT: u32 = 2;
const LAST: u32 = 0x0fff_ffff;
const ENTRY: usize = 32;
/// 1 January 1980, the first day that there is.
const DAY: u16 = 0x0021;

/// A file of a volume that is made.
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    /// Its path, parts separated by `/`; each part a short name.
    pub path: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

/// A volume that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewFatError {
    /// It has too few clusters.
    #[error("{size} bytes are too few for a FAT32 with sectors of {sector} bytes")]
    TooSmall {
        /// The volume's size in bytes.
        size: u64,
        /// The size of its sectors.
        sector: u64,
    },
    /// It has more than its structures can say.
    #[error("{size} bytes are too many for a FAT32 that is made here")]
    TooLarge {
        /// The volume's size in bytes.
        size: u64,
    },
    /// The files do not fit.
    #[error("the files need {needed} clusters (there are {clusters})")]
    Full {
        /// Clusters needed.
        needed: u64,
        /// Clusters that there are.
        clusters: u64,
    },
    /// A name that is no short one.
    #[error("`{name}` is no name of at most 8 and 3 letters, digits, `-` or `_`")]
    Name {
        /// The name.
        name: String,
    },
}

/// What the volume is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewFat {
    /// Its size in bytes.
    pub size: u64,
    /// The sectors of its disk.
    pub sector: SectorSize,
    /// The sectors before it on its disk.
    pub hidden: u64,
    /// Its serial number.
    pub serial: u32,
}

/// A folder or file with the clusters it gets.
struct Node<'a> {
    name: &'a str,
    parent: usize,
    content: Option<&'a [u8]>,
    first: u32,
    clusters: u64,
}

/// Makes the volume: its bytes from the beginning to the last one in use.
///
/// # Errors
/// [`NewFatError`].
pub fn made(volume: &NewFat, files: &[NewFile<'_>]) -> Result<Vec<u8>, NewFatError> {
    let sector = volume.sector.bytes();
    let shape = Shape::new(volume)?;
    let mut nodes = nodes(files)?;
    let cluster = shape.per_cluster * sector;
    let mut next = u64::from(ROOT);
    for at in 0..nodes.len() {
        let bytes = match nodes[at].content {
            Some(content) => content.len() as u64,
            None => {
                let own = if at == 0 { 0 } else { 2 };
                let children = nodes.iter().skip(1).filter(|node| node.parent == at);
                ((children.count() + own) * ENTRY) as u64
            }
        };
        // An empty file has no cluster; a folder always has one.
        let least = u64::from(nodes[at].content.is_none());
        let clusters = bytes.div_ceil(cluster).max(least);
        nodes[at].first = if clusters > 0 { next as u32 } else { 0 };
        nodes[at].clusters = clusters;
        next += clusters;
        if next - u64::from(ROOT) > shape.clusters {
            return Err(NewFatError::Full {
                needed: next - u64::from(ROOT),
                clusters: shape.clusters,
            });
        }
    }
    let used = next - u64::from(ROOT);
    let data = (RESERVED + FATS * shape.fat_sectors) * sector;
    let mut bytes = vec![0; (data + used * cluster) as usize];
    let boot = boot_sector(volume, &shape);
    let info = info_sector(sector, shape.clusters - used, next as u32);
    for first in [0, 6] {
        let at = (first * sector) as usize;
        bytes[at..at + boot.len()].copy_from_slice(&boot);
        let at = at + sector as usize;
        bytes[at..at + info.len()].copy_from_slice(&info);
    }
    for copy in 0..FATS {
        let fat = ((RESERVED + copy * shape.fat_sectors) * sector) as usize;
        let mut put = |at: u64, value: u32| put32(&mut bytes, fat + at as usize * 4, value);
        put(0, 0x0fff_fff8);
        put(1, LAST);
        for node in &nodes {
            for link in 0..node.clusters {
                let at = u64::from(node.first) + link;
                let is_last = link + 1 == node.clusters;
                put(at, if is_last { LAST } else { at as u32 + 1 });
            }
        }
    }
    for (at, node) in nodes.iter().enumerate() {
        if node.clusters == 0 {
            continue;
        }
        let place = (data + u64::from(node.first - ROOT) * cluster) as usize;
        let content = match node.content {
            Some(content) => content.to_vec(),
            None => folder(&nodes, at),
        };
        bytes[place..place + content.len()].copy_from_slice(&content);
    }
    Ok(bytes)
}

/// The sizes of the parts.
struct Shape {
    sectors: u32,
    per_cluster: u64,
    fat_sectors: u64,
    clusters: u64,
}

impl Shape {
    fn new(volume: &NewFat) -> Result<Self, NewFatError> {
        let sector = volume.sector.bytes();
        let too_small = NewFatError::TooSmall {
            size: volume.size,
            sector,
        };
        let too_large = NewFatError::TooLarge { size: volume.size };
        let all = volume.size / sector;
        let sectors = u32::try_from(all).map_err(|_| too_large.clone())?;
        let Some(rest) = all.checked_sub(RESERVED) else {
            return Err(too_small);
        };
        let mut per_cluster = 1;
        while rest / per_cluster > MANY_CLUSTERS {
            per_cluster *= 2;
        }
        if per_cluster > 128 {
            return Err(too_large);
        }
        // Larger FATs leave fewer clusters, which need no larger FATs: this ends.
        let mut fat_sectors = 1;
        loop {
            let clusters = rest.saturating_sub(FATS * fat_sectors) / per_cluster;
            let needed = ((clusters + 2) * 4).div_ceil(sector);
            if clusters < LEAST_CLUSTERS {
                return Err(too_small);
            }
            if needed <= fat_sectors {
                return Ok(Self {
                    sectors,
                    per_cluster,
                    fat_sectors,
                    clusters,
                });
            }
            fat_sectors = needed;
        }
    }
}

fn boot_sector(volume: &NewFat, shape: &Shape) -> Vec<u8> {
    let sector = volume.sector.bytes();
    let mut boot = vec![0; sector as usize];
    boot[..11].copy_from_slice(b"\xeb\x58\x90NETBOOT ");
    boot[11..13].copy_from_slice(&(sector as u16).to_le_bytes());
    boot[13] = shape.per_cluster as u8;
    boot[14] = RESERVED as u8;
    boot[16] = FATS as u8;
    boot[21] = 0xf8;
    // Sectors of a track and heads, as all BIOSes pretend.
    boot[24] = 63;
    boot[26] = 255;
    let hidden = u32::try_from(volume.hidden).unwrap_or(0);
    put32(&mut boot, 28, hidden);
    put32(&mut boot, 32, shape.sectors);
    put32(&mut boot, 36, shape.fat_sectors as u32);
    put32(&mut boot, 44, ROOT);
    // Where the second sector and the copy of the first are.
    boot[48] = 1;
    boot[50] = 6;
    boot[64] = 0x80;
    boot[66] = 0x29;
    put32(&mut boot, 67, volume.serial);
    boot[71..82].copy_from_slice(b"NO NAME    ");
    boot[82..90].copy_from_slice(b"FAT32   ");
    // Nothing starts from it by BIOS: stop.
    boot[90..93].copy_from_slice(&[0xf4, 0xeb, 0xfd]);
    boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    boot
}

fn info_sector(sector: u64, free: u64, next: u32) -> Vec<u8> {
    let mut info = vec![0; sector as usize];
    put32(&mut info, 0, 0x4161_5252);
    put32(&mut info, 484, 0x6141_7272);
    put32(&mut info, 488, free as u32);
    put32(&mut info, 492, next);
    put32(&mut info, 508, 0xaa55_0000);
    info
}

/// The files with the folders that they are in, the root first, each folder before what is in it.
fn nodes<'a>(files: &[NewFile<'a>]) -> Result<Vec<Node<'a>>, NewFatError> {
    let node = |name, parent, content| Node {
        name,
        parent,
        content,
        first: 0,
        clusters: 0,
    };
    let mut nodes = vec![node("", 0, None)];
    for file in files {
        let (folders, name) = match file.path.rsplit_once('/') {
            Some((folders, name)) => (folders.split('/').collect(), name),
            None => (Vec::new(), file.path),
        };
        let mut at = 0;
        for folder in folders {
            short_name(folder)?;
            let mut known = nodes.iter().enumerate().skip(1);
            let same = known.find(|(_, one)| {
                one.parent == at && one.content.is_none() && one.name.eq_ignore_ascii_case(folder)
            });
            at = match same {
                Some((index, _)) => index,
                None => {
                    nodes.push(node(folder, at, None));
                    nodes.len() - 1
                }
            };
        }
        short_name(name)?;
        nodes.push(node(name, at, Some(file.content)));
    }
    Ok(nodes)
}

/// The eleven bytes of a short name, and the flags that say which of its parts are in small letters.
fn short_name(name: &str) -> Result<([u8; 11], u8), NewFatError> {
    let refuse = || NewFatError::Name {
        name: name.to_owned(),
    };
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let mut bytes = [b' '; 11];
    let mut flags = 0;
    for (part, at, most, flag) in [(base, 0, 8, 0x08), (extension, 8, 3, 0x10)] {
        let fits = part.len() <= most
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return Err(refuse());
        }
        let has_small = part.bytes().any(|byte| byte.is_ascii_lowercase());
        let has_capital = part.bytes().any(|byte| byte.is_ascii_uppercase());
        if has_small && !has_capital {
            flags |= flag;
        }
        let capitals = part.to_ascii_uppercase();
        bytes[at..at + part.len()].copy_from_slice(capitals.as_bytes());
    }
    if base.is_empty() {
        return Err(refuse());
    }
    Ok((bytes, flags))
}

/// The entries of a folder.
fn folder(nodes: &[Node<'_>], at: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut entry = |name: [u8; 11], flags: u8, node: &Node<'_>, first: u32| {
        let mut entry = [0; ENTRY];
        entry[..11].copy_from_slice(&name);
        entry[11] = if node.content.is_none() { 0x10 } else { 0x20 };
        entry[12] = flags;
        for day in [16, 18, 24] {
            entry[day..day + 2].copy_from_slice(&DAY.to_le_bytes());
        }
        entry[20..22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
        entry[26..28].copy_from_slice(&(first as u16).to_le_bytes());
        let len = node.content.map_or(0, <[u8]>::len) as u32;
        entry[28..].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&entry);
    };
    if at > 0 {
        let (own, parent) = (&nodes[at], &nodes[nodes[at].parent]);
        // The root is cluster 0 here.
        let above = if own.parent == 0 { 0 } else { parent.first };
        entry(*b".          ", 0, own, own.first);
        entry(*b"..         ", 0, parent, above);
    }
    for node in nodes.iter().skip(1).filter(|node| node.parent == at) {
        // The name was checked when the node was made.
        if let Ok((name, flags)) = short_name(node.name) {
            entry(name, flags, node, node.first);
        }
    }
    bytes
}
