//! `understudy gate`: holds a pod back until its connections to the API server are intercepted. For an init container: it
//! needs no file, no capability, and no particular user.
//!
//! It dials the API server as the workload will, and looks which way the kernel turned the connection. What isn't
//! turned is closed again with nothing sent.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout},
};
use tracing::info;

use crate::environment::{ApiServerUrl, EnvironmentError, SERVICE_PORT_HTTPS};

/// The variable with the API server's first port, which is its TLS port.
const SERVICE_PORT: &str = "KUBERNETES_SERVICE_PORT";
/// Between two dials.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one dial may take.
const DIAL: Duration = Duration::from_secs(2);

/// Why a pod is held back for good.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The kubelet's variables.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Such a dial looks the same, turned or not.
    #[error("{0} is a loopback address: the gate can't tell whether a connection to it is intercepted")]
    Loopback(SocketAddr),
    /// The time is up.
    #[error("after {}s, connections to {target} are not intercepted: {last}", .patience.as_secs())]
    TimedOut {
        /// What was dialled.
        target: String,
        /// How long was waited.
        patience: Duration,
        /// What the last dial showed.
        last: Dial,
    },
}

/// What a dial showed.
#[derive(Debug, thiserror::Error)]
pub enum Dial {
    /// It arrived where it was meant to.
    #[error(
        "they go straight to the API server; see that the pod has the label understudy.dev/session, that the agent runs \
         on its node, and what `understudy check` says there"
    )]
    Straight,
    /// The kernel programs refuse it: the pod is tagged, and not enrolled yet.
    #[error(
        "the pod is known but its connections are refused; see the log of the agent on its node, and what `understudy \
         check` says there"
    )]
    Refused,
    /// It came to nothing.
    #[error("no connection comes about ({0}); see that the agent runs on the pod's node, and that the network is up")]
    Failed(io::Error),
}

/// Waits until connections to the API server that the environment names are intercepted.
///
/// # Errors
/// Where they aren't by the end of `patience`, and what to do.
pub async fn wait(variable: impl Fn(&str) -> Option<String>, patience: Duration) -> Result<(), GateError> {
    let url = ApiServerUrl::from_environment(|name| {
        variable(name).or_else(|| (name == SERVICE_PORT_HTTPS).then(|| variable(SERVICE_PORT)).flatten())
    })?
    .to_string();
    let target = url.trim_start_matches("https://");
    let began = Instant::now();
    loop {
        let Some(last) = dial(target).await? else {
            info!(api_server = target, after = ?began.elapsed(), "connections are intercepted");
            return Ok(());
        };
        if began.elapsed() + PAUSE > patience {
            return Err(GateError::TimedOut {
                target: target.to_owned(),
                patience,
                last,
            });
        }
        sleep(PAUSE).await;
    }
}

/// None where the kernel turned it.
async fn dial(target: &str) -> Result<Option<Dial>, GateError> {
    let address = match lookup_host(target).await.map(|mut found| found.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return Ok(Some(Dial::Failed(io::ErrorKind::NotFound.into()))),
        Err(error) => return Ok(Some(Dial::Failed(error))),
    };
    if is_loopback(address) {
        return Err(GateError::Loopback(address));
    }
    let connected = timeout(DIAL, TcpStream::connect(address)).await;
    let local = connected
        .map_err(io::Error::from)
        .flatten()
        .and_then(|stream| stream.local_addr());
    Ok(judge(local))
}

/// From a connection's own end. The programs turn what they turn to the loopback, from where the kernel then dials.
fn judge(local: io::Result<SocketAddr>) -> Option<Dial> {
    match local {
        Ok(local) if is_loopback(local) => None,
        Ok(_) => Some(Dial::Straight),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(Dial::Refused),
        Err(error) => Some(Dial::Failed(error)),
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Ok("127.0.0.1:5000"), None)]
    #[case(Ok("[::1]:5000"), None)]
    #[case(Ok("[::ffff:127.0.0.1]:5000"), None)]
    #[case(Ok("10.0.0.7:5000"), Some("straight to the API server"))]
    #[case(Ok("[fd00::7]:5000"), Some("understudy.dev/session"))]
    #[case(Err(io::ErrorKind::PermissionDenied), Some("refused"))]
    #[case(Err(io::ErrorKind::ConnectionRefused), Some("no connection comes about"))]
    fn judges(#[case] local: Result<&str, io::ErrorKind>, #[case] says: Option<&str>) {
        let local = local.map(|local| local.parse().unwrap()).map_err(io::Error::from);
        let text = judge(local).map(|dial| dial.to_string());
        match says {
            None => assert_eq!(text, None),
            Some(says) => assert!(text.as_ref().is_some_and(|text| text.contains(says)), "{text:?}"),
        }
    }

    fn environment(host: &str, port: &'static str) -> impl Fn(&str) -> Option<String> {
        let variables = HashMap::from([("KUBERNETES_SERVICE_HOST", host.to_owned()), (port, "443".to_owned())]);
        move |name| variables.get(name).cloned()
    }

    #[tokio::test]
    async fn either_port_will_do_and_a_loopback_address_will_not() {
        for port in [SERVICE_PORT, SERVICE_PORT_HTTPS] {
            let held = wait(environment("127.0.0.1", port), Duration::ZERO).await;
            assert!(matches!(held, Err(GateError::Loopback(_))), "{held:?}");
        }
        let missing = wait(|_| None, Duration::ZERO).await;
        assert!(matches!(missing, Err(GateError::Environment(_))), "{missing:?}");
    }
}
