//! Where operators ask the agent: its socket in the run directory and, where it is told so, its loopback address.

use std::{net::SocketAddr, path::Path, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Readiness,
    audit::tail::Tail,
    clock::Clock,
    cluster::rights::OwnRights,
    enrol::PodStatus,
    kernel::Kernel,
    metrics::Metrics,
    operator::{Answers, Operator, OperatorError, Socket, SocketError, access::Access, listen},
    sessions::store::SessionLookup,
    trust::serving::ServingCert,
};

/// The loopback address, where there is to be one. Bound early: that it can't be had ends a start that has done nothing.
pub(super) struct Counter(Option<TcpListener>);

impl Counter {
    pub(super) async fn bind(address: Option<SocketAddr>) -> Result<Self, OperatorError> {
        Ok(Self(match address {
            Some(address) => Some(listen(address).await?),
            None => None,
        }))
    }
}

/// All that is answered from.
pub(super) struct Desk {
    pub(super) node: Arc<str>,
    pub(super) readiness: Readiness,
    pub(super) sessions: SessionLookup,
    pub(super) pods: watch::Receiver<Arc<[PodStatus]>>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) certificate: ServingCert,
    pub(super) metrics: Metrics,
    pub(super) own_rights: Option<OwnRights>,
    pub(super) tail: Tail,
    pub(super) clock: Clock,
    /// Has the API server say who may ask, and what the agent may.
    pub(super) client: kube::Client,
}

impl Desk {
    /// Answers from now on, in place of an earlier agent, until `stop` is cancelled.
    pub(super) fn open(self, run_dir: &Path, counter: Counter, stop: &CancellationToken) -> Result<(), SocketError> {
        let socket = Socket::bind(run_dir)?;
        let access = Access::new(self.client.clone(), Arc::clone(&self.node), self.clock.clone());
        let operator = Operator::new(Answers {
            node: self.node,
            readiness: self.readiness,
            sessions: self.sessions,
            pods: self.pods,
            kernel: self.kernel,
            certificate: self.certificate,
            metrics: self.metrics,
            own_rights: self.own_rights,
            client: Some(self.client),
            tail: self.tail,
            clock: self.clock,
        });
        tokio::spawn(Arc::clone(&operator).serve_socket(socket, stop.clone()));
        if let Some(listener) = counter.0 {
            tokio::spawn(operator.serve_tcp(listener, access, stop.clone()));
        }
        Ok(())
    }
}
