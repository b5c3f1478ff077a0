//! Adds sections to an EFI program (PE32+).
//!
//! Source: Microsoft's "PE Format"; UEFI 2.10 §2.1.1 (images), §32.5 (what a signature covers).
//!
//! Invariants: sections neither overlap nor leave a gap in the file, because firmware and signing tools
//! disagree on how bytes between sections count in a signature; what the program had before is as it
//! was, but for its symbol table, which nothing reads.
//!
//! Not here: what the sections mean ([`crate::unified`]), signatures.

use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_SECURITY, IMAGE_FILE_MACHINE_ARM64, IMAGE_SCN_CNT_INITIALIZED_DATA,
    IMAGE_SCN_MEM_READ, IMAGE_SUBSYSTEM_EFI_APPLICATION, ImageDosHeader, ImageNtHeaders64,
    ImageSectionHeader, Machine,
};
use object::pod;
use object::read::pe::ImageNtHeaders as _;

/// Sections begin at this much in memory at least: a page, so that the program may map them.
const PAGE: u64 = 0x1000;

/// Why sections cannot be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeError {
    /// No PE32+ file.
    #[error("not a readable 64-bit EFI program")]
    Malformed(#[from] object::read::Error),
    /// For another processor.
    #[error("the EFI program is for machine {found:#06x}, expected {expected:#06x}")]
    Machine {
        /// The number in the file header.
        found: u16,
        /// The wanted number.
        expected: u16,
    },
    /// A driver, or no EFI program at all.
    #[error("the program's subsystem is {found}, expected 10 (EFI application)")]
    Subsystem {
        /// The number in the optional header.
        found: u16,
    },
    /// It is signed already.
    #[error("the EFI program is signed; sections would break the signature: take the unsigned one")]
    Signed,
    /// Its headers or sections are laid out in a way that cannot be extended.
    #[error("the EFI program's layout cannot be extended: {what}")]
    Layout {
        /// What is in the way.
        what: &'static str,
    },
    /// It has a section of this name.
    #[error("the EFI program has a section {name} already")]
    Taken {
        /// The name.
        name: String,
    },
    /// The result would be larger than the format can say.
    #[error("the sections are too large for an EFI program, which cannot be over 4 GiB")]
    TooLarge,
}

/// A section to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    /// Its name, 8 bytes at most.
    pub(crate) name: &'a str,
    /// Its content.
    pub(crate) data: &'a [u8],
}

const fn layout(what: &'static str) -> PeError {
    PeError::Layout { what }
}

fn number(value: u64) -> Result<u32, PeError> {
    u32::try_from(value).map_err(|_| PeError::TooLarge)
}

/// Where the headers are in the file, and what of them decides where sections go.
struct Headers {
    /// Offset of the NT headers.
    nt: usize,
    /// Offset of the first free entry of the section table.
    free: usize,
    /// How many sections there are.
    sections: u16,
    /// End of the headers in the file.
    end: usize,
    /// End of the last section in the file.
    file_end: u64,
    /// End of the last section in memory.
    memory_end: u64,
    file_alignment: u64,
    memory_alignment: u64,
}

