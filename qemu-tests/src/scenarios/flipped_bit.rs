//! One bit of the store is wrong: the restore says so, and the disk stays unbootable rather than wrong.

use anyhow::{Context, ensure};
use protocol::job::JobState;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::compare;
use super::machine::Machine;
use super::restore::backup;
use super::site::{Site, copy_folder};
use super::stage::Stage;
use crate::lab::firmware::FirmwareKind;

const KIND: FirmwareKind = FirmwareKind::Bios;

pub(super) fn play(stage: &Stage<'_>) -> anyhow::Result<()> {
    let backup = backup(stage, KIND)?;
    let data_dir = stage.disks().join("damaged");
    copy_folder(&backup.data_dir, &data_dir)?;
    let pack = largest_file(&data_dir.join("store"))?.context("the store has no file")?;
    flip_a_bit_in_the_middle(&pack)?;
    stage.say(&format!("one bit of {} is flipped", pack.display()));

    let mut site = Site::open_with_data(stage, &data_dir)?;
    let port = site.add_port()?;
    let bare = Machine::bare(stage, KIND)?;
    let mut guest = bare.switch_on(stage, Some(&port), "restore")?;
    let job = site.order_restore(&bare, &mut guest, &backup.restore_point)?;
    let job = site.wait_until_over(&job.id, &mut guest)?;
    ensure!(
        job.state == JobState::Failed,
        "the restore {}",
        job.state.word()
    );
    let error = job.error.unwrap_or_default();
    stage.say(&format!("the restore was refused: {error}"));
    ensure!(
        job.error_code.as_deref() == Some("damaged-chunk"),
        "the reason is {:?}, not `damaged-chunk`",
        job.error_code
    );
    ensure!(names_a_chunk(&error), "the reason names no chunk: {error}");
    ensure!(
        guest.is_on(),
        "the machine went off; it should wait and say what is wrong"
    );
    guest.cut_power();
    compare::check_unbootable(&bare.disk)
}

/// Whether a sentence has a digest in it, or the beginning of one: eight hexadecimal digits or more.
fn names_a_chunk(sentence: &str) -> bool {
    sentence
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn flip_a_bit_in_the_middle(path: &Path) -> anyhow::Result<()> {
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 0x10], middle)?;
    Ok(())
}

fn largest_file(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    let mut largest: Option<(u64, PathBuf)> = None;
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if largest
                .as_ref()
                .is_none_or(|(size, _)| metadata.len() > *size)
            {
                largest = Some((metadata.len(), entry.path()));
            }
        }
    }
    Ok(largest.map(|(_, path)| path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_in_a_sentence() {
        assert!(names_a_chunk("chunk 3f2a9c01b7 of disk 0 is damaged"));
        assert!(!names_a_chunk("a chunk is damaged at 12345"));
    }

    #[test]
    fn one_bit_changes_and_the_largest_file_is_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("packs")).unwrap();
        fs::write(folder.path().join("small"), [0; 10]).unwrap();
        let pack = folder.path().join("packs/large");
        fs::write(&pack, [0; 101]).unwrap();
        assert_eq!(largest_file(folder.path()).unwrap(), Some(pack.clone()));
        flip_a_bit_in_the_middle(&pack).unwrap();
        let ones: u32 = fs::read(&pack)
            .unwrap()
            .iter()
            .map(|byte| byte.count_ones())
            .sum();
        assert_eq!(ones, 1);
    }
}
