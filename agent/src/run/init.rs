//! PID 1: mounts, starts the environment, reaps, and stays.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::mount::{EFIVARFS, MOUNTS};
use crate::sys::reboot::{Ending, catch_ctrl_alt_del, end};

/// The wait before the environment is started again after it ended by itself.
const AGAIN: Duration = Duration::from_secs(2);
/// The argument by which the environment hears how the last one ended.
pub(crate) const AFTER: &str = "--after";

/// Runs PID 1. Never returns, whatever happens: the kernel panics when PID 1 ends.
pub(crate) fn init() -> ! {
    let _ = catch_unwind(|| {
        prepare();
        supervise()
    });
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn prepare() {
    let mut failures = Vec::new();
    for mount in MOUNTS {
        if let Err(error) = mount.mount() {
            failures.push(format!("{} cannot be mounted: {error}", mount.on()));
        }
    }
    if std::path::Path::new("/sys/firmware/efi").is_dir() {
        // Debian's kernel has it as a module, which pstore or nothing has loaded yet.
        if let Err(error) = crate::drivers::load("efivarfs") {
            failures.push(format!("efivarfs: {}", crate::log::chain(&error)));
        }
        if let Err(error) = EFIVARFS.mount() {
            failures.push(format!("{} cannot be mounted: {error}", EFIVARFS.on()));
        }
    }
    open_standard_streams();
    // Level 1: only emergencies. Everything is in dmesg; the screen belongs to the person.
    write_setting("/proc/sys/kernel/printk", "1");
    // Our lines are the story of the boot: the kernel would drop most of them as too many.
    write_setting("/proc/sys/kernel/printk_devkmsg", "on");
    // The kernel asks this program for modules, as it would ask modprobe(8).
    write_setting("/proc/sys/kernel/modprobe", "/init");
    if let Err(error) = catch_ctrl_alt_del() {
        failures.push(format!(
            "Ctrl-Alt-Del will restart the machine at once: {error}"
        ));
    }
    crate::log::start(true);
    log::info!("version {}", env!("CARGO_PKG_VERSION"));
    for failure in failures {
        log::error!("{failure}");
    }
}

/// Standard streams of PID 1 and of the tools below it. The kernel opens them only when the archive
/// has `/dev/console`.
fn open_standard_streams() {
    if let Ok(console) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")
    {
        let _ = nix::unistd::dup2_stdin(&console);
        let _ = nix::unistd::dup2_stdout(&console);
        let _ = nix::unistd::dup2_stderr(&console);
    }
}

fn write_setting(path: &str, text: &str) {
    // Not worth a word: the environment works without.
    let _ = std::fs::write(path, text);
}

/// Signals that PID 1 waits for. They are blocked, so that none is lost between two waits.
fn signals() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    // Ctrl-Alt-Del.
    set.add(Signal::SIGINT);
    set
}

fn supervise() -> ! {
    let signals = signals();
    if let Err(error) = signals.thread_block() {
        log::error!("signals cannot be blocked: {error}");
    }
    let mut child = start(None);
    loop {
        match signals.wait() {
            Ok(Signal::SIGINT) => {
                log::info!("restarting (Ctrl-Alt-Del)");
                crate::log::flush();
                let Err(error) = end(Ending::Restart);
                log::error!("the machine cannot be restarted: {error}");
            }
            Ok(_) => {}
            Err(error) => {
                log::error!("signals cannot be waited for: {error}");
                std::thread::sleep(AGAIN);
            }
        }
        while let Some((pid, status)) = reap() {
            if Some(pid) != child {
                continue;
            }
            let how = describe(status);
            log::error!("the agent ended by itself ({how}); starting it again");
            std::thread::sleep(AGAIN);
            child = start(Some(&how));
        }
        if child.is_none() {
            std::thread::sleep(AGAIN);
            child = start(None);
        }
    }
}

/// Takes one ended child, also those of others that ended before theirs.
fn reap() -> Option<(Pid, ExitStatus)> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) => Some((pid, ExitStatus::from_raw((code & 0xff) << 8))),
        Ok(WaitStatus::Signaled(pid, signal, _)) => {
            Some((pid, ExitStatus::from_raw(signal as i32)))
        }
        _ => None,
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGKILL) => "killed, most likely because memory ran out".to_owned(),
        _ => status.to_string(),
    }
}

fn start(after: Option<&str>) -> Option<Pid> {
    // Without /proc there is still the file that the kernel started.
    let own = std::path::Path::new("/proc/self/exe");
    let mut command = Command::new(if own.exists() {
        own
    } else {
        std::path::Path::new("/init")
    });
    command.arg("environment");
    if let Some(after) = after {
        command.args([AFTER, after]);
    }
    match command.spawn() {
        Ok(child) => i32::try_from(child.id()).ok().map(Pid::from_raw),
        Err(error) => {
            log::error!("the agent cannot be started: {error}; trying again");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_agent_is_said_in_words() {
        assert!(describe(ExitStatus::from_raw(9)).contains("memory"));
        assert_eq!(describe(ExitStatus::from_raw(101 << 8)), "exit status: 101");
    }
}
