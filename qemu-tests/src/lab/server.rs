//! The server under test: the real `netboot` program on loopback ports, and the operator's commands.
//!
//! Its configuration is written here and nowhere else. It is started, stopped, killed and started again as
//! an init system would; it never outlives its [`Server`].

use backup::plan::Refusal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::api::{JobView, MachineView, PlanView, RestorePointView};
use serde::de::DeserializeOwned;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use thiserror::Error;

use super::deadline::Deadline;
use super::link::LinkConfig;
use super::namespace::{self, Place};
use super::port_map::PortMap;
use super::tool::{self, ToolError};

const TICK: Duration = Duration::from_millis(20);
/// HTTP as machines see it: the port in URLs.
const HTTP_ON_LINK: u16 = 80;
const TFTP_ON_LINK: u16 = 69;
/// Addresses for the few machines of most scenarios.
const POOL: (u8, u8) = (100, 200);

/// The server or a command to it failed.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    /// A file, port or process failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended instead of serving.
    #[error("the server ended with {status}; its log: {said}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        said: String,
    },
    /// It does not answer.
    #[error("the server does not answer within {allowed}; its log: {said}")]
    Silent {
        /// How long was waited.
        allowed: String,
        /// The end of its log.
        said: String,
    },
    /// A command said no.
    #[error(transparent)]
    Command(#[from] ToolError),
    /// A command's answer is not what the API says.
    #[error("`netboot {command}` answered {answer:?}")]
    Answer {
        /// The command.
        command: String,
        /// What it printed.
        answer: String,
        /// Why that is wrong.
        source: serde_json::Error,
    },
}

/// Where the server is and what it serves.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    /// The `netboot` program.
    pub(crate) program: PathBuf,
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
    /// Kernel, initramfs and loaders.
    pub(crate) boot_files: PathBuf,
    /// Where its log and configuration go.
    pub(crate) logs: PathBuf,
    dhcp: u16,
    tftp: u16,
    http: u16,
    /// Last bytes of the first and the last address that machines are given.
    pub(crate) pool: (u8, u8),
    /// Whether another DHCP server gives the addresses.
    pub(crate) beside_another: bool,
    /// More keys of `[boot]`, with their values as TOML has them.
    pub(crate) boot_keys: Vec<(&'static str, &'static str)>,
    /// How long leases last; `None` for the default.
    lease_seconds: Option<u32>,
    /// The namespace of the bridge that it serves; `None` on loopback.
    place: Option<Place>,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let what = what.into();
    move |source| ServerError::Io { what, source }
}

impl ServerConfig {
    /// A server on free loopback ports.
    pub(crate) fn on_free_ports(
        program: &Path,
        data_dir: &Path,
        boot_files: &Path,
        logs: &Path,
    ) -> Result<Self, ServerError> {
        let free = io_error("find free loopback ports");
        let find = || -> io::Result<(u16, u16, u16)> {
            let any = (Ipv4Addr::LOCALHOST, 0);
            let (dhcp, tftp, http) = (
                UdpSocket::bind(any)?,
                UdpSocket::bind(any)?,
                TcpListener::bind(any)?,
            );
            Ok((
                dhcp.local_addr()?.port(),
                tftp.local_addr()?.port(),
                http.local_addr()?.port(),
            ))
        };
        let (dhcp, tftp, http) = find().map_err(free)?;
        Ok(Self {
            program: program.to_owned(),
            data_dir: data_dir.to_owned(),
            boot_files: boot_files.to_owned(),
            logs: logs.to_owned(),
            dhcp,
            tftp,
            http,
            pool: POOL,
            beside_another: false,
            boot_keys: Vec::new(),
            lease_seconds: None,
            place: None,
        })
    }

    /// A server on its usual ports, on the bridge of a network namespace.
    pub(crate) fn on_bridge(
        program: &Path,
        data_dir: &Path,
        boot_files: &Path,
        logs: &Path,
        place: &Place,
    ) -> Self {
        Self {
            program: program.to_owned(),
            data_dir: data_dir.to_owned(),
            boot_files: boot_files.to_owned(),
            logs: logs.to_owned(),
            dhcp: 67,
            tftp: TFTP_ON_LINK,
            http: HTTP_ON_LINK,
            pool: POOL,
            beside_another: false,
            boot_keys: Vec::new(),
            lease_seconds: None,
            place: Some(place.clone()),
        }
    }

    /// Where agents on this computer reach it, on loopback.
    pub(crate) fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// The same with another length of leases.
    pub(crate) fn with_lease_seconds(mut self, seconds: u32) -> Self {
        self.lease_seconds = Some(seconds);
        self
    }

    /// A link whose gateway leads to this server.
    pub(crate) fn link(&self) -> LinkConfig {
        LinkConfig {
            ports: PortMap::default()
                .with_tcp(HTTP_ON_LINK, self.http)
                .with_udp(TFTP_ON_LINK, self.tftp),
            dhcp: Some(self.dhcp),
            ..LinkConfig::default()
        }
    }

