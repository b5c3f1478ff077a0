//! What this program reads out of ELF files: interpreter, needed libraries, module information.
//!
//! Sources: the ELF-64 object file format, and the kernel's `include/linux/moduleinfo.h` for `.modinfo`
//! (strings `key=value`, each ended by NUL).
//!
//! Not here: symbols and relocations.

use object::LittleEndian;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use crate::architecture::Architecture;

/// Why bytes are not the ELF file that was wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    /// The structure is damaged, or the file is no ELF-64 file at all.
    #[error("not a readable 64-bit ELF file")]
    Malformed(#[from] object::read::Error),
    /// It is for another processor.
    #[error(
        "the ELF file is for machine {found}, expected {} ({})",
        .expected.elf_machine().0, .expected.name()
    )]
    Machine {
        /// The number in `e_machine`.
        found: u16,
        /// The wanted processor.
        expected: Architecture,
    },
    /// A name in it is not UTF-8.
    #[error("a name in the ELF file is not text")]
    NotText,
}

/// What a program or shared library needs to be started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Linkage {
    /// Path of the dynamic loader (`PT_INTERP`); none for a static program or a library.
    pub(crate) interpreter: Option<String>,
    /// File names of the libraries (`DT_NEEDED`), in the file's order.
    pub(crate) needed: Vec<String>,
}

type Header = FileHeader64<LittleEndian>;

fn header(data: &[u8], expected: Architecture) -> Result<&Header, ElfError> {
    let header = Header::parse(data)?;
    header.endian()?;
    let machine = header.e_machine(LittleEndian);
    if machine != expected.elf_machine() {
        return Err(ElfError::Machine {
            found: machine.0,
            expected,
        });
    }
    Ok(header)
}

fn text(bytes: &[u8]) -> Result<String, ElfError> {
    str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| ElfError::NotText)
}

/// The interpreter and the needed libraries of a program or library.
///
/// # Errors
/// [`ElfError`] when `data` is not a well-formed ELF file for `machine`.
pub(crate) fn linkage(data: &[u8], machine: Architecture) -> Result<Linkage, ElfError> {
    let header = header(data, machine)?;
    let mut linkage = Linkage::default();
    for program in header.program_headers(LittleEndian, data)? {
        if let Some(path) = program.interpreter(LittleEndian, data)? {
            linkage.interpreter = Some(text(path)?);
        }
    }
    let sections = header.sections(LittleEndian, data)?;
    let dynamic = sections.dynamic_table(LittleEndian, data)?;
    for entry in dynamic.iter() {
        if entry.tag == DT_NEEDED {
            linkage.needed.push(text(dynamic.string(entry)?)?);
        }
    }
    Ok(linkage)
}

