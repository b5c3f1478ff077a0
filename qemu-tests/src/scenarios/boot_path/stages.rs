//! A boot in parts, read off the machine's cable: the same for every firmware and every server.

use anyhow::Context;
use protocol::api;
use std::fmt;
use std::time::SystemTime;

use crate::lab::traffic::Protocol::{Dhcp, Http, Tftp};
use crate::lab::traffic::Traffic;

/// What a request for the kernel has in it, whoever serves it under which path.
const KERNEL: &str = "vmlinuz";

/// How long the parts of a boot took, seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stages {
    /// Power-on to the firmware's first DHCP message.
    pub(crate) firmware: f64,
    /// From there to the first request for a file.
    pub(crate) dhcp: f64,
    /// From there to the request for the kernel, or to the end of the image that has it inside.
    pub(crate) loader: f64,
    /// From there to the last byte of the boot files.
    pub(crate) files: f64,
    /// From there until the agent asks for an address.
    pub(crate) kernel: f64,
    /// From there to the agent's beacon; `None` when there was none.
    pub(crate) agent: Option<f64>,
}

impl Stages {
    /// Reads the parts off a cable on which an agent has asked for an address.
    pub(crate) fn of(powered_at: SystemTime, traffic: &Traffic) -> anyhow::Result<Self> {
        let first_of = |protocols: &[_]| {
            let mut requests = traffic.requests.iter();
            let found = requests.find(|one| protocols.contains(&one.protocol));
            found.map(|one| one.at)
        };
        let dhcp_at = first_of(&[Dhcp]).context("no DHCP on the wire")?;
        let file_at = first_of(&[Tftp, Http]).context("no file was asked for")?;
        let done_at = traffic.files_done_at.context("no file was fetched")?;
        let system_at = traffic
            .system_at
            .context("no system asked for an address")?;
        let kernel_at = traffic.first(KERNEL).unwrap_or(done_at);
        Ok(Self {
            firmware: seconds(powered_at, dhcp_at),
            dhcp: seconds(dhcp_at, file_at),
            loader: seconds(file_at, kernel_at),
            files: seconds(kernel_at, done_at),
            kernel: seconds(done_at, system_at),
            agent: traffic
                .first(api::BEACON)
                .map(|beacon_at| seconds(system_at, beacon_at)),
        })
    }

    /// Power-on until the agent asks for an address, seconds.
    pub(crate) fn until_agent(&self) -> f64 {
        self.firmware + self.dhcp + self.loader + self.files + self.kernel
    }

    /// Power-on to beacon, seconds; without a beacon, as far as it went.
    pub(crate) fn total(&self) -> f64 {
        self.until_agent() + self.agent.unwrap_or(0.0)
    }
}

fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            firmware,
            dhcp,
            loader,
            files,
            kernel,
            agent,
        } = self;
        write!(
            f,
            "{:.1} s after power-on: firmware {firmware:.1}, DHCP {dhcp:.1}, loader {loader:.1}, \
             files {files:.1}, kernel {kernel:.1}, agent {:.1}",
            self.total(),
            agent.unwrap_or(0.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::traffic::{Protocol, Request};
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn cable(requests: &[(u64, Protocol, &str)]) -> Traffic {
        let request = |&(seconds, protocol, what): &(u64, Protocol, &str)| Request {
            at: at(seconds),
            protocol,
            what: what.to_owned(),
        };
        let mut traffic = Traffic::default();
        traffic.requests = requests.iter().map(request).collect();
        traffic.files_done_at = Some(at(50));
        traffic.system_at = Some(at(60));
        traffic
    }

    #[test]
    fn each_part_begins_where_the_one_before_ends() {
        let traffic = cable(&[
            (12, Dhcp, "DISCOVER PXEClient"),
            (15, Tftp, "shimx64.efi"),
            (20, Tftp, "for/x/vmlinuz"),
            (60, Dhcp, "DISCOVER"),
            (61, Http, "POST /api/v1/beacon"),
        ]);
        let stages = Stages::of(at(10), &traffic).unwrap();
        let expected = Stages {
            firmware: 2.0,
            dhcp: 3.0,
            loader: 5.0,
            files: 30.0,
            kernel: 10.0,
            agent: Some(1.0),
        };
        assert_eq!(stages, expected);
        assert_eq!((stages.until_agent(), stages.total()), (50.0, 51.0));
    }

    #[test]
    fn an_image_with_the_kernel_inside_is_all_loader() {
        let traffic = cable(&[
            (12, Dhcp, "DISCOVER HTTPClient"),
            (15, Http, "GET /boot/for/x/netboot-x64.efi"),
        ]);
        let stages = Stages::of(at(10), &traffic).unwrap();
        assert_eq!((stages.loader, stages.files), (35.0, 0.0));
        assert_eq!(stages.agent, None);
    }

    #[test]
    fn a_cable_without_a_system_has_no_stages() {
        assert!(Stages::of(at(10), &Traffic::default()).is_err());
    }
}
