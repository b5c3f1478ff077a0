//! Copies of images: whose identity a restored machine has, and what it is called then.
//!
//! Invariant: a job says what the machine will be called before it begins, so that operators see it and an
//! interrupted restore ends with the same name.

use backup::identity::{HostName, Identity, name_by_address};
use backup::manifest::Manifest;
use backup::plan::Choices;
use protocol::api::MachineView;

use crate::machines::Machines;

/// A choice that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name {name} is for a machine with an identity of its own, and here the identity is kept; ask for a new one as well"
)]
pub(crate) struct NameWithoutIdentity {
    name: HostName,
}

/// The choices with everything decided about the identity: `usual` where nothing was asked for, and a name.
///
/// # Errors
/// [`NameWithoutIdentity`].
pub(crate) fn settle(
    mut choices: Choices,
    usual: Identity,
    machine: &MachineView,
    machines: &Machines,
    manifest: Option<&Manifest>,
) -> Result<Choices, NameWithoutIdentity> {
    let identity = choices.identity.unwrap_or(usual);
    if identity == Identity::Kept {
        // What is usual is not written down: older agents take the job, too.
        choices.identity = None;
        return match choices.host_name {
            Some(name) => Err(NameWithoutIdentity { name }),
            None => Ok(choices),
        };
    }
    choices.identity = Some(identity);
    choices.host_name = choices
        .host_name
        .or_else(|| HostName::try_from(machines.host_name(&machine.id)?).ok())
        .or_else(|| {
            let system = manifest?.system.as_ref()?;
            let address = machine.inventory.identity.macs.first()?;
            name_by_address(system.host_name.as_deref()?, address)
        });
    Ok(choices)
}
