//! Kill anywhere: restores that are cut at random points, with what was not flushed dropped or kept sector by
//! sector, over and over, onto disks of strangers and disks of an earlier time; a server that goes away; a disk that
//! does. The disk must not start before it is whole, and the same restore must end right.
//!
//! The short form is part of every test run; the 200 points: `cargo test -p agent -- --ignored kill_tests`.

use super::crash_tests::{
    Medium, captured, old_disk, restore_to, server, server_of_whole_disk, try_restore, whole,
};
use super::tests::noise;
use crate::job::fake::FakeServer;

/// Numbers that a seed gives.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// A disk as it was at another time: most of the data, with changes, and it starts.
fn earlier_disk(whole: &Medium, dice: &mut Dice) -> Medium {
    let mut bytes = whole.durable.clone();
    for _ in 0..40 {
        let at = dice.below(bytes.len() as u64 - 70_000) as usize;
        let len = 1 + dice.below(70_000) as usize;
        bytes[at..at + len].copy_from_slice(&noise(dice.below(1 << 30), len));
    }
    // Its own table is as good as the new one; here it is one that does not start, so that a start is ours.
    bytes[510..512].copy_from_slice(&[0, 0]);
    Medium::new(bytes)
}

fn kill_at_random_points(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut dice = Dice(seed);
        let server: &FakeServer = if seed % 3 == 0 {
            server_of_whole_disk()
        } else {
            server()
        };
        let whole = whole(server);
        let mut medium = if seed % 2 == 0 {
            old_disk()
        } else {
            earlier_disk(whole, &mut dice)
        };
        let cuts = 1 + dice.below(3);
        for cut in 0..cuts {
            let point = dice.below(whole.operations);
            let (after, _, _) = restore_to(server, medium, point);
            medium = after.after_cut(dice.below(1 << 40));
            assert!(
                !medium.starts() || holds(server, &medium),
                "seed {seed}, cut {cut} at {point}: the disk starts and is not whole"
            );
        }
        let (medium, _, ended) = restore_to(server, medium, u64::MAX);
        assert!(ended && medium.starts(), "seed {seed}: it does not end");
        assert!(holds(server, &medium), "seed {seed}: the disk is not whole");
        if seed % 2 == 0 {
            assert!(medium.durable == whole.durable, "seed {seed}: other bytes");
        }
        assert!(
            medium.live == medium.durable,
            "seed {seed}: not all is flushed"
        );
    }
}

/// Whether a disk has every byte that was saved: what was not saved may be anything.
fn holds(server: &FakeServer, medium: &Medium) -> bool {
    let (again, _, result) = try_restore(server, medium.clone());
    result.is_ok() && again.durable == medium.durable
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
