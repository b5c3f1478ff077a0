//! The documents say what the code does, where a program can tell.
#![allow(clippy::disallowed_methods, reason = "tests read the documents")]

use backup::plan::ReasonCode;

fn document(name: &str) -> String {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All codes; the match refuses to build when one is added and not listed.
fn all_codes() -> Vec<ReasonCode> {
    let listed = |code: ReasonCode| match code {
        ReasonCode::NoDisk
        | ReasonCode::AmbiguousDisk
        | ReasonCode::DiskNotFound
        | ReasonCode::TooSmall
        | ReasonCode::CannotShrink
        | ReasonCode::SectorSize
        | ReasonCode::FirmwareType
        | ReasonCode::CannotConvert
        | ReasonCode::Architecture
        | ReasonCode::ReadOnly
        | ReasonCode::TableUnsupported
        | ReasonCode::VolumeNotFound
        | ReasonCode::VolumeUnsupported
        | ReasonCode::MemberDisk => code,
    };
    [
        ReasonCode::NoDisk,
        ReasonCode::AmbiguousDisk,
        ReasonCode::DiskNotFound,
        ReasonCode::TooSmall,
        ReasonCode::CannotShrink,
        ReasonCode::SectorSize,
        ReasonCode::FirmwareType,
        ReasonCode::CannotConvert,
        ReasonCode::Architecture,
        ReasonCode::ReadOnly,
        ReasonCode::TableUnsupported,
        ReasonCode::VolumeNotFound,
        ReasonCode::VolumeUnsupported,
        ReasonCode::MemberDisk,
    ]
    .map(listed)
    .to_vec()
}

#[test]
fn every_reason_code_has_its_heading_and_no_heading_is_left_over() {
    let text = document("reason-codes.md");
    let mut headings: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(str::to_owned)
        .collect();
    let mut names: Vec<String> = all_codes()
        .into_iter()
        .map(|code| {
            serde_json::to_value(code)
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    headings.sort();
    names.sort();
    assert_eq!(headings, names);
}

#[test]
fn the_limits_in_the_chunk_format_are_the_codes() {
    let text = document("formats/chunks.md");
    let grouped = |number: u32| {
        let digits = number.to_string();
        format!(
            "{},{}",
            &digits[..digits.len() - 3],
            &digits[digits.len() - 3..]
        )
    };
    for limit in [backup::chunk::MAX_CHUNK_LEN, backup::chunk::MAX_STORED_LEN] {
        assert!(text.contains(&grouped(limit)), "{limit}");
    }
}

#[test]
fn the_manifest_document_names_every_file_system() {
    use backup::manifest::FileSystemKind as Kind;
    let text = document("formats/manifest.md");
    for kind in [
        Kind::Ext2,
        Kind::Ext3,
        Kind::Ext4,
        Kind::Fat12,
        Kind::Fat16,
        Kind::Fat32,
        Kind::Exfat,
        Kind::Ntfs,
        Kind::Xfs,
        Kind::Btrfs,
        Kind::Swap,
        Kind::Luks,
        Kind::Bitlocker,
        Kind::Lvm,
    ] {
        let name = serde_json::to_string(&kind).unwrap().replace('"', "`");
        assert!(text.contains(&name), "{name}");
    }
}
