//! A machine's serial console: everything it says, waits for words in it, and lines typed into it.
//!
//! The lab listens, QEMU connects: a console exists before its machine does and loses nothing. The log
//! has the seconds since the machine's start before each line.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use thiserror::Error;

use super::deadline::Deadline;
use super::terminal_text::TerminalText;

/// Lines that an error shows of what came last.
const SHOWN_LINES: usize = 12;

/// A wait for words on a console failed.
#[derive(Debug, Error)]
pub(crate) enum ConsoleError {
    /// The words did not come in time.
    #[error(
        "the console of {machine} did not show {wanted:?} within {allowed}; its last lines:\n{tail}"
    )]
    TimedOut {
        /// Name of the machine.
        machine: String,
        /// What was waited for.
        wanted: Vec<String>,
        /// How long, as text.
        allowed: String,
        /// The last lines of the console.
        tail: String,
    },
    /// The machine went off first.
    #[error("{machine} went off before its console showed {wanted:?}; its last lines:\n{tail}")]
    WentOff {
        /// Name of the machine.
        machine: String,
        /// What was waited for.
        wanted: Vec<String>,
        /// The last lines of the console.
        tail: String,
    },
    /// Something could not be typed.
    #[error("cannot write to the console of {machine}")]
    Write {
        /// Name of the machine.
        machine: String,
        /// Why not.
        source: io::Error,
    },
}

/// A line in which a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// Which of the wanted texts it was.
    pub(crate) which: usize,
    /// The text from the beginning of its line to its end.
    pub(crate) line: String,
}

#[derive(Debug, Default)]
struct Screen {
    text: String,
    /// Everything before has been seen by a wait.
    seen: usize,
    connected: Option<UnixStream>,
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    screen: Mutex<Screen>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Screen> {
        // A reader thread that panicked leaves text that is still worth reading.
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A console with its log.
#[derive(Debug)]
pub(crate) struct Console {
    machine: String,
    shared: Arc<Shared>,
}

impl Console {
    /// Listens on `socket` for one machine and logs to `log`, which is begun anew.
    pub(crate) fn listen(machine: &str, socket: &Path, log: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let file = File::create(log)?;
        let shared = Arc::new(Shared::default());
        let reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                if let Err(error) = read_console(&listener, file, &reader) {
                    log::warn!("console: {error}");
                }
                reader.lock().over = true;
                reader.changed.notify_all();
            })?;
        Ok(Self {
            machine: machine.to_owned(),
            shared,
        })
    }

    /// Waits until one of `wanted` appears after everything that earlier waits have seen.
    pub(crate) fn wait_for_any(
        &self,
        wanted: &[&str],
        deadline: Deadline,
    ) -> Result<Sighting, ConsoleError> {
        let names = || wanted.iter().map(|&text| text.to_owned()).collect();
        let mut screen = self.shared.lock();
        loop {
            if let Some((sighting, end)) = find_first(&screen.text, screen.seen, wanted) {
                screen.seen = end;
                return Ok(sighting);
            }
            let tail = || tail(&screen.text);
            if screen.over {
                let (machine, wanted, tail) = (self.machine.clone(), names(), tail());
                return Err(ConsoleError::WentOff {
                    machine,
                    wanted,
                    tail,
                });
            }
            let Some(left) = deadline.remaining() else {
                return Err(ConsoleError::TimedOut {
                    machine: self.machine.clone(),
                    wanted: names(),
                    allowed: deadline.to_string(),
                    tail: tail(),
                });
            };
            let waited = self.shared.changed.wait_timeout(screen, left);
            screen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until `wanted` appears, and returns its line up to there.
    pub(crate) fn wait_for(
        &self,
        wanted: &str,
        deadline: Deadline,
    ) -> Result<String, ConsoleError> {
        Ok(self.wait_for_any(&[wanted], deadline)?.line)
    }

    /// Types a line.
    pub(crate) fn send_line(&self, line: &str) -> Result<(), ConsoleError> {
        let error = |source| ConsoleError::Write {
            machine: self.machine.clone(),
            source,
        };
        let mut screen = self.shared.lock();
        let stream = screen
            .connected
            .as_mut()
            .ok_or_else(|| error(io::ErrorKind::NotConnected.into()))?;
        stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(error)
    }

    /// Where the first `text` after `from` ends. Waits are not affected.
    pub(crate) fn find_after(&self, from: usize, text: &str) -> Option<usize> {
        find_first(&self.shared.lock().text, from, &[text]).map(|(_, end)| end)
    }

    /// The whole line around a place that [`Console::find_after`] gave, as far as it has come.
    pub(crate) fn line_at(&self, place: usize) -> String {
        let screen = self.shared.lock();
        let start = screen.text[..place]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let end = screen.text[place..]
            .find('\n')
            .map_or(screen.text.len(), |newline| place + newline);
        screen.text[start..end].to_owned()
    }

    /// Whether a text has been on the console at any time.
    pub(crate) fn has_shown(&self, text: &str) -> bool {
        self.shared.lock().text.contains(text)
    }
}

/// The earliest of `wanted` after `from`, and where it ends.
fn find_first(text: &str, from: usize, wanted: &[&str]) -> Option<(Sighting, usize)> {
    let rest = &text[from..];
    let found = wanted
        .iter()
        .enumerate()
        .filter_map(|(which, &words)| Some((rest.find(words)?, which)));
    let (position, which) = found.min()?;
    let start = from + position;
    let end = start + wanted[which].len();
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    Some((
        Sighting {
            which,
            line: text[line_start..end].to_owned(),
        },
        end,
    ))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn read_console(listener: &UnixListener, mut log: File, shared: &Shared) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let started = Instant::now();
    shared.lock().connected = Some(stream.try_clone()?);
    let mut filter = TerminalText::default();
    let mut at_line_start = true;
    let mut buffer = [0; 4096];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A killed machine: its console ends here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        let text = filter.push(&buffer[..length]);
        let mut stamped = String::new();
        for piece in text.split_inclusive('\n') {
            if at_line_start {
                stamped.push_str(&format!("[{:7.2}] ", started.elapsed().as_secs_f64()));
            }
            stamped.push_str(piece);
            at_line_start = piece.ends_with('\n');
        }
        log.write_all(stamped.as_bytes())?;
        shared.lock().text.push_str(&text);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_wanted_text_wins_with_its_line() {
        let text = "boot\nDebian login: ";
        let (sighting, end) = find_first(text, 0, &["panic", "login:"]).unwrap();
        assert_eq!(
            sighting,
            Sighting {
                which: 1,
                line: "Debian login:".to_owned()
            }
        );
        assert_eq!(find_first(text, end, &["login:"]), None);
    }

    #[test]
    fn a_wait_sees_what_the_machine_writes_and_the_machine_what_is_typed() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, log) = (folder.path().join("s"), folder.path().join("log"));
        let console = Console::listen("test", &socket, &log).unwrap();
        let mut machine = UnixStream::connect(&socket).unwrap();
        machine.write_all(b"hello\r\nlogin: ").unwrap();
        assert_eq!(
            console.wait_for("login:", Deadline::seconds(20)).unwrap(),
            "login:"
        );
        console.send_line("root").unwrap();
        let mut typed = [0; 5];
        machine.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root\n");
        drop(machine);
        let gone = console.wait_for("more", Deadline::seconds(20));
        assert!(
            matches!(gone, Err(ConsoleError::WentOff { .. })),
            "{gone:?}"
        );
        assert!(std::fs::read_to_string(log).unwrap().contains("] hello\n"));
    }
}
