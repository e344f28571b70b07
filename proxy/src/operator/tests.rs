mod live;

use std::path::Path;

use http::HeaderValue;
use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
};

use super::{
    access::audience,
    view::{KernelView, PodStateView, SessionsView, What, WhyView},
    *,
};
use crate::{
    admin::Readiness,
    audit::Audit,
    caller::Prover,
    clock::Clock,
    cluster::mock::{Answer, Mock},
    enrol::{PodState, PodStatus},
    metrics::Metrics,
    pod::CgroupId,
    sessions::{
        Declared,
        live::Credential,
        spec::{SessionSpec, SpecError},
        store::{Outfitter, Store},
    },
    tools::ask::{AskError, ask, ask_socket, pod_path},
    trust::serving::self_signed_cert,
    upstream::Upstream,
};

/// Its sessions are all refused: none comes into force.
struct Nothing;

impl Outfitter for Nothing {
    fn upstream(&self, _: &SessionSpec) -> Upstream {
        unreachable!()
    }
    fn own_token(&self) -> Credential {
        unreachable!()
    }
    fn prover(&self, _: &SessionSpec) -> Arc<Prover> {
        unreachable!()
    }
    async fn token_file(&self, _: &Path) -> Credential {
        unreachable!()
    }
    fn secret_token(&self, _: &str, _: &str, _: &str) -> Credential {
        unreachable!()
    }
}

struct Looked;

impl KernelLook for Looked {
    fn look(&self, pod: Option<CgroupId>) -> KernelView {
        KernelView {
            heartbeat_most_ms: pod.map_or(0, |pod| pod.0),
            ..KernelView::default()
        }
    }
}

async fn operator() -> Arc<Operator> {
    operator_of(&Audit::discarding()).await
}

async fn operator_of(audit: &Audit) -> Arc<Operator> {
    Operator::new(answers(audit).await)
}

async fn answers(audit: &Audit) -> Answers {
    let clock = Clock::system();
    let (mut store, sessions, _) = Store::new(Nothing, clock.clone());
    let session = Declared {
        id: "support/alice".parse().unwrap(),
        pods: Vec::new(),
        spec: Err(SpecError::NotFound),
        incarnation: None,
        last_used: None,
    };
    store.apply(vec![session]).await;
    let pods = [PodStatus {
        name: "support/shell".into(),
        cgroup: "pod 1".into(),
        session: "support/alice".parse().unwrap(),
        state: PodState::Waiting(CgroupId(7)),
    }];
    let readiness = Readiness::default();
    readiness.condition("token").keep();
    let metrics = Metrics::new();
    let name = Arc::clone(&pods[0].name);
    metrics
        .lately()
        .refused(&name, What::Request, "no-session", Timestamp::from_second(1).unwrap());
    Answers {
        node: "box".into(),
        readiness,
        sessions,
        pods: watch::channel(Arc::from(pods)).1,
        kernel: Arc::new(Looked),
        certificate: self_signed_cert().unwrap(),
        metrics,
        own_rights: None,
        client: None,
        tail: audit.tail(),
        clock,
    }
}

#[tokio::test]
async fn the_socket_tells_of_sessions_and_of_one_pod() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let socket = Socket::bind(directory.path()).unwrap();
    let served = tokio::spawn(operator().await.serve_socket(socket, stop.clone()));
    let path = directory.path().join(SOCKET);

    let view: SessionsView = ask_socket(&path, "/v1/sessions").await.unwrap();
    assert_eq!((view.node.as_str(), view.sessions.len()), ("box", 1));
    let session = &view.sessions[0];
    assert_eq!(
        (session.namespace.as_str(), session.name.as_str()),
        ("support", "alice")
    );
    assert_eq!(session.phase, "Refused");
    assert!(session.reason.as_deref().unwrap().contains("make it there"));
    assert_eq!(session.pods[0].state, PodStateView::Waiting);

    let view: WhyView = ask_socket(&path, &pod_path("support/shell")).await.unwrap();
    assert_eq!(view.pod.unwrap().cgroup, "pod 1");
    assert_eq!(view.session.unwrap().name, "alice");
    assert_eq!(view.agent.not_ready[0].name, "token");
    assert_eq!(view.kernel.heartbeat_most_ms, 7, "the pod's own entry is looked at");
    assert_eq!(view.refused[0].reason, "no-session");

    let view: WhyView = ask_socket(&path, &pod_path("support/none such")).await.unwrap();
    assert_eq!((view.pod, view.session), (None, None));
    let error = ask_socket::<Value>(&path, "/elsewhere").await.unwrap_err().to_string();
    assert!(error.contains("/v1/sessions"), "{error}");

    stop.cancel();
    served.await.unwrap();
    let gone = ask_socket::<Value>(&path, "/v1/sessions").await;
    assert!(matches!(gone, Err(AskError::Socket { .. })), "{gone:?}");
}

