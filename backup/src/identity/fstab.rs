//! `/etc/fstab` (fstab(5)): what is mounted where.
//!
//! Invariant: a line that is not understood is none. What is *not* here: which volume a name stands for.

/// The most lines that are read; real tables have a dozen.
const MAX_LINES: usize = 4096;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted: `UUID=…`, `/dev/…`.
    pub what: String,
    /// The folder that it is mounted on; `none` or `swap` for a swap.
    pub on: String,
    /// The kind of file system.
    pub kind: String,
}

/// The lines of a table, comments and empty ones left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    String::from_utf8_lossy(text)
        .lines()
        .take(MAX_LINES)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let what = fields.next().filter(|what| !what.starts_with('#'))?;
            Some(Mount {
                what: unescaped(what).trim_matches('"').replace("=\"", "="),
                on: unescaped(fields.next()?),
                kind: fields.next()?.to_owned(),
            })
        })
        .collect()
}

/// `\040` and its like stand for bytes that would end a field.
fn unescaped(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten();
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn lines_are_read_and_comments_are_not() {
        let text = b"# UUID=x / ext4\n\nUUID=\"ab\" / ext4 errors=remount-ro 0 1\n\
            LABEL=my\\040data\t/srv/my\\040data xfs\nUUID=cd none swap sw\n/dev/sda1 /boot\n";
        let lines: Vec<_> = parse(text)
            .into_iter()
            .map(|mount| (mount.what, mount.on, mount.kind))
            .collect();
        let owned = |what: &str, on: &str, kind: &str| (what.into(), on.into(), kind.into());
        assert_eq!(
            lines,
            [
                owned("UUID=ab", "/", "ext4"),
                owned("LABEL=my data", "/srv/my data", "xfs"),
                owned("UUID=cd", "none", "swap"),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }
    }
}
