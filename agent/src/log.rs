//! Log lines: to every console, and to the kernel's log.
//!
//! Invariant: a slow or stuck console delays nobody: each has a thread and a bounded queue, and lines
//! that do not fit are counted, not waited for. What is *not* here: what the screen shows besides lines
//! ([`crate::screen`]).
//!
//! Lines of level `info` and above go to people; `debug` goes only to the kernel's log (`dmesg`).

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::screen;

/// What every line begins with: what reads a serial line finds ours by it.
const PREFIX: &str = "netboot agent: ";
/// Lines that a console may be behind.
const QUEUE: usize = 512;
/// How long the last lines are waited for before the machine ends.
const FLUSH: Duration = Duration::from_secs(2);

/// What a console is told.
enum Output {
    Line(String),
    /// What is going on, in place of what was.
    Status(String),
    /// The lines that stay at the top of a screen.
    Header(Vec<String>),
    Flush(SyncSender<()>),
}

/// What a console can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Draws in place.
    Screen,
    /// Shows line after line.
    Lines,
    /// Shows line after line, and below them what is going on.
    Terminal,
}

struct Console {
    kind: Kind,
    sender: SyncSender<Output>,
}

struct Consoles {
    consoles: Vec<Console>,
    kernel: Option<Mutex<File>>,
}

static CONSOLES: OnceLock<Consoles> = OnceLock::new();

impl log::Log for Consoles {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info || metadata.target().starts_with("agent")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = format!("{PREFIX}{}", record.args());
        self.to_kernel(&text);
        if record.level() <= log::Level::Info {
            for console in &self.consoles {
                console.put(Output::Line(text.clone()));
            }
        }
    }

    fn flush(&self) {
        for console in &self.consoles {
            let (done, finished) = sync_channel(1);
            console.put(Output::Flush(done));
            let _ = finished.recv_timeout(FLUSH);
        }
    }
}

impl Consoles {
    fn to_kernel(&self, text: &str) {
        if let Some(file) = &self.kernel {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // <15>: facility user, level debug: kept, and not shown on consoles (Documentation/ABI/testing/dev-kmsg).
            let _ = file.write_all(format!("<15>{text}\n").as_bytes());
        }
    }
}

impl Console {
    fn put(&self, output: Output) {
        match self.sender.try_send(output) {
            // Behind by a whole queue: what is newest matters least for the story, and dmesg has it.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

/// Starts logging to the consoles that the kernel uses, or to standard error when this is no machine's
/// first process.
pub(crate) fn start(environment: bool) {
    let consoles = if environment {
        kernel_consoles()
            .into_iter()
            .filter_map(|name| open(&name))
            .collect()
    } else {
        let (sender, outputs) = sync_channel(QUEUE);
        let kind = if std::io::stderr().is_terminal() {
            spawn("console-stderr", move || {
                terminal(&mut std::io::stderr(), &outputs)
            });
            Kind::Terminal
        } else {
            spawn("console-stderr", move || {
                lines(&mut std::io::stderr(), &outputs)
            });
            Kind::Lines
        };
        vec![Console { kind, sender }]
    };
    let kernel = environment
        .then(|| OpenOptions::new().write(true).open("/dev/kmsg").ok())
        .flatten()
        .map(Mutex::new);
    let logger = CONSOLES.get_or_init(|| Consoles { consoles, kernel });
    // Only a second start can fail, and then the first logger goes on.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

/// The names of the kernel's consoles, for example `tty0` and `ttyS0`.
fn kernel_consoles() -> Vec<String> {
    let text = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut names: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    if names.is_empty() {
        names.push("console".to_owned());
    }
    names
}

fn open(name: &str) -> Option<Console> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(format!("/dev/{name}"))
        .ok()?;
    let virtual_terminal = name
        .strip_prefix("tty")
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    let (sender, outputs) = sync_channel(QUEUE);
    let thread = format!("console-{name}");
    let kind = if virtual_terminal {
        let size = crate::sys::console::size(file.as_fd()).unwrap_or((25, 80));
        spawn(&thread, move || draw(file, size, &outputs));
        Kind::Screen
    } else {
        let mut file = file;
        spawn(&thread, move || lines(&mut file, &outputs));
        Kind::Lines
    };
    Some(Console { kind, sender })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let builder = std::thread::Builder::new().name(name.to_owned());
    // Without its thread the console stays dark; there is nothing to say it on.
    let _ = builder.spawn(work);
}

fn lines(to: &mut impl Write, outputs: &Receiver<Output>) {
    while let Ok(output) = outputs.recv() {
        match output {
            Output::Line(text) => {
                let _ = writeln!(to, "{text}");
                let _ = to.flush();
            }
            Output::Status(_) | Output::Header(_) => {}
            Output::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// Carriage return, and nothing from there to the end of the line (ECMA-48, EL).
const CLEAR_LINE: &str = "\r\x1b[K";

/// Lines, and below them the status, which a flush ends.
fn terminal(to: &mut impl Write, outputs: &Receiver<Output>) {
    let mut status = String::new();
    while let Ok(output) = outputs.recv() {
        match output {
            Output::Line(text) => {
                let _ = write!(to, "{CLEAR_LINE}{text}\n{status}");
            }
            Output::Status(text) => {
                let _ = write!(to, "{CLEAR_LINE}{text}");
                status = text;
            }
            Output::Header(_) => {}
            Output::Flush(done) => {
                if !std::mem::take(&mut status).is_empty() {
                    let _ = write!(to, "{CLEAR_LINE}");
                }
                let _ = to.flush();
                let _ = done.try_send(());
                continue;
            }
        }
        let _ = to.flush();
    }
}

fn draw(mut to: File, (rows, columns): (u16, u16), outputs: &Receiver<Output>) {
    let drawing = screen::Drawing::new(rows, columns);
    let _ = to.write_all(drawing.begin().as_bytes());
    while let Ok(output) = outputs.recv() {
        let text = match output {
            Output::Line(text) => drawing.line(text.strip_prefix(PREFIX).unwrap_or(&text)),
            Output::Header(header) => drawing.header(&header),
            Output::Status(_) => continue,
            Output::Flush(done) => {
                let _ = done.try_send(());
                continue;
            }
        };
        let _ = to.write_all(text.as_bytes());
    }
}

/// Shows the header on the screens.
pub(crate) fn header(lines: &[String]) {
    each(Kind::Screen, || Output::Header(lines.to_vec()));
}

/// A line for consoles that cannot draw in place; screens show the same in their header.
pub(crate) fn serial(text: &str) {
    each(Kind::Lines, || Output::Line(format!("{PREFIX}{text}")));
    each(Kind::Terminal, || Output::Status(text.to_owned()));
}

fn each(kind: Kind, output: impl Fn() -> Output) {
    let consoles = CONSOLES.get().map_or(&[][..], |all| &all.consoles);
    for console in consoles.iter().filter(|console| console.kind == kind) {
        console.put(output());
    }
}

/// Waits until the consoles have shown everything, but not long.
pub(crate) fn flush() {
    log::logger().flush();
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
