//! A server in this process on loopback, and an agent and an operator that talk to it by hand.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use backup::chunk::{Chunk, ChunkList, Content};
use backup::hardware::{FirmwareKind, Inventory, MachineIdentity};
use backup::manifest::{
    ChunkListRef, Coverage, DiskImage, Firmware, Manifest, OperatingSystem, PartitionTable, Region,
    RegionKind, RestorePointId,
};
use backup::{ByteRange, Digest, SectorSize};
use protocol::api::{self, ApiError, JobView};
use protocol::beacon::{AgentState, Beacon, BeaconReply};
use protocol::job::{Job, JobReport};
use serde::de::DeserializeOwned;
use smol::{Async, Executor};

use crate::control_client::ControlClient;
use crate::flight_recorder::FlightRecorder;
use crate::http::{Recovery, agent_api, operator_api, server, upkeep_api};
use crate::store::record::record_of;

/// The server, until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) recovery: Arc<Recovery>,
    pub(super) operator: ControlClient,
    stop: Option<server::StopSender>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts on a data directory, as `netboot serve` does.
    pub(super) fn start(data_directory: &Path) -> Self {
        let recorder = Arc::new(FlightRecorder::in_memory());
        let recovery = Arc::new(Recovery::open(data_directory, recorder).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = data_directory.join("control.sock");
        let _ = std::fs::remove_file(&socket);
        let control = UnixListener::bind(&socket).unwrap();
        let executor: Arc<Executor<'static>> = Arc::new(Executor::new());
        let (stop, stopped) = server::stop_channel();
        let tcp = server::serve(
            Async::new(listener).unwrap(),
            agent_api::router(Arc::clone(&recovery)),
            Arc::clone(&executor),
            stopped.clone(),
        );
        let unix = server::serve(
            Async::new(control).unwrap(),
            operator_api::router(Arc::clone(&recovery)).merge(upkeep_api::router(
                Arc::clone(&recovery),
                protocol::upkeep::RetentionRules::default(),
            )),
            Arc::clone(&executor),
            stopped,
        );
        let thread = std::thread::spawn(move || {
            let (tcp, unix) = smol::block_on(executor.run(futures_lite::future::zip(tcp, unix)));
            tcp.and(unix).unwrap();
        });
        Self {
            address,
            recovery,
            operator: ControlClient::new(data_directory),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Sends a request as a machine; status and body of the answer.
    pub(super) fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .unwrap();
        // A refusal may come before all of the body is taken.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let head = String::from_utf8(answer[..end.unwrap()].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_off(end.unwrap() + 4))
    }

    /// The same, for an answer that must be good.
    pub(super) fn take(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let (status, answer) = self.send(method, path, body);
        let good = (200..300).contains(&status);
        assert!(
            good,
            "{path}: {status} {}",
            String::from_utf8_lossy(&answer)
        );
        answer
    }

    /// The same, for an answer that must be a refusal: status and the word for programs.
    pub(super) fn refused(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let (status, answer) = self.send(method, path, body);
        assert!(status >= 400, "{path}: {status}");
        let error: ApiError = serde_json::from_slice(&answer).unwrap();
        assert!(!error.message.is_empty());
        (status, error.code)
    }

    pub(super) fn beacon(&self, beacon: &Beacon) -> BeaconReply {
        let body = serde_json::to_vec(beacon).unwrap();
        parse(&self.take("POST", api::BEACON, &body))
    }

    pub(super) fn report(&self, job: &str, report: &JobReport) -> bool {
        let body = serde_json::to_vec(report).unwrap();
        let answer = self.take("POST", &api::job_report(job), &body);
        parse::<protocol::job::JobReportReply>(&answer).cancelled
    }

    /// An operator asks for a job.
    pub(super) fn order(&self, machine: &str, action: api::Action) -> Result<JobView, ApiError> {
        let request = api::JobRequest {
            machine: machine.into(),
            action,
            afterwards: protocol::job::Afterwards::Wait,
        };
        match self.operator.post(api::JOBS, &request) {
            Ok(job) => Ok(job),
            Err(crate::control_client::ClientError::Refused(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn job(&self, id: &str) -> JobView {
        let jobs: Vec<JobView> = self.operator.get(api::JOBS).unwrap();
        jobs.into_iter().find(|job| job.id == id).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

/// A beacon of the machine with this last byte of its Ethernet address.
pub(super) fn beacon(machine: u8, boot: &str, state: AgentState) -> Beacon {
    let mac = format!("02:00:00:00:00:{machine:02x}");
    Beacon {
        agent_version: "0.1.0".into(),
        boot_id: boot.into(),
        pairing_code: "123456".into(),
        since_link_ms: None,
        boot_mac: Some(mac.clone()),
        state,
        error: None,
        inventory: Inventory {
            identity: MachineIdentity {
                macs: vec![mac],
                ..MachineIdentity::default()
            },
            firmware: FirmwareKind::Uefi,
            architecture: "x86_64".into(),
            disks: Vec::new(),
            nics: Vec::new(),
            memory: 1 << 30,
            without_driver: Vec::new(),
        },
    }
}

pub(super) fn mac(machine: u8) -> String {
    format!("02:00:00:00:00:{machine:02x}")
}

/// What a fake capture is of: one disk without a table, its content in whole sectors.
pub(super) struct Capture {
    pub(super) chunks: Vec<Vec<u8>>,
    pub(super) list: ChunkList,
    pub(super) manifest: Manifest,
}

impl Capture {
    pub(super) fn of(id: &RestorePointId, host_name: &str, chunks: Vec<Vec<u8>>) -> Self {
        let mut at = 0;
        let places: Vec<Chunk> = chunks
            .iter()
            .map(|plain| {
                let range = ByteRange::new(at, plain.len() as u64).unwrap();
                at = range.end();
                Chunk {
                    range,
                    content: Content::Data(Digest::of(plain)),
                }
            })
            .collect();
        let size = at.next_multiple_of(512).max(512);
        let list = ChunkList::new(places, size).unwrap();
        let content = ChunkListRef {
            digest: Digest::of(&list.encode()),
            chunks: list.chunks().len() as u64,
            data_bytes: list.data_bytes(),
            zero_bytes: 0,
        };
        let disk = DiskImage {
            number: 0,
            model: None,
            serial: None,
            wwn: None,
            size,
            logical_sector: SectorSize::S512,
            physical_sector: 512,
            table: PartitionTable::None,
            regions: vec![Region {
                kind: RegionKind::WholeDisk,
                range: ByteRange::new(0, size).unwrap(),
                volume: None,
                coverage: Coverage::Whole {
                    reason: "no table".into(),
                },
                was_encrypted: None,
                content,
            }],
        };
        let manifest = Manifest {
            format: 1,
            id: id.clone(),
            kind: Default::default(),
            image: None,
            hardware: None,
            captured_at: 1_700_000_000,
            agent_version: "0.1.0".into(),
            machine: MachineIdentity::default(),
            architecture: "x86_64".into(),
            firmware: Firmware {
                kind: FirmwareKind::Uefi,
                boot_entries: Vec::new(),
                boot_order: Vec::new(),
            },
            system: Some(OperatingSystem {
                name: "Debian GNU/Linux".into(),
                version: Some("12".into()),
                host_name: Some(host_name.into()),
            }),
            disks: vec![disk],
            logical_volumes: Vec::new(),
            warnings: Vec::new(),
        };
        Self {
            chunks,
            list,
            manifest,
        }
    }

    pub(super) fn manifest_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.manifest).unwrap()
    }

    pub(super) fn list_path(&self, job: &str) -> String {
        api::list_part(job, "0-0")
    }

    /// Asks what is missing and sends that; how many chunks were.
    pub(super) fn send_chunks(&self, server: &Server, job: &str) -> usize {
        let digests: Vec<u8> = self
            .chunks
            .iter()
            .flat_map(|plain| *Digest::of(plain).as_bytes())
            .collect();
        let missing = server.take("POST", &api::missing_chunks(job), &digests);
        assert_eq!(missing.len(), self.chunks.len());
        let records: Vec<u8> = self
            .chunks
            .iter()
            .zip(&missing)
            .filter(|(_, missing)| **missing == 1)
            .flat_map(|(plain, _)| record_of(plain))
            .collect();
        server.take("POST", &api::upload_chunks(job), &records);
        missing.iter().filter(|missing| **missing == 1).count()
    }

    pub(super) fn send_list(&self, server: &Server, job: &str) {
        let list = self.list.encode();
        let (first, second) = list.split_at(list.len() / 2);
        let path = self.list_path(job);
        server.take("PUT", &format!("{path}?offset=0"), first);
        let at = first.len();
        server.take("PUT", &format!("{path}?offset={at}"), second);
        self.finish_list(server, job);
    }

    pub(super) fn finish_list(&self, server: &Server, job: &str) {
        let list = self.list.encode();
        let finish = api::FinishList {
            length: list.len() as u64,
            digest: Digest::of(&list),
        };
        let body = serde_json::to_vec(&finish).unwrap();
        server.take("POST", &self.list_path(job), &body);
    }

    pub(super) fn publish(&self, server: &Server, job: &str) {
        server.take("POST", &api::publish(job), &self.manifest_json());
    }
}

/// A machine is known, an operator asks for a capture, the machine gets it.
pub(super) fn begin_capture(server: &Server, machine: u8) -> Job {
    // One that works is not held until there is a job.
    server.beacon(&beacon(machine, "boot", AgentState::Working));
    server
        .order(
            &mac(machine),
            api::Action::Capture {
                point_kind: Default::default(),
                image: None,
                unlock: Vec::new(),
            },
        )
        .unwrap();
    let reply = server.beacon(&beacon(machine, "boot", AgentState::Waiting));
    reply.job.unwrap()
}

/// A whole capture of these chunks.
pub(super) fn capture(server: &Server, machine: u8, chunks: Vec<Vec<u8>>) -> RestorePointId {
    let job = begin_capture(server, machine);
    let id = job.kind.restore_point().clone();
    let capture = Capture::of(&id, &format!("host-{machine}"), chunks);
    capture.send_chunks(server, &job.id);
    capture.send_list(server, &job.id);
    capture.publish(server, &job.id);
    let summary = vec!["done".to_owned()];
    server.report(&job.id, &JobReport::Succeeded { summary });
    id
}
