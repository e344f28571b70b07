//! Network namespaces: knowing them, and entering one to make sockets. The only place that calls setns(2).

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::info;

use crate::{kernel::sys, pod::NetnsCookie};

/// As long as the namespace's `net.core.somaxconn` allows.
const BACKLOG: i32 = 4096;

/// What tells a namespace from every other that exists at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NetnsId {
    device: u64,
    inode: u64,
}

/// A namespace, kept alive by an open file.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    id: NetnsId,
}

/// A pod's listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    /// On 127.0.0.1.
    pub(super) v4: TcpListener,
    /// On `::1`, unless the namespace has no IPv6.
    pub(super) v6: Option<TcpListener>,
    /// The namespace that they are in, as the kernel programs know it.
    pub(super) cookie: NetnsCookie,
}

/// Why there are no listeners.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetnsError {
    #[error("no thread to enter the namespace with: {0}")]
    Thread(io::Error),
    #[error("the namespace can't be entered: {0}")]
    Enter(Errno),
    #[error("the namespace entered is another one")]
    Elsewhere,
    #[error("no listener on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("the listener's namespace has no cookie: {0}")]
    Cookie(io::Error),
    #[error("the listeners are in different namespaces")]
    Apart,
    #[error("the thread that entered the namespace panicked")]
    Panicked,
}

impl Netns {
    /// The namespace behind a path such as `/proc/1/ns/net`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            id: NetnsId {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            file,
        })
    }

    /// The namespace that a process's main thread is in.
    pub(super) fn of_process(pid: i32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    pub(super) fn id(&self) -> NetnsId {
        self.id
    }

    /// Makes listeners in it. Blocks.
    pub(super) fn listen(&self) -> Result<Listeners, NetnsError> {
        self.within(listeners)?
    }

    /// Does something in it, such as making a socket. Blocks.
    ///
    /// A thread of its own enters, does it, and ends: it never has to find its way back, and a panic takes nothing
    /// with it.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    Ok(work())
                })
                .map_err(NetnsError::Thread)?
                .join()
                .map_err(|_| NetnsError::Panicked)?
        })
    }

    /// For the calling thread, and for good.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that enters a namespace")]
    fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)?;
        match Self::open(Path::new("/proc/thread-self/ns/net")) {
            Ok(here) if here.id == self.id => Ok(()),
            _ => Err(NetnsError::Elsewhere),
        }
    }
}

/// In the calling thread's namespace.
fn listeners() -> Result<Listeners, NetnsError> {
    let v4 = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let v6 = match listener(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) {
        Ok(v6) => Some(v6),
        Err(NetnsError::Listen(_, error)) if lacks_ipv6(&error) => {
            info!("the namespace has no IPv6 loopback address: only IPv4 is redirected in it");
            None
        }
        Err(error) => return Err(error),
    };
    let cookie = sys::netns_cookie(&v4).map_err(NetnsError::Cookie)?;
    if let Some(v6) = &v6
        && sys::netns_cookie(v6).map_err(NetnsError::Cookie)? != cookie
    {
        return Err(NetnsError::Apart);
    }
    Ok(Listeners { v4, v6, cookie })
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
    )
}

fn listener(address: SocketAddr) -> Result<TcpListener, NetnsError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error| NetnsError::Listen(address, error))
}