/// `program` with `sections` behind those it has, in that order.
///
/// # Errors
/// [`PeError`].
pub(crate) fn add_sections(
    program: &[u8],
    machine: Machine,
    sections: &[Section<'_>],
) -> Result<Vec<u8>, PeError> {
    let mut headers = read(program, machine, sections)?;
    let size: usize = sections
        .iter()
        .map(|section| section.data.len() + 0x1000)
        .sum();
    let file_end = usize::try_from(headers.file_end).map_err(|_| PeError::TooLarge)?;
    let mut image = Vec::with_capacity(file_end + size);
    image.extend_from_slice(
        program
            .get(..file_end)
            .ok_or(layout("a section is cut off"))?,
    );
    let mut initialized: u64 = 0;
    for section in sections {
        let length = section.data.len() as u64;
        let in_file = length.next_multiple_of(headers.file_alignment);
        let address = headers
            .memory_end
            .next_multiple_of(headers.memory_alignment.max(PAGE));
        let mut header = ImageSectionHeader {
            name: [0; 8],
            // systemd-stub(7) takes the content's length from here.
            virtual_size: object::U32::new(LE, number(length)?),
            virtual_address: object::U32::new(LE, number(address)?),
            size_of_raw_data: object::U32::new(LE, number(in_file)?),
            pointer_to_raw_data: object::U32::new(LE, number(headers.file_end)?),
            pointer_to_relocations: object::U32::default(),
            pointer_to_linenumbers: object::U32::default(),
            number_of_relocations: object::U16::default(),
            number_of_linenumbers: object::U16::default(),
            characteristics: object::U32::new(
                LE,
                IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ,
            ),
        };
        let name = section.name.as_bytes();
        header
            .name
            .get_mut(..name.len())
            .ok_or(layout("a section's name is over 8 bytes"))?
            .copy_from_slice(name);
        let bytes = pod::bytes_of(&header);
        image
            .get_mut(headers.free..headers.free + bytes.len())
            .ok_or(layout("its section table is cut off"))?
            .copy_from_slice(bytes);
        headers.free += bytes.len();
        headers.sections += 1;
        headers.file_end += in_file;
        headers.memory_end = address + length;
        initialized += in_file;
        image.extend_from_slice(section.data);
        image.resize(
            usize::try_from(headers.file_end).map_err(|_| PeError::TooLarge)?,
            0,
        );
    }
    write(&mut image, &headers, initialized)?;
    Ok(image)
}

fn read(program: &[u8], machine: Machine, added: &[Section<'_>]) -> Result<Headers, PeError> {
    let nt_offset = u64::from(ImageDosHeader::parse(program)?.nt_headers_offset());
    let mut at = nt_offset;
    let (nt, directories) = ImageNtHeaders64::parse(program, &mut at)?;
    let (file, optional) = (&nt.file_header, &nt.optional_header);
    let found = file.machine.get(LE);
    if found != machine {
        return Err(PeError::Machine {
            found: found.0,
            expected: machine.0,
        });
    }
    let subsystem = optional.subsystem.get(LE);
    if subsystem != IMAGE_SUBSYSTEM_EFI_APPLICATION {
        return Err(PeError::Subsystem { found: subsystem.0 });
    }
    if directories
        .get(IMAGE_DIRECTORY_ENTRY_SECURITY)
        .is_some_and(|table| table.size.get(LE) != 0)
    {
        return Err(PeError::Signed);
    }
    let alignments = [
        u64::from(optional.file_alignment.get(LE)),
        u64::from(optional.section_alignment.get(LE)),
    ];
    if alignments
        .iter()
        .any(|alignment| !alignment.is_power_of_two())
    {
        return Err(layout("its alignments are no powers of two"));
    }
    let table = nt.sections(program, at)?;
    let mut headers = Headers {
        nt: usize::try_from(nt_offset).map_err(|_| PeError::TooLarge)?,
        free: usize::try_from(at).map_err(|_| PeError::TooLarge)?
            + table.len() * size_of::<ImageSectionHeader>(),
        sections: file.number_of_sections.get(LE),
        end: optional.size_of_headers.get(LE) as usize,
        file_end: optional.size_of_headers.get(LE).into(),
        memory_end: optional.size_of_headers.get(LE).into(),
        file_alignment: alignments[0],
        memory_alignment: alignments[1],
    };
    for section in table.iter() {
        let name = section.raw_name();
        if let Some(taken) = added.iter().find(|added| added.name.as_bytes() == name) {
            return Err(PeError::Taken {
                name: taken.name.to_owned(),
            });
        }
        // The long name itself is in the symbol table, which is cut off.
        if name.first() == Some(&b'/') {
            return Err(layout("it has a section with a name over 8 bytes"));
        }
        let raw = u64::from(section.size_of_raw_data.get(LE));
        let size = raw.max(section.virtual_size.get(LE).into());
        headers.memory_end = headers
            .memory_end
            .max(u64::from(section.virtual_address.get(LE)) + size);
        if raw != 0 {
            let begin = u64::from(section.pointer_to_raw_data.get(LE));
            if begin != headers.file_end {
                return Err(layout(
                    "its sections are not one after the other in the file",
                ));
            }
            headers.file_end = begin + raw;
        }
    }
    if !headers.file_end.is_multiple_of(headers.file_alignment) {
        return Err(layout("its last section is not aligned in the file"));
    }
    let wanted = added.len() * size_of::<ImageSectionHeader>();
    let room = program.get(headers.free..headers.end).unwrap_or_default();
    if room.len() < wanted || !is_filling(&room[..wanted], machine) {
        return Err(layout("there is no room in its section table"));
    }
    Ok(headers)
}

/// Whether nothing is in `room` but what assemblers fill up with: zeros, or on Arm the instruction `nop`
/// (Arm's gnu-efi, which systemd's stub is made with, makes the headers part of the code).
fn is_filling(room: &[u8], machine: Machine) -> bool {
    const ARM_NOP: [u8; 4] = 0xd503_201f_u32.to_le_bytes();
    let zeros = room.iter().all(|byte| *byte == 0);
    zeros
        || machine == IMAGE_FILE_MACHINE_ARM64
            && room.chunks(4).all(|word| ARM_NOP.starts_with(word))
}

fn write(image: &mut [u8], headers: &Headers, initialized: u64) -> Result<(), PeError> {
    let bytes = image
        .get_mut(headers.nt..)
        .ok_or(layout("its headers are cut off"))?;
    let (nt, _) = pod::from_bytes_mut::<ImageNtHeaders64>(bytes)
        .map_err(|()| layout("its headers are cut off"))?;
    nt.file_header.number_of_sections.set(LE, headers.sections);
    nt.file_header.pointer_to_symbol_table.set(LE, 0);
    nt.file_header.number_of_symbols.set(LE, 0);
    let optional = &mut nt.optional_header;
    let before = u64::from(optional.size_of_initialized_data.get(LE));
    optional
        .size_of_initialized_data
        .set(LE, number(before + initialized)?);
    let size = headers
        .memory_end
        .next_multiple_of(headers.memory_alignment.max(PAGE));
    optional.size_of_image.set(LE, number(size)?);
    optional.check_sum.set(LE, 0);
    let sum = checksum(image)?;
    let (nt, _) = pod::from_bytes_mut::<ImageNtHeaders64>(&mut image[headers.nt..])
        .map_err(|()| layout("its headers are cut off"))?;
    nt.optional_header.check_sum.set(LE, sum);
    Ok(())
}

/// The image's checksum, its own field being 0: 16-bit words added with their carries, plus the length.
/// EFI firmware does not look at it; signing tools compute it anew.
fn checksum(image: &[u8]) -> Result<u32, PeError> {
    // At most 2³¹ words of 16 bits: no overflow.
    let (pairs, rest) = image.as_chunks::<2>();
    let mut sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_le_bytes(*pair)))
        .sum();
    sum += rest.first().map_or(0, |byte| u64::from(*byte));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    number(sum + image.len() as u64)
}