    /// The configuration file.
    fn to_toml(&self) -> String {
        let link = LinkConfig::default();
        // The bridge has the server's address, so that need not be said there.
        let (listen, network, prefix, server) = match &self.place {
            None => {
                let server = format!("server = \"{0}\"\nrouter = \"{0}\"\n", link.gateway);
                ("listen = \"127.0.0.1\"", link.network, link.prefix, server)
            }
            Some(_) => (
                "interface = \"br0\"",
                namespace::BRIDGE_NETWORK,
                namespace::BRIDGE_PREFIX,
                String::new(),
            ),
        };
        let [a, b, c, _] = network.octets();
        let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
        let (mode, subnet) = if self.beside_another {
            ("proxy", String::new())
        } else {
            let (first, last) = self.pool;
            let pool = format!("{a}.{b}.{c}.{first}-{a}.{b}.{c}.{last}");
            let subnet = format!(
                "[[subnet]]\nnetwork = \"{network}/{prefix}\"\npool = \"{pool}\"\n{server}\n"
            );
            ("server", subnet)
        };
        let lease = self.lease_seconds;
        let lease = lease.map_or(String::new(), |seconds| {
            format!("lease_seconds = {seconds}\n")
        });
        let boot_keys: String = self
            .boot_keys
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect();
        format!(
            "data_dir = {}\nboot_files = {}\n\n\
             [network]\n{listen}\n\n\
             [dhcp]\nmode = \"{mode}\"\nport = {}\n{lease}\n\
             [tftp]\nport = {}\n\n\
             [http]\nport = {}\nadvertised_port = {HTTP_ON_LINK}\n\n\
             {subnet}\
             [boot]\nunknown_machines = \"recovery\"\n{boot_keys}",
            quoted(&self.data_dir),
            quoted(&self.boot_files),
            self.dhcp,
            self.tftp,
            self.http,
        )
    }

    fn answers_http(&self) -> bool {
        let connect = |address| move || TcpStream::connect((address, self.http)).map(drop);
        match &self.place {
            None => connect(Ipv4Addr::LOCALHOST)().is_ok(),
            Some(place) => place.inside(connect(namespace::BRIDGE_ADDRESS)).is_ok(),
        }
    }

    fn log(&self) -> PathBuf {
        self.logs.join("server.log")
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    }
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    config: ServerConfig,
    process: Child,
}

