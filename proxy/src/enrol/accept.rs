//! The accept loops: take the kernel's record of each connection, and hand on those it vouches for.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use nix::errno::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::refusals::{Refusal, Refusals};
use crate::{
    kernel::{Flow, Kernel},
    limits::descriptors,
    pod::{CgroupId, ClientAddr, EnrolledPod, Inbound, NetnsCookie, OriginalDst},
};

/// How long a listener rests when the process or the machine is out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// What all accept loops share.
#[derive(Debug, Clone)]
pub(super) struct Acceptor {
    pub(super) kernel: Arc<Kernel>,
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) refusals: Arc<Refusals>,
    /// Cancelled when the agent shuts down: listeners close, connections stay.
    pub(super) closing: CancellationToken,
}

/// A listener's place: whose it is, and where.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) pod: Arc<EnrolledPod>,
    pub(super) enrolment: u64,
    pub(super) netns: NetnsCookie,
    pub(super) port: u16,
}

impl Acceptor {
    /// Accepts until the pod is gone or the agent shuts down.
    pub(super) async fn run(self, listener: TcpListener, post: Post) {
        let serve = async {
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => {
                        if let Some(inbound) = self.admit(stream, client, &post)
                            && self.inbound.send(inbound).await.is_err()
                        {
                            debug!("nobody takes connections any more");
                            return;
                        }
                    }
                    Err(error) if is_shortage(&error) => {
                        warn!(%error, pod = %post.pod.wanted.name, "a listener rests");
                        sleep(PAUSE).await;
                    }
                    // The client has gone; the next one waits.
                    Err(error) => debug!(%error, "accept"),
                }
            }
        };
        tokio::select! {
            () = post.pod.gone.cancelled() => {}
            () = self.closing.cancelled() => {}
            () = serve => {}
        }
    }

    /// What the client dialled, where the kernel vouches for it.
    fn vouched(&self, stream: &TcpStream, client: ClientAddr, post: &Post) -> Result<OriginalDst, Refusal> {
        // Before, so that the record of another one isn't taken; and after, for it may come meanwhile.
        if !is_open(stream) {
            return Err(Refusal::Reset);
        }
        let flow = self.kernel.take_flow(post.netns, client, post.port).map_err(|error| {
            error!(%error, "a connection is refused");
            Refusal::Unreadable
        })?;
        // Its record is taken in any case, and its place in the table free again.
        if descriptors::is_reserved(stream) {
            return Err(Refusal::OpenFiles);
        }
        if !is_open(stream) {
            return Err(Refusal::Reset);
        }
        judge(flow, post.pod.cgroup_id, post.enrolment)
    }

    fn admit(&self, stream: TcpStream, client: SocketAddr, post: &Post) -> Option<Inbound> {
        let client = ClientAddr(client);
        match self.vouched(&stream, client, post) {
            Ok(original_dst) => {
                // Not worth a connection: it only costs time.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "TCP_NODELAY");
                }
                Some(Inbound {
                    stream,
                    pod: Arc::clone(&post.pod),
                    original_dst,
                    client,
                })
            }
            Err(reason) => {
                self.refusals.count(reason);
                debug!(reason = reason.name(), client = %client.0, pod = %post.pod.wanted.name, "a connection is refused");
                None
            }
        }
    }
}

/// Whether a connection is still one. Its client may have reset it while it waited here, and its address be another
/// client's by now: what it sent before is still to be read, and must not be taken for what the other one sends.
fn is_open(stream: &TcpStream) -> bool {
    stream.peer_addr().is_ok()
}

/// Whether the kernel vouches for a connection at this pod's listener.
fn judge(flow: Option<Flow>, pod: CgroupId, enrolment: u64) -> Result<OriginalDst, Refusal> {
    let flow = flow.ok_or(Refusal::NoRecord)?;
    if flow.cgroup_id != pod || flow.enrolment != enrolment {
        return Err(Refusal::OtherPod);
    }
    if flow.is_stale() {
        return Err(Refusal::Stale);
    }
    Ok(flow.original_dst)
}

/// Errors that stay until something is freed: accepting on would spin.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const POD: CgroupId = CgroupId(7);

    fn flow(cgroup_id: u64, enrolment: u64, seconds: u64) -> Flow {
        Flow {
            cgroup_id: CgroupId(cgroup_id),
            enrolment,
            original_dst: OriginalDst(([10, 96, 0, 1], 443).into()),
            age: Duration::from_secs(seconds),
        }
    }

    #[rstest]
    #[case(Some(flow(7, 3, 0)), Ok(()))]
    #[case(Some(flow(7, 3, 60)), Ok(()))]
    #[case(Some(flow(7, 3, 61)), Err(Refusal::Stale))]
    #[case(Some(flow(8, 3, 0)), Err(Refusal::OtherPod))]
    #[case(Some(flow(7, 2, 0)), Err(Refusal::OtherPod))]
    #[case(None, Err(Refusal::NoRecord))]
    fn judges(#[case] flow: Option<Flow>, #[case] expected: Result<(), Refusal>) {
        assert_eq!(judge(flow, POD, 3).map(drop), expected);
    }
}
