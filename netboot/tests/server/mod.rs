//! A real `netboot serve` process for the tests of this folder.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// The program under test.
pub(crate) const NETBOOT: &str = env!("CARGO_BIN_EXE_netboot");

/// A data directory and a boot folder.
pub(crate) struct Folders {
    folder: TempDir,
}

impl Folders {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["data", "boot"] {
            fs::create_dir(folder.path().join(name)).expect("a folder in it");
        }
        Self { folder }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.folder.path().join("boot")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a file with recognisable bytes into the boot folder.
    pub(crate) fn add_boot_file(&self, name: &str, len: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len)
            .map(|at| (at % 251) as u8 ^ (at / 251) as u8)
            .collect();
        fs::write(self.boot().join(name), &bytes).expect("a boot file");
        bytes
    }

    /// Writes a configuration for free ports of the loopback interface, and what comes behind it.
    pub(crate) fn write_config(&self, ports: [u16; 3], more: &str) -> PathBuf {
        let [dhcp, tftp, http] = ports;
        let text = format!(
            "data_dir = {:?}\nboot_files = {:?}\n[network]\nlisten = \"127.0.0.1\"\n\
             [dhcp]\nport = {dhcp}\n[tftp]\nport = {tftp}\n[http]\nport = {http}\n\
             [[subnet]]\nnetwork = \"10.77.0.0/24\"\npool = \"10.77.0.100-10.77.0.110\"\n\
             server = \"10.77.0.1\"\n{more}",
            self.data(),
            self.boot(),
        );
        let path = self.path("netboot.toml");
        fs::write(&path, text).expect("a configuration");
        path
    }
}

/// A server that serves. It is killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) dhcp: u16,
    pub(crate) tftp: u16,
    pub(crate) http: u16,
}

impl Server {
    /// Starts it on a configuration and waits until it says that it serves.
    pub(crate) fn start(config: &Path) -> Self {
        let mut command = Command::new(NETBOOT);
        command.args(["serve", "--config"]).arg(config);
        Self::start_command(command)
    }

    /// The same for any command that becomes a server.
    pub(crate) fn start_command(mut command: Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("netboot starts");
        let stderr = child.stderr.take().expect("its messages");
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        let ready = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("netboot ended instead of serving:\n{said}");
            };
            if line.starts_with("netboot: serving on ") {
                break line;
            }
            said.push_str(&line);
            said.push('\n');
        };
        // Its log must not fill the pipe and stop it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let port = |name: &str| {
            let (_, after) = ready.rsplit_once(&format!("{name} ")).expect("a port");
            let digits = after.split(',').next().expect("digits");
            digits.trim().parse().expect("a number")
        };
        Self {
            dhcp: port("dhcp"),
            tftp: port("tftp"),
            http: port("http"),
            child,
        }
    }

    /// Asks it to end as a service manager does, and returns its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("netboot ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program can be run at all; tests of it say why they skip.
pub(crate) fn has_program(name: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(name).is_file())
    });
    if !found {
        eprintln!("skipped: the program {name} is not installed");
    }
    found
}
