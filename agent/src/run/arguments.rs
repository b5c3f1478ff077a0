//! The command line.
//!
//! Pure: words in, what is wanted or what is wrong with them out.

/// What is printed for `--help`.
pub(crate) const HELP: &str = "\
The agent of the netboot recovery environment.

Usage: agent backup --server URL [--disk PATH]... [--unlock DISK:N=FILE]...
                    [--json]
       agent join --server URL [--disk PATH]... [--once]
       agent --server URL job FILE
       agent --inventory
       agent --help | --version

backup       Capture this running system to the server, now.
join         Beacon to the server as a machine and do the jobs it gives.
             A job that overwrites writes to the disks named here, or to any
             disk of this machine when none is named.
job FILE     Do the job in FILE (JSON) on this machine.

--server URL The server, for example http://10.77.0.1:8080.
--disk PATH  A disk: a block device, or an image file, which is taken for a
             disk with sectors of 512 bytes (PATH:4096 for 4096). May be given
             more than once. Without it: all fixed disks of this machine.
--unlock DISK:N=FILE
             Open the encrypted volume (LUKS, BitLocker) in partition N of the
             disk and save it plain; FILE has its pass phrase, key or recovery
             password, `-` is standard input. DISK=FILE: a disk without
             partitions. May be given more than once.
--once       End after one job, with its exit code.
--json       Print what was done as JSON.
--inventory  Print what this machine is made of, as JSON.

A disk is opened exclusively. A mounted file system is only captured from a
snapshot; where none can be made the disk is refused, and why is said.

As PID 1 the agent runs the recovery environment.

Exit codes: 0 done, 1 the job failed, 2 wrong arguments.
";

/// What is wanted of an ordinary program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Print the inventory.
    Inventory,
    /// Do the job in a file.
    Job {
        /// The server's URL.
        server: String,
        /// The file.
        file: String,
    },
    /// Be a machine of the server.
    Join {
        /// The server's URL.
        server: String,
        /// The disks as they were named.
        disks: Vec<String>,
        /// End after one job.
        once: bool,
    },
    /// Capture this system.
    Backup {
        /// The server's URL.
        server: String,
        /// The disks as they were named.
        disks: Vec<String>,
        /// The encrypted volumes and their keys' files as they were named.
        unlock: Vec<String>,
        /// Print JSON.
        json: bool,
    },
}

/// Reads the words after the program's name.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse(words: &[&str]) -> Result<Command, String> {
    match words {
        ["--help" | "-h"] => return Ok(Command::Help),
        ["--version" | "-V"] => return Ok(Command::Version),
        ["--inventory"] => return Ok(Command::Inventory),
        ["--server", server, "job", file] => {
            return Ok(Command::Job {
                server: (*server).to_owned(),
                file: (*file).to_owned(),
            });
        }
        [] => return Err("no command".to_owned()),
        _ => {}
    }
    let (command, rest) = (words[0], &words[1..]);
    if !matches!(command, "join" | "backup") {
        return Err(format!(
            "these arguments are not understood: {}",
            words.join(" ")
        ));
    }
    if rest.contains(&"--help") || rest.contains(&"-h") {
        return Ok(Command::Help);
    }
    let (mut server, mut disks, mut once, mut json) = (None, Vec::new(), false, false);
    let mut unlock = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let mut value = || {
            let value = rest.next().map(|value| (*value).to_owned());
            value.ok_or_else(|| format!("{word} needs a value"))
        };
        match (*word, command) {
            ("--server", _) => server = Some(value()?),
            ("--disk", _) => disks.push(value()?),
            ("--unlock", "backup") => unlock.push(value()?),
            ("--once", "join") => once = true,
            ("--json", "backup") => json = true,
            (word, _) => return Err(format!("{command} does not know {word}")),
        }
    }
    let server = server.ok_or_else(|| format!("{command} needs --server URL"))?;
    if !server.starts_with("http://") {
        return Err(format!(
            "--server {server}: the address begins with http://"
        ));
    }
    Ok(match command {
        "join" => Command::Join {
            server,
            disks,
            once,
        },
        _ => Command::Backup {
            server,
            disks,
            unlock,
            json,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_read() {
        let words: Vec<_> = "join --disk a --server http://s:1 --disk b:4096 --once"
            .split(' ')
            .collect();
        assert_eq!(
            parse(&words),
            Ok(Command::Join {
                server: "http://s:1".to_owned(),
                disks: vec!["a".to_owned(), "b:4096".to_owned()],
                once: true,
            })
        );
        assert_eq!(
            parse(&[
                "backup", "--server", "http://s", "--unlock", "sda:2=k", "--json"
            ]),
            Ok(Command::Backup {
                server: "http://s".to_owned(),
                disks: Vec::new(),
                unlock: vec!["sda:2=k".to_owned()],
                json: true,
            })
        );
        assert!(matches!(
            parse(&["--server", "http://s", "job", "f"]),
            Ok(Command::Job { .. })
        ));
        assert_eq!(parse(&["backup", "--help"]), Ok(Command::Help));
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        for (words, said) in [
            (&["join"][..], "--server"),
            (&["join", "--server"], "needs a value"),
            (&["join", "--server", "http://s", "--json"], "--json"),
            (&["backup", "--server", "http://s", "--once"], "--once"),
            (
                &["join", "--server", "http://s", "--unlock", "a=b"],
                "--unlock",
            ),
            (&["backup", "--server", "ftp://s"], "http://"),
            (&["dance"], "dance"),
            (&[], "no command"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_help_fits_a_screen_and_names_every_option() {
        assert!(HELP.lines().all(|line| line.len() <= 80));
        for option in [
            "--server",
            "--disk",
            "--unlock",
            "--once",
            "--json",
            "--inventory",
            "--version",
        ] {
            assert!(HELP.contains(option), "{option}");
        }
    }
}
