//! Load options and device paths: what a firmware boot entry is made of.
//!
//! Sources: UEFI 2.10 §3.1.3 (`EFI_LOAD_OPTION`), §10.3 (device paths), §10.3.5.1 (hard drive node).
//! All numbers are little endian.
//!
//! ```text
//! load option   attributes:u32 path_len:u16 description:UCS-2, ends with 0 | path | optional data
//! path node     type:u8 subtype:u8 len:u16 (with these 4) | data
//! hard drive    4, 1, 42 | number:u32 start:u64 sectors:u64 signature:[u8; 16] format:u8 kind:u8
//! file          4, 4, n  | UCS-2, ends with 0
//! end           0x7f, 0xff (all) or 1 (of one path), 4
//! ```
//!
//! Pure: no I/O. Invariant: what was parsed is emitted to the same bytes.

use uuid::Uuid;

const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE: u8 = 4;
const END: u8 = 0x7f;
const END_ALL: u8 = 0xff;
const GPT_FORMAT: u8 = 2;
const GUID_SIGNATURE: u8 = 2;

/// The entry takes part in the boot order.
pub(crate) const ACTIVE: u32 = 1;

/// Bytes that are no load option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadOptionError {
    /// It ends before it is whole.
    #[error("the load option of {found} bytes ends within its {what}")]
    Short {
        /// Which part.
        what: &'static str,
        /// Its length in bytes.
        found: usize,
    },
    /// A node that says it is shorter than its own head.
    #[error("a device path node says it has {found} bytes (expected at least 4)")]
    Node {
        /// What it says.
        found: u16,
    },
}

/// One node of a device path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    kind: u8,
    subtype: u8,
    data: Vec<u8>,
}

/// A GPT partition, as a device path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HardDrive {
    /// Counted from 1.
    pub(crate) number: u32,
    /// First sector.
    pub(crate) start: u64,
    /// How many sectors.
    pub(crate) sectors: u64,
    /// The partition's own GUID.
    pub(crate) guid: Uuid,
}

/// What a `Boot####` variable holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadOption {
    /// Bits; see [`ACTIVE`].
    pub(crate) attributes: u32,
    /// UCS-2 without the zero at the end.
    description: Vec<u16>,
    nodes: Vec<Node>,
    optional: Vec<u8>,
}

impl Node {
    fn hard_drive(drive: &HardDrive) -> Self {
        let mut data = Vec::with_capacity(38);
        data.extend_from_slice(&drive.number.to_le_bytes());
        data.extend_from_slice(&drive.start.to_le_bytes());
        data.extend_from_slice(&drive.sectors.to_le_bytes());
        data.extend_from_slice(&drive.guid.to_bytes_le());
        data.extend_from_slice(&[GPT_FORMAT, GUID_SIGNATURE]);
        Self {
            kind: MEDIA,
            subtype: HARD_DRIVE,
            data,
        }
    }

    fn as_hard_drive(&self) -> Option<HardDrive> {
        if (self.kind, self.subtype) != (MEDIA, HARD_DRIVE) {
            return None;
        }
        let data: &[u8; 38] = self.data.as_slice().try_into().ok()?;
        if data[36..] != [GPT_FORMAT, GUID_SIGNATURE] {
            return None;
        }
        Some(HardDrive {
            number: u32::from_le_bytes(*data.first_chunk()?),
            start: u64::from_le_bytes(*data[4..].first_chunk()?),
            sectors: u64::from_le_bytes(*data[12..].first_chunk()?),
            guid: Uuid::from_bytes_le(*data[20..].first_chunk()?),
        })
    }

    fn as_file(&self) -> Option<String> {
        if (self.kind, self.subtype) != (MEDIA, FILE) {
            return None;
        }
        let (units, _) = self.data.as_chunks::<2>();
        let units = units
            .iter()
            .map(|unit| u16::from_le_bytes(*unit))
            .take_while(|unit| *unit != 0);
        Some(
            char::decode_utf16(units)
                .map(|char| char.unwrap_or('\u{fffd}'))
                .collect(),
        )
    }