/// The `key=value` strings of a kernel module's `.modinfo` section, in its order.
///
/// A module without the section gives an empty list.
///
/// # Errors
/// [`ElfError`] when `data` is not a well-formed ELF file for `machine`.
pub(crate) fn module_info(
    data: &[u8],
    machine: Architecture,
) -> Result<Vec<(String, String)>, ElfError> {
    let sections = header(data, machine)?.sections(LittleEndian, data)?;
    let Some((_, section)) = sections.section_by_name(LittleEndian, b".modinfo") else {
        return Ok(Vec::new());
    };
    let mut info = Vec::new();
    for string in section.data(LittleEndian, data)?.split(|byte| *byte == 0) {
        if let Some((key, value)) = text(string)?.split_once('=') {
            info.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(info)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const X64: Architecture = Architecture::X64;

    /// A well-formed ELF-64 file with only what this module reads: an interpreter, needed libraries and
    /// `.modinfo` strings.
    pub(crate) fn fake_elf(
        interpreter: Option<&str>,
        needed: &[&str],
        modinfo: &[(&str, &str)],
    ) -> Vec<u8> {
        let mut strings = vec![0];
        let mut dynamic = Vec::new();
        for name in needed {
            dynamic.extend_from_slice(&1u64.to_le_bytes());
            dynamic.extend_from_slice(&(strings.len() as u64).to_le_bytes());
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        dynamic.extend_from_slice(&[0; 16]);
        let mut info = Vec::new();
        for (key, value) in modinfo {
            info.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        let mut loader = interpreter.unwrap_or_default().as_bytes().to_vec();
        loader.push(0);
        let names = b"\0.dynstr\0.dynamic\0.modinfo\0.shstrtab\0".to_vec();

        let mut file = vec![0; 64 + 56];
        let mut places = Vec::new();
        for content in [&strings, &dynamic, &info, &names, &loader] {
            places.push((file.len() as u64, content.len() as u64));
            file.extend_from_slice(content);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        let table = file.len() as u64;
        // name, type (STRTAB 3, DYNAMIC 6, PROGBITS 1), link, place
        let sections = [
            (0, 0u32, 0u32, (0, 0)),
            (1u32, 3, 0, places[0]),
            (9, 6, 1, places[1]),
            (18, 1, 0, places[2]),
            (27, 3, 0, places[3]),
        ];
        for (name, kind, link, (offset, size)) in sections {
            let mut header = Vec::new();
            header.extend_from_slice(&name.to_le_bytes());
            header.extend_from_slice(&kind.to_le_bytes());
            header.extend_from_slice(&[0; 16]);
            header.extend_from_slice(&offset.to_le_bytes());
            header.extend_from_slice(&size.to_le_bytes());
            header.extend_from_slice(&link.to_le_bytes());
            header.resize(64, 0);
            file.extend_from_slice(&header);
        }
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        file[16..18].copy_from_slice(&3u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[40..48].copy_from_slice(&table.to_le_bytes());
        let sizes = [64u16, 56, u16::from(interpreter.is_some()), 64, 5, 4];
        for (index, size) in sizes.into_iter().enumerate() {
            file[52 + 2 * index..54 + 2 * index].copy_from_slice(&size.to_le_bytes());
        }
        // The one program header: PT_INTERP.
        file[64..68].copy_from_slice(&3u32.to_le_bytes());
        file[72..80].copy_from_slice(&places[4].0.to_le_bytes());
        file[96..104].copy_from_slice(&places[4].1.to_le_bytes());
        file
    }

    #[test]
    fn interpreter_and_needed_libraries_are_read() {
        let file = fake_elf(Some("/lib64/ld.so"), &["libc.so.6", "libm.so.6"], &[]);
        let linkage = linkage(&file, X64).unwrap();
        assert_eq!(linkage.interpreter.as_deref(), Some("/lib64/ld.so"));
        assert_eq!(linkage.needed, ["libc.so.6", "libm.so.6"]);
    }

    #[test]
    fn module_information_keeps_its_order_and_repeats() {
        let info = [("alias", "a"), ("depends", ""), ("alias", "b=c")];
        let read = module_info(&fake_elf(None, &[], &info), X64).unwrap();
        let read: Vec<(&str, &str)> = read
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(read, info);
    }

    #[test]
    fn another_machines_file_is_refused() {
        let mut file = fake_elf(None, &[], &[]);
        file[18..20].copy_from_slice(&183u16.to_le_bytes());
        let error = linkage(&file, X64).unwrap_err();
        assert!(
            matches!(error, ElfError::Machine { found: 183, .. }),
            "{error}"
        );
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let file = fake_elf(Some("/lib64/ld.so"), &["libc.so.6"], &[("depends", "x")]);
        for cut in 0..file.len() {
            let _ = linkage(&file[..cut], X64);
            let _ = module_info(&file[..cut], X64);
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0xff;
            let _ = linkage(&damaged, X64);
            let _ = module_info(&damaged, X64);
        }
        assert!(linkage(b"#!/bin/sh\n", X64).is_err());
    }
}
