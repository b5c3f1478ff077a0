//! A room of simulated machines: what firmware, iPXE and the agent say on the wire, without a processor.
//!
//! The machines live in one network namespace whose interface is plugged into the server's bridge. It has
//! every address that the server may give them, so that each machine speaks from its own; their DHCP goes
//! through one socket and is told apart by transaction. They ask for broadcast replies, as OVMF does,
//! because a frame to a card that is not there would not reach them.
//!
//! Invariant: what is fetched is compared with the file as it is fetched; a boot that ends well was right.
//! Not here: what a boot may cost (`scenarios::room_of_machines`).

mod desk;
mod http;
mod machine;
mod tftp;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::namespace::{
    BRIDGE_ADDRESS, BRIDGE_PREFIX, Bridge, CLIENT_INTERFACE, Namespace, NamespaceError, Place,
};
use desk::Desk;
pub(crate) use machine::{Boot, Machine};

/// Last bytes of the addresses that the machines may be given.
pub(crate) const POOL: (u8, u8) = (16, 239);
/// Exactly these addresses, as networks.
const POOL_NETWORKS: [&str; 6] = [
    "10.78.0.16/28",
    "10.78.0.32/27",
    "10.78.0.64/26",
    "10.78.0.128/26",
    "10.78.0.192/27",
    "10.78.0.224/28",
];
/// The room's own address: DHCP without an address needs a socket that can send.
const OWN_ADDRESS: &str = "10.78.0.5";

/// A step of a boot that failed.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    /// A socket.
    #[error("{step} failed")]
    Socket {
        /// What was being done.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// No answer, however often it was asked.
    #[error("{step}: no answer")]
    Silent {
        /// What was asked.
        step: String,
    },
    /// The server said no, or something else than it should.
    #[error("{step}: {said}")]
    Answer {
        /// What was asked.
        step: String,
        /// What came.
        said: String,
    },
}

impl BootError {
    pub(super) fn answer(step: &str, said: impl Into<String>) -> Self {
        Self::Answer {
            step: step.to_owned(),
            said: said.into(),
        }
    }

    pub(super) fn socket(step: &str) -> impl FnOnce(io::Error) -> Self {
        let step = step.to_owned();
        move |source| Self::Socket { step, source }
    }
}

/// The files that machines fetch, as they should come.
#[derive(Debug, Default)]
pub(crate) struct Files(HashMap<String, Vec<u8>>);

impl Files {
    /// Reads the files of some names from the first folder that has them.
    pub(crate) fn read(folders: &[&Path], names: &[&str]) -> io::Result<Self> {
        let mut files = HashMap::new();
        for name in names {
            let found = folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|path| path.is_file());
            let path = found.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("no folder has {name}"))
            })?;
            files.insert((*name).to_owned(), std::fs::read(path)?);
        }
        Ok(Self(files))
    }

    /// A file's content.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// The room. Dropping it removes the namespace.
#[derive(Debug)]
pub(crate) struct Room {
    desk: Arc<Desk>,
    namespace: Namespace,
}

impl Room {
    /// Opens a room on the bridge.
    pub(crate) fn open(bridge: &mut Bridge) -> Result<Self, NamespaceError> {
        let namespace = Namespace::create()?;
        bridge.connect(&namespace)?;
        namespace.ip(&[
            "addr",
            "add",
            &format!("{OWN_ADDRESS}/{BRIDGE_PREFIX}"),
            "brd",
            "+",
            "dev",
            CLIENT_INTERFACE,
        ])?;
        // An address that nobody was given yet must not answer: the server looks for such conflicts.
        namespace.answer_for_own_addresses_only()?;
        for network in POOL_NETWORKS {
            // The kernel lets sockets bind to whatever a local route covers.
            namespace.ip(&["route", "add", "local", network, "dev", CLIENT_INTERFACE])?;
            bridge.route(network, OWN_ADDRESS)?;
        }
        let desk = Arc::new(namespace.place().inside(Desk::open)?);
        Ok(Self { desk, namespace })
    }

    /// Where sockets of its machines have to be opened.
    pub(crate) fn place(&self) -> &Place {
        self.namespace.place()
    }

    /// A machine of the room. Machines of the same number are the same machine.
    pub(crate) fn machine<'a>(&self, number: u16, files: &'a Files) -> Machine<'a> {
        Machine::new(number, Arc::clone(&self.desk), files, BRIDGE_ADDRESS)
    }
}
