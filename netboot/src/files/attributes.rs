//! Extended attributes and access lists as records of a tar archive.
//!
//! `SCHILY.xattr.NAME` and, for access lists, `SCHILY.acl.access` and `SCHILY.acl.default` in words: what
//! star began and GNU tar (`--xattrs`, `--acls`) and libarchive read.

use backup::filesystem::tree::Attribute;

/// The records of these attributes: key and value.
pub(super) fn records(attributes: &[Attribute]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let each = |attribute: &Attribute| {
        let key = match attribute.name.as_slice() {
            b"system.posix_acl_access" => "SCHILY.acl.access",
            b"system.posix_acl_default" => "SCHILY.acl.default",
            name => return (xattr_key(name), attribute.value.clone()),
        };
        match in_words(&attribute.value) {
            Some(words) => (key.into(), words.into_bytes()),
            None => (xattr_key(&attribute.name), attribute.value.clone()),
        }
    };
    attributes.iter().map(each).collect()
}

/// A key ends at the first `=`, so GNU tar writes that character of a name in another way.
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            other => key.push(*other),
        }
    }
    key
}

/// An access list (`linux/posix_acl_xattr.h`) in the short form of acl(5), with numbers for names: those
/// of this machine are others.
fn in_words(list: &[u8]) -> Option<String> {
    const NOBODY: u32 = u32::MAX;
    let (version, entries) = list.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || !rest.is_empty() {
        return None;
    }
    let mut words = Vec::with_capacity(entries.len());
    for [tag, tag_high, rights, _, number @ ..] in entries {
        let number = u32::from_le_bytes(*number);
        let (kind, named) = match u16::from_le_bytes([*tag, *tag_high]) {
            0x01 => ("user", false),
            0x02 => ("user", true),
            0x04 => ("group", false),
            0x08 => ("group", true),
            0x10 => ("mask", false),
            0x20 => ("other", false),
            _ => return None,
        };
        if named == (number == NOBODY) {
            return None;
        }
        let who = if named {
            number.to_string()
        } else {
            String::new()
        };
        let right = |bit: u8, letter| if rights & bit != 0 { letter } else { '-' };
        let rights: String = [right(4, 'r'), right(2, 'w'), right(1, 'x')]
            .iter()
            .collect();
        words.push(format!("{kind}:{who}:{rights}"));
    }
    Some(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, value: &[u8]) -> Attribute {
        Attribute {
            name: name.into(),
            value: value.to_vec(),
        }
    }

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, rights, number) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(rights.to_le_bytes());
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn an_access_list_is_written_in_words() {
        const NONE: u32 = u32::MAX;
        let bytes = list(&[
            (1, 6, NONE),
            (2, 5, 1000),
            (4, 4, NONE),
            (8, 7, 0),
            (0x10, 7, NONE),
            (0x20, 0, NONE),
        ]);
        let found = records(&[attribute("system.posix_acl_default", &bytes)]);
        let words = "user::rw-,user:1000:r-x,group::r--,group:0:rwx,mask::rwx,other::---";
        assert_eq!(found, [("SCHILY.acl.default".into(), words.into())]);
    }

    #[test]
    fn what_is_no_access_list_is_kept_as_it_is() {
        for value in [
            &b""[..],
            b"\x01\0\0\0",
            b"\x02\0\0\0\x01",
            &list(&[(3, 6, 0)]),
        ] {
            let found = records(&[attribute("system.posix_acl_access", value)]);
            let key = b"SCHILY.xattr.system.posix_acl_access".to_vec();
            assert_eq!(found, [(key, value.to_vec())]);
        }
    }

    #[test]
    fn a_name_never_ends_its_key() {
        let found = records(&[attribute("user.a=b%c", b"=\n\0")]);
        assert_eq!(
            found,
            [(b"SCHILY.xattr.user.a%3Db%25c".to_vec(), b"=\n\0".to_vec())]
        );
    }
}
