//! TCP connections that are open, by the kernel's socket diagnostics (`sock_diag(7)`): finding and ending them.

use std::{
    collections::{BTreeSet, HashSet},
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use nix::{errno::Errno, libc};
use socket2::{Domain, Protocol, Socket, Type};

use super::diag::{self, Answer, TcpSocket};
use crate::pod::CgroupId;

/// The kernel answers at once; this is against waiting for ever for what it doesn't say.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a list is asked for again that changed while it was made.
const LISTINGS: usize = 3;

/// Why connections can't be found or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    /// The kernel can list them, and no more.
    #[error("the kernel was built without CONFIG_INET_DIAG_DESTROY: run one that has it")]
    Unsupported,
    /// The kernel can't list them, or doesn't let us.
    #[error("the kernel's socket diagnostics (CONFIG_INET_DIAG, CAP_NET_ADMIN): {0}")]
    Diagnostics(io::Error),
}

/// Ends the connections to `api_servers` that processes of `cgroups` opened, in the calling thread's namespace,
/// and says how many.
///
/// # Errors
/// Where the kernel can't, or not all of it.
pub(crate) fn end_connections(
    cgroups: &HashSet<CgroupId>,
    api_servers: &BTreeSet<SocketAddr>,
) -> Result<usize, TcpError> {
    let condemned = |socket: &TcpSocket| {
        let ours = socket.cgroup.is_some_and(|id| cgroups.contains(&CgroupId(id)));
        ours && api_servers.contains(&socket.peer)
    };
    let channel = Channel::open().map_err(TcpError::Diagnostics)?;
    let mut ended = 0;
    for family in diag::FAMILIES {
        for socket in channel.list(family)?.iter().filter(|socket| condemned(socket)) {
            ended += usize::from(channel.destroy(socket)?);
        }
    }
    Ok(ended)
}

/// Ends a connection of this process to itself, to see whether it can be done.
pub(super) fn try_ending() -> Result<(), TcpError> {
    let dial = || -> io::Result<(TcpListener, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok((listener, stream))
    };
    let (listener, stream) = dial().map_err(TcpError::Diagnostics)?;
    let peer = listener.local_addr().map_err(TcpError::Diagnostics)?;
    let channel = Channel::open().map_err(TcpError::Diagnostics)?;
    for family in diag::FAMILIES {
        for socket in channel.list(family)?.iter().filter(|socket| socket.peer == peer) {
            channel.destroy(socket)?;
        }
    }
    match stream.take_error() {
        Ok(Some(_)) => Ok(()),
        _ => Err(TcpError::Diagnostics(io::Error::other("a connection outlived its end"))),
    }
}

/// A netlink socket of the namespace that it was made in.
struct Channel(Socket);

impl Channel {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::DGRAM,
            Some(Protocol::from(diag::PROTOCOL)),
        )?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    fn answers(&self) -> Result<Vec<Answer>, TcpError> {
        let mut buffer = vec![0; 1 << 15];
        let length = (&self.0).read(&mut buffer).map_err(TcpError::Diagnostics)?;
        Ok(diag::answers(buffer.get(..length).unwrap_or_default()))
    }

    fn list(&self, family: u8) -> Result<Vec<TcpSocket>, TcpError> {
        let mut sockets = Vec::new();
        for _ in 0..LISTINGS {
            let complete = self.list_once(family, &mut sockets)?;
            if complete {
                break;
            }
        }
        Ok(sockets)
    }

    /// False where the list may lack a socket. One that is listed twice is ended once.
    fn list_once(&self, family: u8, sockets: &mut Vec<TcpSocket>) -> Result<bool, TcpError> {
        self.0.send(&diag::dump(family)).map_err(TcpError::Diagnostics)?;
        let mut complete = true;
        loop {
            for answer in self.answers()? {
                match answer {
                    Answer::Socket(socket) => sockets.push(socket),
                    Answer::Interrupted => complete = false,
                    Answer::Done => return Ok(complete),
                    // A kernel without IPv6 has none of its sockets.
                    Answer::Status(code) if Errno::from_raw(code) == Errno::ENOENT => return Ok(complete),
                    Answer::Status(code) => return Err(TcpError::Diagnostics(io::Error::from_raw_os_error(code))),
                }
            }
        }
    }

    /// False where the socket has gone by itself.
    fn destroy(&self, socket: &TcpSocket) -> Result<bool, TcpError> {
        self.0.send(&diag::destroy(socket)).map_err(TcpError::Diagnostics)?;
        loop {
            for answer in self.answers()? {
                let Answer::Status(code) = answer else { continue };
                return match Errno::from_raw(code) {
                    _ if code == 0 => Ok(true),
                    Errno::ENOENT => Ok(false),
                    Errno::EOPNOTSUPP => Err(TcpError::Unsupported),
                    _ => Err(TcpError::Diagnostics(io::Error::from_raw_os_error(code))),
                };
            }
        }
    }
}
