//! Which requests are recorded, and which aren't carried because they can't be. A plain decision over plain data.

use super::about::{PORT_FORWARD, Target};
use crate::{
    request_info::{Reading, RequestInfo},
    status::Refusal,
};

/// How a session's streams are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// What can't be recorded isn't carried, and ends where its recording does.
    pub required: bool,
    /// What is typed is recorded as well.
    pub stdin: bool,
}

/// What of a request is to be recorded. `upgrades` says that it asks for another protocol.
///
/// Where recording is required, what could be an exec by another way is refused: upgrades that are neither recorded nor
/// known to be something else, all of `nodes/proxy`, behind which the kubelet runs commands as well, and requests that can be
/// read in more than one way.
///
/// # Errors
/// What to refuse it with.
pub fn judge(terms: Option<Terms>, reading: &Reading, upgrades: bool) -> Result<Option<Target>, Refusal> {
    let Some(terms) = terms else {
        return Ok(None);
    };
    let refused = |is_refused: bool| {
        if terms.required && is_refused {
            Err(Refusal::NotRecordable)
        } else {
            Ok(None)
        }
    };
    let request = match reading {
        Ok(RequestInfo::Resource(request)) => request,
        Ok(RequestInfo::NonResource) => return refused(upgrades),
        Err(_) => return refused(true),
    };
    let is_core = request.api_group.is_empty();
    match (request.resource.as_str(), request.subresource.as_str()) {
        ("pods", subresource @ ("exec" | "attach" | PORT_FORWARD)) if is_core && upgrades => Ok(Some(Target {
            subresource: match subresource {
                "exec" => "exec",
                "attach" => "attach",
                _ => PORT_FORWARD,
            },
            namespace: request.namespace.clone(),
            pod: request.name.clone(),
        })),
        ("nodes", subresource) if is_core && (subresource == "proxy" || request.verb == "proxy") => refused(true),
        ("pods" | "services", "proxy") if is_core => Ok(None),
        _ => refused(upgrades),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const EXEC: &str = "/api/v1/namespaces/prod/pods/web-0/exec?command=sh";

    fn judged(required: bool, target: &str, upgrades: bool) -> Result<Option<&'static str>, Refusal> {
        let terms = Terms { required, stdin: false };
        let reading = RequestInfo::parse(&http::Method::GET, &target.parse().unwrap());
        judge(Some(terms), &reading, upgrades).map(|found| {
            found.map(|target| {
                assert_eq!((&*target.namespace, &*target.pod), ("prod", "web-0"));
                target.subresource
            })
        })
    }

    #[rstest]
    #[case::exec(EXEC, Some("exec"))]
    #[case::attach("/api/v1/namespaces/prod/pods/web-0/attach?stdout=1", Some("attach"))]
    #[case::escaped("/api/v1/namespaces/prod/pods/web-0/%65xec", Some("exec"))]
    #[case::port_forward("/api/v1/namespaces/prod/pods/web-0/portforward", Some("portforward"))]
    #[case::of_a_pod("/api/v1/namespaces/prod/pods/web-0/proxy/socket", None)]
    #[case::of_a_service("/api/v1/namespaces/prod/services/web/proxy/socket", None)]
    fn is_recorded_or_something_else(#[case] target: &str, #[case] found: Option<&'static str>) {
        assert_eq!(judged(true, target, true), Ok(found));
        assert_eq!(judged(false, target, true), Ok(found));
    }

    #[rstest]
    #[case::by_the_kubelet("/api/v1/nodes/node-1/proxy/exec/prod/web-0/web?command=sh", true)]
    #[case::run_by_the_kubelet("/api/v1/nodes/node-1/proxy/run/prod/web-0/web?cmd=sh", false)]
    #[case::by_the_old_way("/api/v1/proxy/nodes/node-1/run/prod/web-0/web?cmd=sh", false)]
    #[case::of_another_group("/apis/example.org/v1/namespaces/prod/pods/web-0/exec", true)]
    #[case::no_resource("/exec", true)]
    #[case::of_whatever("/api/v1/namespaces/prod/pods/web-0/log", true)]
    #[case::in_two_ways("/api/v1/namespaces/prod/pods/web-0//exec", false)]
    fn what_may_be_one_by_another_way_is_refused_where_it_must_be(#[case] target: &str, #[case] upgrades: bool) {
        assert_eq!(judged(true, target, upgrades), Err(Refusal::NotRecordable));
        assert_eq!(judged(false, target, upgrades), Ok(None));
    }

    #[rstest]
    #[case::list("/api/v1/pods")]
    #[case::no_stream(EXEC)]
    #[case::discovery("/apis")]
    fn what_is_no_stream_is_carried(#[case] target: &str) {
        assert_eq!(judged(true, target, false), Ok(None));
    }

    #[test]
    fn without_terms_all_is_carried() {
        for target in [EXEC, "/api/v1/nodes/node-1/proxy/run", "//"] {
            let reading = RequestInfo::parse(&http::Method::GET, &target.parse().unwrap());
            assert_eq!(judge(None, &reading, true), Ok(None));
        }
    }
}