impl Server {
    /// Starts the server and waits until it serves.
    pub(crate) fn start(config: ServerConfig) -> Result<Self, ServerError> {
        let file = config.logs.join("netboot.toml");
        fs::write(&file, config.to_toml())
            .map_err(io_error(format!("write {}", file.display())))?;
        fs::create_dir_all(&config.data_dir)
            .map_err(io_error(format!("create {}", config.data_dir.display())))?;
        let process = spawn(&config, &file)?;
        let mut server = Self { config, process };
        server.wait_until_ready(Deadline::seconds(30))?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, deadline: Deadline) -> Result<(), ServerError> {
        let control = self.config.data_dir.join("control.sock");
        loop {
            if self.config.answers_http()
                && std::os::unix::net::UnixStream::connect(&control).is_ok()
            {
                return Ok(());
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(ServerError::Ended {
                    status,
                    said: self.config.end_of_log(),
                });
            }
            if deadline.remaining().is_none() {
                return Err(ServerError::Silent {
                    allowed: deadline.to_string(),
                    said: self.config.end_of_log(),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until its log has these words.
    pub(crate) fn wait_for_log(&self, words: &str, deadline: Deadline) -> Result<(), ServerError> {
        loop {
            if fs::read_to_string(self.config.log()).is_ok_and(|said| said.contains(words)) {
                return Ok(());
            }
            if deadline.remaining().is_none() {
                return Err(ServerError::Silent {
                    allowed: deadline.to_string(),
                    said: self.config.end_of_log(),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Kills the server without warning.
    pub(crate) fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks the server to stop, and waits for it.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus, ServerError> {
        // A process id of ours fits the type that the system has for it.
        let pid = Pid::from_raw(self.process.id() as i32);
        kill(pid, Signal::SIGTERM).map_err(|error| io_error("signal the server")(error.into()))?;
        let deadline = Deadline::seconds(20);
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Ok(status);
            }
            if deadline.remaining().is_none() {
                self.kill();
                return Err(ServerError::Silent {
                    allowed: deadline.to_string(),
                    said: self.config.end_of_log(),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Starts a stopped or killed server again, on the same ports and data.
    pub(crate) fn start_again(&mut self) -> Result<(), ServerError> {
        self.process = spawn(&self.config, &self.config.logs.join("netboot.toml"))?;
        self.wait_until_ready(Deadline::seconds(30))
    }

    /// Where agents on this computer reach it, on loopback.
    pub(crate) fn url(&self) -> String {
        self.config.http_url()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where the data is.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// Every machine that the server knows.
    pub(crate) fn machines(&self) -> Result<Vec<MachineView>, ServerError> {
        self.ask(&["machines"])
    }

    /// Every job.
    pub(crate) fn jobs(&self) -> Result<Vec<JobView>, ServerError> {
        self.ask(&["jobs"])
    }

    /// Every restore point.
    pub(crate) fn restore_points(&self) -> Result<Vec<RestorePointView>, ServerError> {
        self.ask(&["restore-points"])
    }

    /// What a machine did on its way, as `netboot timeline --json` prints it.
    pub(crate) fn timeline(&self, machine: &str) -> Result<serde_json::Value, ServerError> {
        self.ask(&["timeline", machine])
    }

    /// Orders a capture of a machine.
    pub(crate) fn capture(&self, machine: &str) -> Result<JobView, ServerError> {
        self.ask(&["capture", machine])
    }

    /// Orders a capture that opens encrypted volumes, `DISK:PARTITION=FILE` each; the machine waits then.
    pub(crate) fn capture_with_keys(
        &self,
        machine: &str,
        keys: &[String],
    ) -> Result<JobView, ServerError> {
        let mut words = vec!["capture", machine, "--then", "wait"];
        for key in keys {
            words.extend(["--unlock", key]);
        }
        self.ask(&words)
    }

    /// What people are shown of a restore point.
    pub(crate) fn show(&self, restore_point: &str) -> Result<String, ServerError> {
        let mut command = Command::new(&self.config.program);
        command
            .arg("--data-dir")
            .arg(&self.config.data_dir)
            .args(["show", restore_point]);
        Ok(tool::run(&mut command)?)
    }

    /// Why a restore of a machine would be refused; nothing when it would not.
    pub(crate) fn refusals(
        &self,
        machine: &str,
        restore_point: &str,
    ) -> Result<Vec<Refusal>, ServerError> {
        let words = ["plan", machine, restore_point, "--json"];
        // Not as a tool: without a plan it prints the same, and ends with an error.
        let said = Command::new(&self.config.program)
            .arg("--data-dir")
            .arg(&self.config.data_dir)
            .args(words)
            .output()
            .map_err(io_error(format!("start {}", self.config.program.display())))?;
        let answer = String::from_utf8_lossy(&said.stdout).into_owned();
        let view: PlanView =
            serde_json::from_str(&answer).map_err(|source| ServerError::Answer {
                command: words.join(" "),
                answer,
                source,
            })?;
        Ok(view.refusals)
    }

    /// Orders a restore of a machine.
    pub(crate) fn restore(
        &self,
        machine: &str,
        restore_point: &str,
    ) -> Result<JobView, ServerError> {
        self.restore_with(machine, restore_point, &[])
    }

    /// The same with options.
    pub(crate) fn restore_with(
        &self,
        machine: &str,
        restore_point: &str,
        options: &[&str],
    ) -> Result<JobView, ServerError> {
        self.ask(&[&["restore", machine, restore_point], options].concat())
    }

    /// Makes a factory image from a restore point.
    pub(crate) fn create_image(
        &self,
        restore_point: &str,
        name: &str,
    ) -> Result<RestorePointView, ServerError> {
        let words = ["factory", "create", "--from", restore_point, "--name", name];
        self.ask(&words)
    }

    /// Orders a reset of a machine to a factory image, as a machine that is called `name`.
    pub(crate) fn reset(
        &self,
        machine: &str,
        image: &str,
        name: &str,
    ) -> Result<JobView, ServerError> {
        self.ask(&["reset", machine, "--image", image, "--hostname", name])
    }

    fn ask<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T, ServerError> {
        let mut command = Command::new(&self.config.program);
        command
            .arg("--data-dir")
            .arg(&self.config.data_dir)
            .args(words)
            .arg("--json");
        let answer = tool::run(&mut command)?;
        serde_json::from_str(&answer).map_err(|source| ServerError::Answer {
            command: words.join(" "),
            answer,
            source,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(config: &ServerConfig, file: &Path) -> Result<Child, ServerError> {
    let path = config.log();
    let log = OpenOptions::new().create(true).append(true).open(&path);
    let log = log.map_err(io_error(format!("write {}", path.display())))?;
    let errors = log
        .try_clone()
        .map_err(io_error("share the server's log"))?;
    let command = match &config.place {
        None => Command::new(&config.program),
        Some(place) => place.command(&config.program),
    };
    tool::bound_to_us(&command)
        .args(["serve", "--config"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(io_error(format!("start {}", config.program.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_ports_that_the_link_leads_to() {
        let (folder, program) = (Path::new("/data \"1\""), Path::new("netboot"));
        let config =
            ServerConfig::on_free_ports(program, folder, Path::new("/boot"), folder).unwrap();
        let text = config.to_toml();
        assert!(text.contains("data_dir = \"/data \\\"1\\\"\""), "{text}");
        assert!(
            text.contains("pool = \"10.77.0.100-10.77.0.200\""),
            "{text}"
        );
        let link = config.link();
        assert!(
            text.contains(&format!("[http]\nport = {}\n", link.ports.tcp(80).unwrap())),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "[dhcp]\nmode = \"server\"\nport = {}\n",
                link.dhcp.unwrap()
            )),
            "{text}"
        );
    }
}