#[tokio::test]
async fn no_more_clients_are_served_at_once_than_may_be() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let socket = Socket::bind(directory.path()).unwrap();
    tokio::spawn(operator().await.serve_socket(socket, stop.clone()));
    let path = directory.path().join(SOCKET);
    let mut silent = Vec::new();
    for _ in 0..CLIENTS {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    let asking = ask_socket::<SessionsView>(&path, "/v1/sessions");
    let crowded = time::timeout(Duration::from_millis(300), asking).await;
    assert!(crowded.is_err(), "{crowded:?}");
    silent.pop();
    ask_socket::<SessionsView>(&path, "/v1/sessions").await.unwrap();
    stop.cancel();
}

fn review(asked: &crate::cluster::mock::Asked, allowed: bool) -> Answer {
    if asked.path.ends_with("/tokenreviews") {
        let is_good = asked.body["spec"]["token"] == "good";
        let status = if is_good {
            json!({"authenticated": true, "user": {"username": "jane"}, "audiences": asked.body["spec"]["audiences"]})
        } else {
            json!({"authenticated": false})
        };
        return Answer::json(
            201,
            json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {}, "status": status}),
        );
    }
    let status = json!({"allowed": allowed});
    Answer::json(
        201,
        json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}, "status": status}),
    )
}

#[rstest]
#[case::without_a_token(None, true, "401", "box.agents.understudy.dev")]
#[case::no_bearer(Some("Basic Z29vZA=="), true, "401", "box.agents.understudy.dev")]
#[case::not_confirmed(Some("Bearer bad"), true, "401", "doesn't confirm")]
#[case::not_allowed(Some("Bearer good"), false, "403", "jane may not get agents.understudy.dev")]
#[tokio::test]
async fn over_tcp_nobody_is_let_in_without_proof_and_right(
    #[case] bearer: Option<&str>,
    #[case] allowed: bool,
    #[case] code: &str,
    #[case] says: &str,
) {
    let mock = Mock::new(move |asked| review(asked, allowed));
    let refused = over_tcp(&mock, bearer).await.unwrap_err();
    let AskError::Refused {
        message, code: told, ..
    } = &refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(told.as_str(), code, "{message}");
    assert!(message.contains(says), "{message}");
    assert!(!message.contains("good"), "no token is told: {message}");
}

#[tokio::test]
async fn over_tcp_whoever_may_get_this_nodes_agent_is_answered() {
    let mock = Mock::new(|asked| review(asked, true));
    let view = over_tcp(&mock, Some("Bearer good")).await.unwrap();
    assert_eq!(view.node, "box");
    let seen = mock.seen();
    assert_eq!(seen[0].body["spec"]["audiences"], json!([audience("box")]));
    let spec = &seen[1].body["spec"];
    assert_eq!(spec["user"], "jane");
    assert_eq!(
        spec["resourceAttributes"],
        json!({"verb": "get", "group": "understudy.dev", "resource": "agents", "name": "box"})
    );
}

#[tokio::test]
async fn over_tcp_what_cannot_be_known_is_refused() {
    let mock = Mock::new(|_| Answer::Nothing);
    let refused = over_tcp(&mock, Some("Bearer good")).await.unwrap_err().to_string();
    assert!(refused.contains("tokenreviews"), "{refused}");
    let mock = Mock::new(|asked| {
        if asked.path.ends_with("/tokenreviews") {
            review(asked, true)
        } else {
            Answer::status(403, "Forbidden")
        }
    });
    let refused = over_tcp(&mock, Some("Bearer good")).await.unwrap_err().to_string();
    assert!(refused.contains("subjectaccessreviews"), "{refused}");
}

async fn over_tcp(mock: &Mock, bearer: Option<&str>) -> Result<SessionsView, AskError> {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let access = Access::new(mock.client(), "box".into(), Clock::system());
    let stop = CancellationToken::new();
    tokio::spawn(operator().await.serve_tcp(listener, access, stop.clone()));
    let stream = TcpStream::connect(address).await.unwrap();
    let bearer = bearer.map(|bearer| HeaderValue::from_str(bearer).unwrap());
    let answer = ask(stream, "/v1/sessions", bearer, "of box").await;
    stop.cancel();
    answer
}
