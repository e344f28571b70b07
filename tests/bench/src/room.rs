//! Room for many connections: the limit on open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Why there isn't room for as many connections as were asked for.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The limit can't be raised so far.
    #[error(
        "this needs {needed} open files, and the hard limit is {hard}: raise it (`ulimit -Hn {needed}`, as root), or \
         give CAP_SYS_RESOURCE"
    )]
    TooFew {
        /// How many are needed.
        needed: u64,
        /// How many may be had.
        hard: u64,
    },
    /// The system refuses.
    #[error("the limit on open files: {0}")]
    System(#[from] nix::Error),
}

/// Files that are open beside the connections.
const BESIDE: u64 = 64;

/// Raises the limit on open files as far as may be, so that `connections` fit; never lowers it.
///
/// # Errors
/// It can't be raised so far.
pub fn make_for(connections: u64) -> Result<(), RoomError> {
    let needed = connections.saturating_add(BESIDE);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.max(needed);
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|_| RoomError::TooFew { needed, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_never_lowered() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        make_for(1).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn more_than_the_system_has_is_refused_with_what_to_do() {
        let message = make_for(u64::MAX / 2).unwrap_err().to_string();
        assert!(message.contains("ulimit -Hn"), "{message}");
    }
}