/// The content of the section `name` of an EFI program.
///
/// # Errors
/// [`PeError::Malformed`].
#[cfg(test)]
pub(crate) fn section<'a>(program: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, PeError> {
    use object::read::pe::PeFile64;
    use object::{Object, ObjectSection};
    let file = PeFile64::parse(program)?;
    for section in file.sections() {
        if section.name()? == name {
            return Ok(Some(section.data()?));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests {
    use object::pe::IMAGE_FILE_MACHINE_AMD64;
    use object::read::pe::PeFile64;
    use object::{Object, ObjectSection};
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const MACHINE: Machine = IMAGE_FILE_MACHINE_AMD64;

    /// A small EFI program with two sections, a hole between them in memory, and something behind them.
    pub(crate) fn fake_program() -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c..0x40].copy_from_slice(&0x80u32.to_le_bytes());
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        let put = |file: &mut Vec<u8>, at: usize, value: u32| {
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        file[0x84..0x86].copy_from_slice(&MACHINE.0.to_le_bytes());
        file[0x86..0x88].copy_from_slice(&2u16.to_le_bytes());
        put(&mut file, 0x8c, 0x800);
        put(&mut file, 0x90, 3);
        file[0x94..0x96].copy_from_slice(&0xf0u16.to_le_bytes());
        file[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
        put(&mut file, 0xb8, 0x200);
        put(&mut file, 0xbc, 0x200);
        put(&mut file, 0xd4, 0x400);
        file[0xdc..0xde].copy_from_slice(&10u16.to_le_bytes());
        put(&mut file, 0x104, 16);
        for (at, name, address, raw) in [
            (0x188, b".text\0\0\0", 0x1000, 0x400),
            (0x1b0, b".data\0\0\0", 0x5000, 0x600),
        ] {
            file[at..at + 8].copy_from_slice(name);
            put(&mut file, at + 8, 0x123);
            put(&mut file, at + 12, address);
            put(&mut file, at + 16, 0x200);
            put(&mut file, at + 20, raw);
        }
        file.resize(0x800, 0xcc);
        file.extend_from_slice(b"symbols and strings");
        file
    }

    fn added(sections: &[Section<'_>]) -> Result<Vec<u8>, PeError> {
        add_sections(&fake_program(), MACHINE, sections)
    }

    proptest! {
        #[test]
        fn sections_are_read_back_and_nothing_overlaps(
            first in prop::collection::vec(any::<u8>(), 0..5000),
            second in prop::collection::vec(any::<u8>(), 1..5000),
        ) {
            let sections = [
                Section { name: ".cmdline", data: &first },
                Section { name: ".linux", data: &second },
            ];
            let image = added(&sections).unwrap();
            prop_assert_eq!(section(&image, ".linux").unwrap(), Some(second.as_slice()));
            prop_assert_eq!(section(&image, ".cmdline").unwrap(), Some(first.as_slice()));
            prop_assert_eq!(section(&image, ".text").unwrap(), Some(&[0xcc; 0x123][..]));

            let file = PeFile64::parse(image.as_slice()).unwrap();
            let mut memory_end = 0x400;
            let mut file_end = 0x400;
            for section in file.sections() {
                prop_assert!(section.address() >= memory_end);
                memory_end = section.address() + section.size();
                if let Some((begin, _)) = section.file_range().filter(|(_, size)| *size > 0) {
                    prop_assert!(begin == file_end);
                    file_end = begin + section.size().next_multiple_of(0x200);
                }
            }
            let optional = &file.nt_headers().optional_header;
            prop_assert!(u64::from(optional.size_of_image.get(LE)) >= memory_end);
            prop_assert_eq!(file_end, image.len() as u64);
            prop_assert_eq!(file.nt_headers().file_header.pointer_to_symbol_table.get(LE), 0);
        }
    }

    #[test]
    fn damaged_programs_are_errors_and_never_panics() {
        let program = fake_program();
        let sections = [Section {
            name: ".linux",
            data: b"x",
        }];
        for cut in 0..program.len() {
            let _ = add_sections(&program[..cut], MACHINE, &sections);
        }
        for at in 0..program.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = program.clone();
                damaged[at] = value;
                let _ = add_sections(&damaged, MACHINE, &sections);
            }
        }
    }

    #[test]
    fn what_cannot_be_extended_is_refused_with_the_reason() {
        let sections = [Section {
            name: ".linux",
            data: b"x",
        }];
        let with = |at: usize, bytes: &[u8]| {
            let mut program = fake_program();
            program[at..at + bytes.len()].copy_from_slice(bytes);
            add_sections(&program, MACHINE, &sections)
        };
        assert!(matches!(
            with(0xdc, &[11]),
            Err(PeError::Subsystem { found: 11 })
        ));
        // Place and size of the certificate table: the fifth directory.
        assert!(matches!(
            with(0x128, &[8, 0, 0, 0, 8]),
            Err(PeError::Signed)
        ));
        assert!(matches!(
            with(0x188, b".linux\0"),
            Err(PeError::Taken { .. })
        ));
        assert!(matches!(with(0x1d8, b"x"), Err(PeError::Layout { .. })));
        assert!(matches!(with(0x188, b"/4\0"), Err(PeError::Layout { .. })));
        assert!(matches!(with(0x1c4, &[0, 8]), Err(PeError::Layout { .. })));
        let other = add_sections(&fake_program(), IMAGE_FILE_MACHINE_ARM64, &sections);
        assert!(matches!(other, Err(PeError::Machine { found: 0x8664, .. })));
        let long = [Section {
            name: ".linux-is-long",
            data: b"",
        }];
        assert!(matches!(added(&long), Err(PeError::Layout { .. })));
    }

    #[test]
    fn headers_filled_with_the_nop_of_arm_have_room() {
        let mut program = fake_program();
        program[0x84..0x86].copy_from_slice(&IMAGE_FILE_MACHINE_ARM64.0.to_le_bytes());
        for word in program[0x1d8..0x400].chunks_mut(4) {
            word.copy_from_slice(&[0x1f, 0x20, 0x03, 0xd5]);
        }
        let sections = [Section {
            name: ".linux",
            data: b"kernel",
        }];
        let image = add_sections(&program, IMAGE_FILE_MACHINE_ARM64, &sections).unwrap();
        assert_eq!(section(&image, ".linux").unwrap(), Some(&b"kernel"[..]));
        program[0x84..0x86].copy_from_slice(&MACHINE.0.to_le_bytes());
        let refused = add_sections(&program, MACHINE, &sections);
        assert!(matches!(refused, Err(PeError::Layout { .. })));
    }

    #[test]
    fn the_checksum_is_the_one_that_the_format_defines() {
        // 0xffff + 0x0002 carries once; then the length is added.
        assert_eq!(
            checksum(&[0xff, 0xff, 0x02, 0x00, 0x05]).unwrap(),
            0x0007 + 5
        );
    }
}
