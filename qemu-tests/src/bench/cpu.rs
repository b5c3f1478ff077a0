//! Processor time of a process, its threads and its children.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// What a process and the children it has waited for have used so far, in user and in kernel mode.
///
/// # Errors
/// When the process is gone.
pub(crate) fn used(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    ticks(&stat)
        .map(|ticks| Duration::from_secs_f64(ticks as f64 / per_second as f64))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood: {stat}")))
}

/// Fields 14 to 17 of proc_pid_stat(5): utime, stime, cutime, cstime.
fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may contain anything; the last parenthesis ends it, field 3 follows.
    let (_, after) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_times_are_summed_whatever_the_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1";
        assert_eq!(ticks(stat), Some(127));
        assert_eq!(ticks("7 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_a_time() {
        used(std::process::id()).unwrap();
    }
}
