//! What the agent takes from itself before its first thread is made, so that whoever should come to steer it has less:
//! memory that nobody reads, the capabilities that it works with and no more, no way to other programs, and the system
//! calls of [`syscalls`]. `SECURITY.md` says what that is good for, and what it isn't.

pub mod syscalls;

use std::{io, net::SocketAddr};

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use self::syscalls::FilterError;
use crate::cli::AgentOptions;

/// What the agent works with for as long as it lives. `deploy/` grants these and no others: a capability of a thread
/// can't be given up for all threads later on, and all four are used whenever a pod comes.
pub const KEPT: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE);

/// The first port that anybody may listen on, as the kernel has it unless told otherwise.
const UNPRIVILEGED_PORTS: u16 = 1024;

/// What couldn't be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Memory stays readable to others.
    #[error("this process's memory can't be kept from others ({0}): let it call prctl and setrlimit")]
    Memory(#[source] io::Error),
    /// The capabilities.
    #[error("capabilities that aren't needed can't be given up ({0}): let the agent call capset and prctl")]
    Capabilities(#[source] io::Error),
    /// The system calls.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Confines the calling thread, and every thread that it makes from now on. Before the first secret is read.
///
/// # Errors
/// What can't be given up. The agent doesn't start then: whoever relies on it being confined would be wrong.
pub fn confine(options: &AgentOptions) -> Result<(), ConfineError> {
    guard_memory().map_err(|error| ConfineError::Memory(error.into()))?;
    drop_capabilities(kept(options)).map_err(ConfineError::Capabilities)?;
    syscalls::forbid()?;
    Ok(())
}

/// What the options ask for besides [`KEPT`].
fn kept(options: &AgentOptions) -> CapabilitySet {
    let is_privileged = |address: &SocketAddr| (1..UNPRIVILEGED_PORTS).contains(&address.port());
    let listened_at = options.listen.listen;
    if is_privileged(&options.admin_address) || listened_at.as_ref().is_some_and(is_privileged) {
        KEPT.union(CapabilitySet::NET_BIND_SERVICE)
    } else {
        KEPT
    }
}

/// No core dump holds a secret, and nobody of the same user reads one from memory (invariant 3). And as many descriptors
/// as the system grants, for two go with every connection.
fn guard_memory() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Gives up all of the calling thread's capabilities but `kept`, from every set, for good.
///
/// # Errors
/// What the kernel says. The bounding set stays where there is no `CAP_SETPCAP`: then somebody has narrowed it already,
/// as container runtimes do.
pub fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let held = capabilities(None)?;
    clear_ambient_capability_set()?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            // An error: this kernel has no more.
            let Ok(there) = capability_is_in_bounding_set(one) else {
                break;
            };
            if there && !kept.contains(one) {
                remove_capability_from_bounding_set(one)?;
            }
        }
    }
    let left = held.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
