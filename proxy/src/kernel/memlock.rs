//! The limit on locked memory, which kernels before 5.11 charge maps to.

use aya::util::KernelVersion;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use tracing::debug;

/// Raises the limit where it matters, as far as it goes. Failing is no error: the loading will tell.
pub(super) fn raise() {
    if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 11, 0)) {
        return;
    }
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).or_else(|_| {
        let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
    });
    if let Err(error) = raised {
        debug!(%error, "could not raise RLIMIT_MEMLOCK");
    }
}
