//! An inotify instance on tokio's reactor. Nothing here decides anything.
#![expect(
    unsafe_code,
    reason = "tokio has no safe way to register a descriptor that isn't a socket or pipe"
)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
};

use nix::sys::inotify::{InitFlags, Inotify, InotifyEvent};
use tokio::io::{Interest, unix::AsyncFd};

/// Owns the descriptor; it is handed out by reference only.
#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The instance.
#[derive(Debug)]
pub(super) struct Notifier(AsyncFd<Descriptor>);

impl Notifier {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: `Descriptor` owns a valid descriptor, and nothing replaces or closes it while `AsyncFd` has it.
        let registered = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// To add and remove watches.
    pub(super) fn inotify(&self) -> &Inotify {
        &self.0.get_ref().0
    }

    /// The next events. Losing the future loses none.
    pub(super) async fn events(&self) -> io::Result<Vec<InotifyEvent>> {
        self.0
            .async_io(Interest::READABLE, |descriptor| Ok(descriptor.0.read_events()?))
            .await
    }
}
