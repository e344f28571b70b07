//! The writer against a mocked API server, on a paused clock.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::*;
use crate::{
    cluster::{
        mock::{Answer, Asked, Mock},
        watch::Seen,
    },
    sessions::spec::Policy,
};

/// A Session whose status is what was applied to it.
#[derive(Clone)]
struct Stage {
    mock: Mock,
    status: Arc<Mutex<SessionStatus>>,
    refuses: Arc<Mutex<bool>>,
    idle_timeout: Option<&'static str>,
}

impl Stage {
    fn new() -> Self {
        let status = Arc::<Mutex<SessionStatus>>::default();
        let refuses = Arc::<Mutex<bool>>::default();
        let mock = Mock::new({
            let (status, refuses) = (Arc::clone(&status), Arc::clone(&refuses));
            move |asked| {
                if *refuses.lock().unwrap() {
                    return Answer::status(503, "ServiceUnavailable");
                }
                if asked.path.contains("/events") {
                    return Answer::json(201, asked.body.clone());
                }
                apply(&mut status.lock().unwrap(), asked);
                Answer::json(200, asked.body.clone())
            }
        });
        Self {
            mock,
            status,
            refuses,
            idle_timeout: None,
        }
    }

    fn writer(&self, node: &str) -> StatusWriter {
        let metrics = Metrics::new();
        let events = Events::start(self.mock.client(), node, metrics.clone());
        let clock = Clock::in_step_with_timers("2026-01-01T00:00:00Z".parse().unwrap());
        StatusWriter::new(self.mock.client(), node, clock, metrics, events)
    }

    fn sessions(&self) -> ByNamespace {
        let mut object = json!({
            "metadata": {"name": "alice", "namespace": "a", "uid": "u", "generation": 1},
            "spec": {"authMethod": "gateway-kubernetes-auth",
                "impersonate": {"namespace": "prod", "serviceAccountName": "viewer"}},
            "status": *self.status.lock().unwrap(),
        });
        if let Some(time) = self.idle_timeout {
            object["spec"]["idleTimeout"] = json!(time);
        }
        let object = Arc::new(SessionObject::read(
            serde_json::from_value(object).unwrap(),
            Policy::default(),
        ));
        let objects = BTreeMap::from([(object.key.clone(), object)]);
        let seen = Seen {
            objects: Some(Arc::new(objects)),
            failing: None,
        };
        Arc::new(BTreeMap::from([("a".to_owned(), seen)]))
    }

    fn status_writes(&self) -> usize {
        self.mock
            .seen()
            .iter()
            .filter(|asked| asked.path.ends_with("/status"))
            .count()
    }

