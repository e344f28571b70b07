//! The agent's own listener, for clients outside pods. The kernel vouches for none of them, and an address proves nothing:
//! [`crate::forward`] serves them in a session whose callers prove who they are, and in no other. To all that comes after,
//! they are one more pod together, one without a cgroup.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::pod::{ClientAddr, EnrolledPod, Inbound, OriginalDst, SessionId};

/// As many connections wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long it rests when a connection can't be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("--listen {address}: {source}: choose an address of this node and a port that nobody has")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// The listener, and who comes by it.
#[derive(Debug)]
pub struct Outside {
    listener: TcpListener,
    clients: Arc<EnrolledPod>,
}

impl Outside {
    /// Listens at `address`, in `session`. An agent that takes over from another listens beside it for a while.
    ///
    /// # Errors
    /// If the address can't be had.
    pub fn bind(address: SocketAddr, session: SessionId) -> Result<Self, ListenError> {
        let listen = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        let listener = listen().map_err(|source| ListenError { address, source })?;
        let clients = Arc::new(EnrolledPod::outside(session));
        Ok(Self { listener, clients })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system doesn't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Hands over what comes until `closing`, or until nobody takes it.
    pub async fn run(self, inbound: mpsc::Sender<Inbound>, closing: CancellationToken) {
        let serve = async {
            loop {
                let accepted = self.listener.accept().await;
                let admitted = accepted.and_then(|(stream, client)| self.admit(stream, client));
                match admitted {
                    Ok(one) => {
                        if inbound.send(one).await.is_err() {
                            return;
                        }
                    }
                    // Out of something; or the client has gone, and the next can wait for so long.
                    Err(error) => {
                        tracing::debug!(%error, "the agent's own listener rests");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = closing.cancelled() => {}
            () = serve => {}
        }
    }

    fn admit(&self, stream: TcpStream, client: SocketAddr) -> io::Result<Inbound> {
        stream.set_nodelay(true)?;
        Ok(Inbound {
            original_dst: OriginalDst(stream.local_addr()?),
            stream,
            pod: Arc::clone(&self.clients),
            client: ClientAddr(client),
        })
    }
}
