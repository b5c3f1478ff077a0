//! An independent DHCP client: busybox's `udhcpc`, run on one interface of a namespace.
//!
//! What it does it tells to a script, which sets the interface's address and writes a line for the lab.
//! Invariant: it never outlives its [`Udhcpc`].

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use thiserror::Error;

use super::deadline::Deadline;
use super::namespace::{CLIENT_INTERFACE, Place};
use super::tool;

const TICK: Duration = Duration::from_millis(50);

/// The client calls this with an event's name and the lease in its environment.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
bound|renew) ip addr replace "$ip/$mask" dev "$interface" ;;
deconfig) ip addr flush dev "$interface" ;;
esac
echo "$1 $ip $serverid $lease" >> "$(dirname "$0")/events"
"#;

/// The client did not do what was waited for.
#[derive(Debug, Error)]
pub(crate) enum UdhcpcError {
    /// A file or the process failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// An event did not come.
    #[error("udhcpc did not report {wanted:?} within {allowed}; it said: {said}")]
    TimedOut {
        /// What was waited for.
        wanted: String,
        /// How long.
        allowed: String,
        /// Its log.
        said: String,
    },
}

/// What the client told its script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// `bound`, `renew` and so on.
    pub(crate) name: String,
    /// The address.
    pub(crate) address: Ipv4Addr,
    /// The server identifier, option 54.
    pub(crate) server: Ipv4Addr,
    /// How long the lease lasts, seconds.
    pub(crate) lease_seconds: u32,
}

/// A running client. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Udhcpc {
    process: Child,
    folder: PathBuf,
    /// Events that a wait has seen.
    seen: usize,
}

impl Udhcpc {
    /// Whether busybox is there and has the client.
    pub(crate) fn is_installed() -> bool {
        let applets = tool::run(Command::new("busybox").arg("--list"));
        applets.is_ok_and(|list| list.lines().any(|name| name == "udhcpc"))
    }

    /// Starts the client; its script and log are made in `folder`. One that asks for broadcast sets that
    /// flag in its requests.
    pub(crate) fn start(
        place: &Place,
        folder: &Path,
        asks_for_broadcast: bool,
    ) -> Result<Self, UdhcpcError> {
        let start = || -> io::Result<Child> {
            fs::create_dir_all(folder)?;
            let script = folder.join("script");
            fs::write(&script, SCRIPT)?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
            let log = File::create(folder.join("log"))?;
            place
                .command("busybox")
                // In the foreground, release when told to end, three tries two seconds apart.
                .args(["udhcpc", "-f", "-R", "-t", "3", "-T", "2", "-A", "2"])
                .args(asks_for_broadcast.then_some("-B"))
                .args(["-i", CLIENT_INTERFACE, "-s"])
                .arg(&script)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
        };
        let process = start().map_err(|source| UdhcpcError::Io {
            what: format!("start udhcpc with its files in {}", folder.display()),
            source,
        })?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            seen: 0,
        })
    }

    /// Waits until the client reports an event of this name.
    pub(crate) fn wait_for(
        &mut self,
        wanted: &str,
        deadline: Deadline,
    ) -> Result<Event, UdhcpcError> {
        loop {
            let text = fs::read_to_string(self.folder.join("events")).unwrap_or_default();
            // A line without its end is still being written.
            let whole = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            for (index, line) in whole.enumerate().skip(self.seen) {
                self.seen = index + 1;
                if let Some(event) = event(line).filter(|event| event.name == wanted) {
                    return Ok(event);
                }
            }
            self.check(wanted, &deadline)?;
        }
    }

    /// Asks the client to renew its lease now (SIGUSR1, as its manual says).
    pub(crate) fn ask_to_renew(&self) -> Result<(), UdhcpcError> {
        self.signal(Signal::SIGUSR1)
    }

    /// Asks the client to give its address back and to end, and waits for that.
    pub(crate) fn release(mut self, deadline: Deadline) -> Result<(), UdhcpcError> {
        self.signal(Signal::SIGTERM)?;
        while !matches!(self.process.try_wait(), Ok(Some(_))) {
            self.check("its end", &deadline)?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), UdhcpcError> {
        // A process id of ours fits the type that the system has for it.
        let pid = Pid::from_raw(self.process.id() as i32);
        kill(pid, signal).map_err(|error| UdhcpcError::Io {
            what: format!("send {signal} to udhcpc"),
            source: error.into(),
        })
    }

    fn check(&self, wanted: &str, deadline: &Deadline) -> Result<(), UdhcpcError> {
        if deadline.remaining().is_none() {
            let said = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            return Err(UdhcpcError::TimedOut {
                wanted: wanted.to_owned(),
                allowed: deadline.to_string(),
                said: said.trim().to_owned(),
            });
        }
        std::thread::sleep(TICK);
        Ok(())
    }
}

impl Drop for Udhcpc {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An event with a lease; others have no address and are nothing to wait for.
fn event(line: &str) -> Option<Event> {
    let mut words = line.split_whitespace();
    Some(Event {
        name: words.next()?.to_owned(),
        address: words.next()?.parse().ok()?,
        server: words.next()?.parse().ok()?,
        lease_seconds: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_lease_and_others_are_passed_over() {
        let bound = event("bound 10.78.0.100 10.78.0.1 3600\n").unwrap();
        assert_eq!(bound.name, "bound");
        assert_eq!(bound.address, Ipv4Addr::new(10, 78, 0, 100));
        assert_eq!(bound.lease_seconds, 3600);
        assert_eq!(event("deconfig   \n"), None);
    }
}