    const fn is_end(&self) -> bool {
        self.kind == END
    }
}

impl LoadOption {
    /// An active entry that starts a file of a partition.
    pub(crate) fn of_file(description: &str, drive: &HardDrive, path: &str) -> Self {
        let file = path
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        Self {
            attributes: ACTIVE,
            description: description.encode_utf16().collect(),
            nodes: vec![
                Node::hard_drive(drive),
                Node {
                    kind: MEDIA,
                    subtype: FILE,
                    data: file,
                },
                Node {
                    kind: END,
                    subtype: END_ALL,
                    data: Vec::new(),
                },
            ],
            optional: Vec::new(),
        }
    }

    /// Reads a load option.
    ///
    /// # Errors
    /// [`LoadOptionError`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, LoadOptionError> {
        let short = |what| LoadOptionError::Short {
            what,
            found: bytes.len(),
        };
        let (attributes, rest) = bytes
            .split_first_chunk()
            .ok_or_else(|| short("attributes"))?;
        let (path_len, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| short("path length"))?;
        let (units, _) = rest.as_chunks::<2>();
        let description: Vec<u16> = units
            .iter()
            .map(|unit| u16::from_le_bytes(*unit))
            .take_while(|unit| *unit != 0)
            .collect();
        let after = rest
            .get(2 * (description.len() + 1)..)
            .ok_or_else(|| short("description"))?;
        let (mut path, optional) = after
            .split_at_checked(usize::from(u16::from_le_bytes(*path_len)))
            .ok_or_else(|| short("device path"))?;
        let mut nodes = Vec::new();
        while !path.is_empty() {
            let head: &[u8; 4] = path
                .first_chunk()
                .ok_or_else(|| short("device path node"))?;
            let found = u16::from_le_bytes([head[2], head[3]]);
            if found < 4 {
                return Err(LoadOptionError::Node { found });
            }
            let (node, after) = path
                .split_at_checked(usize::from(found))
                .ok_or_else(|| short("device path node"))?;
            nodes.push(Node {
                kind: head[0],
                subtype: head[1],
                data: node[4..].to_vec(),
            });
            path = after;
        }
        Ok(Self {
            attributes: u32::from_le_bytes(*attributes),
            description,
            nodes,
            optional: optional.to_vec(),
        })
    }

    /// The byte form. A path that came from [`Self::parse`] fits its length field, and changing a
    /// node's numbers does not change its length.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut path = Vec::new();
        for node in &self.nodes {
            let len = node.data.len() as u16 + 4;
            path.extend_from_slice(&[node.kind, node.subtype]);
            path.extend_from_slice(&len.to_le_bytes());
            path.extend_from_slice(&node.data);
        }
        let mut bytes = self.attributes.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(path.len() as u16).to_le_bytes());
        for unit in self.description.iter().chain(&[0]) {
            bytes.extend_from_slice(&unit.to_le_bytes());
        }
        bytes.extend_from_slice(&path);
        bytes.extend_from_slice(&self.optional);
        bytes
    }

    /// What people see in the firmware's menu.
    pub(crate) fn description(&self) -> String {
        String::from_utf16_lossy(&self.description)
    }

    /// The partition and the file in it that the first path names.
    pub(crate) fn target(&self) -> Option<(HardDrive, String)> {
        let first = self.nodes.iter().take_while(|node| !node.is_end());
        let mut rest = first.skip_while(|node| node.as_hard_drive().is_none());
        let drive = rest.next()?.as_hard_drive()?;
        let names: Vec<_> = rest.map_while(Node::as_file).collect();
        if names.is_empty() {
            return None;
        }
        // A path may be spread over several nodes (UEFI 2.10 §10.3.5.4).
        let path = names.join("\\").replace("\\\\", "\\");
        Some((drive, path))
    }

    /// The same entry for a partition at its place on another disk: the first path begins at the
    /// partition (the short form of UEFI 2.10 §3.1.2), because the way to the disk can be another.
    pub(crate) fn moved_to(&self, drive: &HardDrive) -> Self {
        let at = self
            .nodes
            .iter()
            .position(|node| node.as_hard_drive().is_some());
        let after = self.nodes.iter().skip(at.map_or(0, |at| at + 1)).cloned();
        let nodes = std::iter::once(Node::hard_drive(drive))
            .chain(after)
            .collect();
        Self {
            nodes,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    /// `Boot0004` of a Debian 12 in OVMF: HD(2,GPT,…,0x1000,0x40000)/\EFI\debian\shimx64.efi.
    fn debian() -> Vec<u8> {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(98u16.to_le_bytes());
        bytes.extend("debian\0".encode_utf16().flat_map(u16::to_le_bytes));
        bytes.extend([4, 1, 42, 0, 2, 0, 0, 0]);
        bytes.extend(0x1000u64.to_le_bytes());
        bytes.extend(0x40000u64.to_le_bytes());
        bytes.extend((0..16).collect::<Vec<u8>>());
        bytes.extend([2, 2]);
        bytes.extend([4, 4, 52, 0]);
        bytes.extend(
            "\\EFI\\debian\\grubx64.efi\0"
                .encode_utf16()
                .flat_map(u16::to_le_bytes),
        );
        bytes.extend([0x7f, 0xff, 4, 0]);
        bytes.extend([0xca, 0xfe]);
        bytes
    }

    #[test]
    fn a_debian_entry_is_read_and_written_back() {
        let option = LoadOption::parse(&debian()).unwrap();
        assert_eq!(option.description(), "debian");
        let (drive, path) = option.target().unwrap();
        assert_eq!(
            (drive.number, drive.start, drive.sectors),
            (2, 0x1000, 0x40000)
        );
        assert_eq!(
            drive.guid.to_string(),
            "03020100-0504-0706-0809-0a0b0c0d0e0f"
        );
        assert_eq!(path, "\\EFI\\debian\\grubx64.efi");
        assert_eq!(option.encode(), debian());
    }

    #[test]
    fn a_moved_entry_names_the_new_place_and_keeps_the_rest() {
        let option = LoadOption::parse(&debian()).unwrap();
        let (drive, path) = option.target().unwrap();
        let moved = option.moved_to(&HardDrive {
            sectors: 99,
            ..drive
        });
        assert_eq!(
            moved.target(),
            Some((
                HardDrive {
                    sectors: 99,
                    ..drive
                },
                path
            ))
        );
        assert_eq!(moved.encode().len(), debian().len());
        assert_eq!(moved.moved_to(&drive).encode(), debian());
    }

    #[test]
    fn an_entry_with_the_way_to_its_disk_is_cut_to_the_short_form() {
        let mut option = LoadOption::parse(&debian()).unwrap();
        let short = option.clone();
        option.nodes.insert(
            0,
            Node {
                kind: 2,
                subtype: 1,
                data: vec![0; 8],
            },
        );
        let (drive, _) = option.target().unwrap();
        assert_eq!(option.moved_to(&drive), short);
    }

    #[test]
    fn a_made_entry_is_read_back() {
        let drive = HardDrive {
            number: 1,
            start: 2048,
            sectors: 4096,
            guid: Uuid::nil(),
        };
        let option = LoadOption::of_file("Lab", &drive, "\\EFI\\BOOT\\BOOTX64.EFI");
        let back = LoadOption::parse(&option.encode()).unwrap();
        assert_eq!(
            back.target(),
            Some((drive, "\\EFI\\BOOT\\BOOTX64.EFI".to_owned()))
        );
        assert_eq!(back, option);
    }

    proptest! {
        #[test]
        fn whatever_is_parsed_is_emitted_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(option) = LoadOption::parse(&bytes) {
                prop_assert_eq!(option.encode(), bytes);
            }
        }

        #[test]
        fn a_damaged_entry_never_panics(at in 0usize..130, value in any::<u8>(), len in 0usize..140) {
            let mut bytes = debian();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(len);
            if let Ok(option) = LoadOption::parse(&bytes) {
                let _ = option.target();
                prop_assert_eq!(option.encode(), bytes);
            }
        }
    }
}
