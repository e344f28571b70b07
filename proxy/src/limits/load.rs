//! What one pod has open, counted for as long as it is. The counts go with the pod.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;
use tokio::sync::{Notify, Semaphore};

use super::Limits;
use crate::{
    metrics::Limit,
    pod::EnrolledPod,
    request_info::{Reading, RequestInfo, ResourceRequest},
};

/// A pod with no more than so much open isn't made to give way when memory is used up: it isn't what fills it.
pub(super) const SPARED: usize = 64;

/// A pod's counts, one number each: whoever comes and goes touches nothing else.
#[derive(Debug, Default)]
pub struct Load {
    connections: AtomicUsize,
    requests: AtomicUsize,
    long_running: AtomicUsize,
    /// Made at the first connection, when the limit is known.
    handshakes: OnceLock<Semaphore>,
    /// All that is open is to end, for the memory is needed.
    pub(crate) shed: Notify,
    /// Told whenever the pod opens something beyond what it is spared for.
    pub(super) crowding: OnceLock<Arc<Notify>>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connection,
    Request,
    LongRunning,
}

/// A place among what a pod may have open, given back on drop.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub struct Place {
    pod: Arc<EnrolledPod>,
    kind: Kind,
}

impl Load {
    fn count(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Request => &self.requests,
            Kind::LongRunning => &self.long_running,
        }
    }

    /// Everything that is open: connections, requests, and what runs long.
    #[must_use]
    pub fn total(&self) -> usize {
        [&self.connections, &self.requests, &self.long_running]
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// The pod's places for handshakes.
    pub fn handshakes(&self, limits: &Limits) -> &Semaphore {
        let places = limits.max_handshakes_per_pod as usize;
        self.handshakes.get_or_init(|| Semaphore::new(places))
    }
}

impl Place {
    /// Whether it is the pod's only one of its kind.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.pod.load.count(self.kind).load(Ordering::Relaxed) == 1
    }

    /// Whether it is for what may stay open for long.
    #[must_use]
    pub fn runs_long(&self) -> bool {
        self.kind == Kind::LongRunning
    }

    /// Counts a connection.
    ///
    /// # Errors
    /// The limit that the pod is at.
    pub fn for_connection(pod: &Arc<EnrolledPod>, limits: &Limits) -> Result<Self, Limit> {
        Self::take(pod, Kind::Connection, limits.max_connections_per_pod).ok_or(Limit::ConnectionsPerPod)
    }

    /// Counts a request, until its answer or its upgraded stream has ended.
    ///
    /// # Errors
    /// The limit that the pod is at.
    pub fn for_request<B>(
        pod: &Arc<EnrolledPod>,
        request: &Request<B>,
        reading: &Reading,
        limits: &Limits,
    ) -> Result<Self, Limit> {
        if runs_long(request, reading) {
            Self::take(pod, Kind::LongRunning, limits.max_long_running_per_pod).ok_or(Limit::LongRunningPerPod)
        } else {
            Self::take(pod, Kind::Request, limits.max_requests_per_pod).ok_or(Limit::RequestsPerPod)
        }
    }

    fn take(pod: &Arc<EnrolledPod>, kind: Kind, limit: u32) -> Option<Self> {
        let count = pod.load.count(kind);
        if count.fetch_add(1, Ordering::Relaxed) >= limit as usize {
            count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if pod.load.total() > SPARED
            && let Some(crowding) = pod.load.crowding.get()
        {
            crowding.notify_one();
        }
        Some(Self {
            pod: Arc::clone(pod),
            kind,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pod.load.count(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a request may stay open for long, as kube-apiserver tells it for its own limits
/// (`k8s.io/kubernetes/cmd/kube-apiserver/app/options`, "long-running"), but for logs that aren't followed. One that can be
/// read in more than one way isn't: it counts under the lower limit.
fn runs_long<B>(request: &Request<B>, reading: &Reading) -> bool {
    if request.headers().contains_key(http::header::UPGRADE) {
        return true;
    }
    let Ok(RequestInfo::Resource(ResourceRequest { verb, subresource, .. })) = reading else {
        return false;
    };
    match subresource.as_str() {
        "exec" | "attach" | "portforward" | "proxy" => true,
        "log" => follows(request.uri().query().unwrap_or_default()),
        _ => matches!(*verb, "watch" | "proxy"),
    }
}

/// As `strconv.ParseBool` reads `follow`; anything else is refused by the API server.
fn follows(query: &str) -> bool {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("follow="))
        .any(|value| matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE"))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use rstest::rstest;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::pod::{CgroupId, WantedPod};

    fn pod() -> Arc<EnrolledPod> {
        Arc::new(EnrolledPod {
            wanted: WantedPod {
                cgroup: "pod".into(),
                name: "a/b".into(),
                session: "a/s".parse().unwrap(),
                uid: None,
                service_account: None,
            },
            cgroup_id: CgroupId(1),
            gone: CancellationToken::new(),
            load: Load::default(),
            in_audit: crate::audit::PodText::default(),
        })
    }

    fn read(request: &Request<()>) -> Reading {
        RequestInfo::parse(request.method(), request.uri())
    }

    fn request(method: Method, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    #[rstest]
    #[case("/api/v1/namespaces/prod/pods?watch=true", true)]
    #[case("/api/v1/watch/pods", true)]
    #[case("/api/v1/namespaces/prod/pods/a/log?follow=true", true)]
    #[case("/api/v1/namespaces/prod/pods/a/exec?command=sh", true)]
    #[case("/api/v1/namespaces/prod/pods/a/portforward", true)]
    #[case("/api/v1/namespaces/prod/services/a/proxy/x", true)]
    #[case("/api/v1/namespaces/prod/pods/a/log", false)]
    #[case("/api/v1/namespaces/prod/pods/a/log?follow=false", false)]
    #[case("/api/v1/namespaces/prod/pods", false)]
    #[case("/api/v1/namespaces/prod//pods?watch=true", false)]
    #[case("/healthz", false)]
    fn what_runs_long(#[case] uri: &str, #[case] expected: bool) {
        let request = request(Method::GET, uri);
        assert_eq!(runs_long(&request, &read(&request)), expected, "{uri}");
    }

    #[test]
    fn places_are_a_pods_own_and_come_back() {
        let limits = Limits {
            max_requests_per_pod: 2,
            max_long_running_per_pod: 1,
            ..Limits::default()
        };
        let (one, other) = (pod(), pod());
        let take = |pod, uri| {
            let request = request(Method::GET, uri);
            Place::for_request(pod, &request, &read(&request), &limits)
        };
        let (first, second) = (take(&one, "/api").unwrap(), take(&one, "/api").unwrap());
        assert_eq!(take(&one, "/api").unwrap_err(), Limit::RequestsPerPod);
        let watching = take(&one, "/api/v1/pods?watch=1").unwrap();
        assert_eq!(
            take(&one, "/api/v1/pods?watch=1").unwrap_err(),
            Limit::LongRunningPerPod
        );
        drop(take(&other, "/api").unwrap());
        drop(first);
        drop(take(&one, "/api").unwrap());
        drop((second, watching));
        assert_eq!((one.load.total(), other.load.total()), (0, 0));
    }

    #[test]
    fn connections_are_counted_apart() {
        let limits = Limits {
            max_connections_per_pod: 1,
            ..Limits::default()
        };
        let pod = pod();
        let open = Place::for_connection(&pod, &limits).unwrap();
        assert_eq!(
            Place::for_connection(&pod, &limits).unwrap_err(),
            Limit::ConnectionsPerPod
        );
        drop(open);
        drop(Place::for_connection(&pod, &limits).unwrap());
    }
}