    /// Passes for so long, half a second each.
    async fn run(&self, writers: &mut [StatusWriter], here: Option<&Local>, seconds: u64) {
        for _ in 0..seconds * 2 {
            let all: BTreeMap<_, _> = here.map(|local| (key(), local.clone())).into_iter().collect();
            for writer in &mut *writers {
                writer.pass(&self.sessions(), &all).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// As the API server's fields are owned: an entry by its node's manager, the rest by the shared one.
fn apply(status: &mut SessionStatus, asked: &Asked) {
    assert_eq!(
        asked.path,
        "/apis/understudy.dev/v1alpha1/namespaces/a/sessions/alice/status"
    );
    assert_eq!(asked.body["metadata"]["uid"], "u");
    assert!(asked.query.contains("force=true"), "{}", asked.query);
    let applied: SessionStatus = serde_json::from_value(asked.body["status"].clone()).unwrap();
    if let Some((_, rest)) = asked.query.split_once("fieldManager=understudy%2F") {
        let node = rest.split('&').next().unwrap();
        status.nodes.retain(|entry| entry.node != node);
        status.nodes.extend(applied.nodes);
    } else {
        assert!(asked.query.contains("fieldManager=understudy"), "{}", asked.query);
        let nodes = std::mem::take(&mut status.nodes);
        *status = SessionStatus { nodes, ..applied };
    }
}

fn key() -> ObjectKey {
    ObjectKey {
        namespace: "a".into(),
        name: "alice".into(),
    }
}

fn local() -> Local {
    Local {
        phase: Phase::Active,
        refused: None,
        acts_as: Some("system:serviceaccount:prod:viewer".into()),
        expires_at: None,
        pods: 1,
        waiting: 0,
        connections: 0,
        last_used: None,
    }
}

#[tokio::test(start_paused = true)]
async fn status_is_written_once_and_again_only_when_it_changes() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one")];
    stage.run(&mut writers, Some(&local()), 60).await;
    assert_eq!(stage.status_writes(), 2, "the entry, and what stands above");
    {
        let status = stage.status.lock().unwrap();
        assert_eq!(status.nodes[0].node, "one");
        assert_eq!((status.phase.as_deref(), status.pods), (Some("Active"), Some(1)));
    }
    let expired = Local {
        phase: Phase::Expired,
        ..local()
    };
    stage.run(&mut writers, Some(&expired), 60).await;
    assert_eq!(stage.status_writes(), 4);
    let told: Vec<_> = stage
        .mock
        .seen()
        .into_iter()
        .filter(|asked| asked.path.contains("/events"))
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (
            told[0].body["reason"].as_str(),
            told[0].body["regarding"]["uid"].as_str()
        ),
        (Some("Expired"), Some("u"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_in_constant_use_is_written_from_time_to_time() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one")];
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for second in 0..120 {
        let busy = Local {
            connections: second % 7,
            last_used: Some(start + jiff::SignedDuration::from_secs(second)),
            ..local()
        };
        stage.run(&mut writers, Some(&busy), 1).await;
    }
    let count = stage.status_writes();
    assert!(
        (4..=6).contains(&count),
        "{count} writes in two minutes of constant use"
    );
}

#[tokio::test(start_paused = true)]
async fn changes_in_quick_succession_are_written_together() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one")];
    for pods in 0..20 {
        stage.run(&mut writers, Some(&Local { pods, ..local() }), 1).await;
    }
    stage.run(&mut writers, Some(&Local { pods: 20, ..local() }), 10).await;
    let count = stage.status_writes();
    assert!(count <= 24, "{count} writes in 30 seconds");
    assert_eq!(stage.status.lock().unwrap().pods, Some(20));
}

#[tokio::test(start_paused = true)]
async fn agents_of_two_nodes_come_to_agree_and_stop_writing() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one"), stage.writer("two")];
    stage.run(&mut writers, Some(&local()), 60).await;
    {
        let status = stage.status.lock().unwrap();
        assert_eq!(status.nodes.len(), 2);
        assert_eq!(status.pods, Some(2));
    }
    let count = stage.status_writes();
    assert!(count <= 6, "{count} writes");
    stage.run(&mut writers, Some(&local()), 60).await;
    assert_eq!(stage.status_writes(), count, "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn with_the_last_pod_the_entry_goes() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one")];
    stage.run(&mut writers, Some(&local()), 20).await;
    stage.run(&mut writers, None, 20).await;
    let status = stage.status.lock().unwrap().clone();
    assert_eq!(status.nodes, []);
    assert_eq!((status.pods, status.phase.as_deref()), (Some(0), Some("Active")));
}

#[tokio::test(start_paused = true)]
async fn of_a_session_that_may_go_idle_the_last_use_stays() {
    let mut stage = Stage::new();
    stage.idle_timeout = Some("1h");
    let mut writers = [stage.writer("one")];
    let used = |second: i64| Local {
        last_used: Some(Timestamp::from_second(1_767_225_600 + second).unwrap()),
        ..local()
    };
    stage.run(&mut writers, Some(&used(0)), 20).await;
    // Too little to be told by itself.
    stage.run(&mut writers, Some(&used(7)), 5).await;
    stage.run(&mut writers, None, 20).await;
    let status = stage.status.lock().unwrap().clone();
    assert_eq!(status.pods, Some(0));
    let entry = &status.nodes[0];
    assert_eq!((entry.pods, entry.phase.as_deref()), (0, None));
    assert_eq!(entry.last_used(), used(7).last_used);
    let count = stage.status_writes();
    // An agent that starts anew leaves it.
    stage.run(&mut [stage.writer("one")], None, 60).await;
    assert_eq!(stage.status_writes(), count);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_refuses_it_is_tried_ever_more_slowly_and_then_written() {
    let stage = Stage::new();
    let mut writers = [stage.writer("one")];
    *stage.refuses.lock().unwrap() = true;
    stage.run(&mut writers, Some(&local()), 300).await;
    let tries = stage.status_writes();
    assert!((5..=20).contains(&tries), "{tries} tries in five minutes");
    *stage.refuses.lock().unwrap() = false;
    stage.run(&mut writers, Some(&local()), 90).await;
    assert_eq!(stage.status.lock().unwrap().pods, Some(1));
}
