//! Kill anywhere: restores that are cut at random points, over and over, onto disks of strangers, which start, and
//! onto disks of an earlier time; a server that goes away; a disk that does.
//!
//! A cut is the agent's death (all that it wrote is on the disk) or a power cut: of what was written since the last
//! flush each sector of 512 bytes is there, or what was there before it, each by itself; so that writes are
//! dropped, torn and out of order. The 200 points are so many disks, each cut at one to three random operations.
//!
//! **A disk boots by itself** when its first sector ends with `55 aa`, or begins with a jump (`eb`, `e9`). BIOS
//! starts no disk without the signature. UEFI takes a GPT only behind a protective MBR, whose sector ends with it
//! (UEFI 2.10, 5.2.3 and 5.3.1), and so do Linux and Windows; without a table it looks for a FAT from the first sector on,
//! which begins with a jump. Not looked at: ISO 9660 boot records, which UEFI finds at byte 34,816 on a hybrid
//! image; they come back before the commit, after all else of the disk but its first sector and the marker's.
//!
//! **Whole** is a disk when every byte is there that a restore determines: those that are equal after two restores
//! nobody disturbs, to a disk and to its complement. What the backup does not have is not looked at.
//!
//! At each cut: a disk that boots is whole, or is the old one to the letter. Then the same restore, left alone, ends
//! with a disk that boots, is whole, and has nothing unflushed.
//!
//! The short form is part of every test run; the 200 points: `cargo test --release -p agent -- --ignored kill_tests`.

use super::crash_tests::{
    Medium, captured, old_disk, restore_to, server, server_of_whole_disk, try_restore, whole,
};
use super::tests::noise;
use crate::job::fake::FakeServer;

/// Numbers that a seed gives.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    /// What is found after a cut: all that was written, nothing since the last flush, or some of it.
    pub(super) fn after_cut(&mut self, medium: &Medium) -> Medium {
        let how = match self.below(5) {
            0 => 0,
            1 | 2 => 1,
            _ => 2 + self.below(1 << 30),
        };
        medium.after_cut(how)
    }
}

/// What restores make of a disk and of its complement.
pub(super) struct Twins([Vec<u8>; 2]);

impl Twins {
    pub(super) fn new(old: &[u8], restore: impl Fn(Medium) -> Medium) -> Self {
        let complement = old.iter().map(|byte| !byte).collect();
        let restored = [old.to_vec(), complement].map(|old| {
            let medium = restore(Medium::new(old));
            assert!(medium.live == medium.durable, "not all is flushed");
            medium.durable
        });
        Self(restored)
    }

    /// Whether the disk has every byte that a restore determines.
    pub(super) fn are(&self, disk: &[u8]) -> bool {
        let [one, other] = &self.0;
        // Most blocks are equal as a whole.
        let blocks = one.chunks(4096).zip(other.chunks(4096));
        let mut blocks = blocks.zip(disk.chunks(4096));
        disk.len() == one.len()
            && blocks.all(|((one, other), found)| {
                let mut bytes = one.iter().zip(other).zip(found);
                one == found || bytes.all(|((one, other), found)| one != other || one == found)
            })
    }

    /// How many bytes that is.
    pub(super) fn determined(&self) -> usize {
        let [one, other] = &self.0;
        one.iter()
            .zip(other)
            .filter(|(one, other)| one == other)
            .count()
    }
}

/// A disk as it was at another time, or somebody's else: it starts.
fn startable_disk(whole: Option<&Medium>, dice: &mut Dice) -> Medium {
    let Some(whole) = whole else {
        let mut bytes = old_disk().durable;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        return Medium::new(bytes);
    };
    let mut bytes = whole.durable.clone();
    for _ in 0..40 {
        let at = 512 + dice.below(bytes.len() as u64 - 70_512) as usize;
        let len = 1 + dice.below(70_000) as usize;
        bytes[at..at + len].copy_from_slice(&noise(dice.below(1 << 30), len));
    }
    Medium::new(bytes)
}

fn kill_at_random_points(seeds: std::ops::Range<u64>) {
    let sample = |server: &'static FakeServer| {
        let old = old_disk().durable;
        let twins = Twins::new(&old, |medium| restore_to(server, medium, u64::MAX).0);
        assert!(twins.determined() > old.len() / 2);
        (server, twins)
    };
    let samples = [sample(server()), sample(server_of_whole_disk())];
    let (mut killed, mut untouched, mut begun) = (0, 0, 0);
    for seed in seeds {
        let mut dice = Dice(seed);
        let (server, twins) = &samples[usize::from(seed % 3 == 0)];
        let earlier = (seed % 2 == 1).then(|| whole(server));
        let mut medium = startable_disk(earlier, &mut dice);
        let cuts = 1 + dice.below(3);
        for cut in 0..cuts {
            let before = medium.durable.clone();
            // As many operations as this disk takes; where they are cut is never behind the last.
            let (uncut, _, ended) = restore_to(server, medium.clone(), u64::MAX);
            assert!(ended, "seed {seed}: it does not end");
            let point = dice.below(uncut.operations);
            let (after, _, ended) = restore_to(server, medium, point);
            killed += u32::from(!ended);
            medium = dice.after_cut(&after);
            let is_old = medium.durable == before;
            untouched += u32::from(is_old);
            assert!(
                !medium.starts() || is_old || twins.are(&medium.durable),
                "seed {seed}, cut {cut} at {point}: the disk starts and is not whole"
            );
            begun += u32::from(!medium.starts());
        }
        let (medium, _, ended) = restore_to(server, medium, u64::MAX);
        assert!(ended && medium.starts(), "seed {seed}: it does not end");
        assert!(
            twins.are(&medium.durable),
            "seed {seed}: the disk is not whole"
        );
        assert!(
            medium.live == medium.durable,
            "seed {seed}: not all is flushed"
        );
    }
    eprintln!("killed {killed} times: {begun} disks did not start, {untouched} were as before");
    assert!(begun * 2 > killed, "hardly any cut was in the middle");
}

#[test]
fn killed_at_a_few_random_points_it_ends_right() {
    kill_at_random_points(0..12);
}

#[test]
#[ignore = "200 points take minutes; `scripts/test --full` runs them"]
fn killed_at_200_random_points_it_ends_right() {
    kill_at_random_points(0..200);
}

#[test]
fn a_server_that_goes_away_fails_the_job_and_the_restore_goes_on_later() {
    let server = captured();
    let (whole, _, _) = restore_to(&server, old_disk(), u64::MAX);
    let mut medium = old_disk();
    for answers in [0, 1, 2] {
        server.answers_left(Some(answers));
        let (after, _, result) = try_restore(&server, medium);
        let error = result.unwrap_err();
        assert_eq!(error.code, "network", "{}", error.reason);
        assert!(
            error.reason.contains("goes on where it stopped"),
            "{}",
            error.reason
        );
        assert!(!after.starts());
        medium = after;
    }
    server.answers_left(None);
    let (medium, _, ended) = restore_to(&server, medium, u64::MAX);
    assert!(ended && medium.durable == whole.durable);
}

#[test]
fn a_disk_that_vanishes_ends_the_job_with_its_name_and_place() {
    let whole = whole(server());
    for share in 1..8 {
        let mut medium = old_disk();
        medium.cut_at = whole.operations * share / 8;
        let (medium, _, result) = try_restore(server(), medium);
        let error = result.unwrap_err();
        assert_eq!(error.code, "disk-error", "{}", error.reason);
        assert!(
            error.reason.contains("crash disk failed at LBA "),
            "{}",
            error.reason
        );
        assert!(!medium.starts(), "{}", error.reason);
    }
}
