//! How sessions come, go on and end, under paused time.

use std::path::Path;

use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::time::advance;

use super::*;
use crate::{
    limits::Limits,
    sessions::spec::Policy,
    upstream::{
        pool::{Bounds, DialCounts},
        roots::Roots,
        target::Target,
    },
};

struct Outfit;

impl Outfitter for Outfit {
    fn upstream(&self, _: &SessionSpec) -> Upstream {
        let roots = Roots::in_file("/nonexistent".into(), Counter::default());
        let target = Target::parse("https://127.0.0.1:1", None).unwrap();
        Upstream::new(
            target,
            roots,
            Arc::new(DialCounts::default()),
            Bounds::from(&Limits::default()),
        )
    }

    fn own_token(&self) -> Credential {
        Credential::Inline("agent-token".parse().unwrap())
    }

    fn prover(&self, _: &SessionSpec) -> Arc<Prover> {
        unreachable!("no session here asks its callers for proof")
    }

    async fn token_file(&self, _: &Path) -> Credential {
        self.own_token()
    }

    fn secret_token(&self, _: &str, _: &str, _: &str) -> Credential {
        self.own_token()
    }
}

struct Stage {
    store: Store<Outfit>,
    lookup: SessionLookup,
    clock: Clock,
    id: SessionId,
}

impl Stage {
    fn new() -> Self {
        let clock = Clock::in_step_with_timers("2026-01-01T00:00:00Z".parse().unwrap());
        let (store, lookup, _) = Store::new(Outfit, clock.clone());
        Self {
            store,
            lookup,
            clock,
            id: "support/alice".parse().unwrap(),
        }
    }

    fn declared(&self, more: &Value) -> Declared {
        let mut spec = json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Declared {
            id: self.id.clone(),
            pods: Vec::new(),
            spec: SessionSpec::parse(spec, Policy::default()),
            incarnation: Some(Arc::from("uid-1")),
            last_used: None,
        }
    }

    async fn apply(&mut self, declared: Declared) {
        self.store.apply(vec![declared]).await;
    }

    fn session(&self) -> Result<Arc<LiveSession>, Refusal> {
        self.lookup.snapshot().session(&self.id, self.clock.now())
    }

    fn refusal(&self) -> Option<Refusal> {
        self.session().err()
    }

    fn report(&self) -> Report {
        let report = self.lookup.snapshot().reports().next().unwrap();
        assert_eq!(report.id, self.id);
        report
    }
}

#[tokio::test(start_paused = true)]
async fn an_unused_session_ends_and_a_longer_time_wakes_it() {
    let mut stage = Stage::new();
    stage.apply(stage.declared(&json!({"idleTimeout": "10m"}))).await;
    let live = stage.session().unwrap();
    let open = live.usage.open(&stage.clock);
    advance(Duration::from_hours(1)).await;
    stage.store.end_what_is_over();
    assert_eq!(stage.refusal(), None, "what is in use isn't idle");
    drop(open);
    advance(Duration::from_secs(599)).await;
    stage.store.end_what_is_over();
    assert!(!live.ended.is_cancelled());
    advance(Duration::from_secs(1)).await;
    assert_eq!(
        stage.refusal(),
        Some(Refusal::SessionIdle),
        "also before the store has looked"
    );
    stage.store.end_what_is_over();
    assert!(live.ended.is_cancelled());
    assert_eq!(
        (live.refusal(), stage.refusal()),
        (Refusal::SessionIdle, Some(Refusal::SessionIdle))
    );
    let report = stage.report();
    assert_eq!((report.phase, report.connections), (Phase::Idle, 0));
    assert_eq!(report.last_used, Some(stage.clock.now() - Duration::from_mins(10)));
    assert_eq!(stage.lookup.snapshot().counts()[3], ("idle", 1));

    // The same words again are no use of it; longer ones wake it.
    stage.apply(stage.declared(&json!({"idleTimeout": "10m"}))).await;
    assert_eq!(stage.refusal(), Some(Refusal::SessionIdle));
    stage.apply(stage.declared(&json!({"idleTimeout": "11m"}))).await;
    assert_eq!(stage.refusal(), None);
    advance(Duration::from_mins(1)).await;
    assert_eq!(
        stage.refusal(),
        Some(Refusal::SessionIdle),
        "it counts from its last use"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_renews_no_idle_session() {
    let mut stage = Stage::new();
    let mut declared = stage.declared(&json!({"idleTimeout": "10m"}));
    declared.last_used = Some(stage.clock.now() - Duration::from_mins(9));
    stage.apply(declared.clone()).await;
    assert_eq!(stage.refusal(), None);
    advance(Duration::from_mins(1)).await;
    assert_eq!(stage.refusal(), Some(Refusal::SessionIdle));
    // Its use on another node counts.
    declared.last_used = Some(stage.clock.now() - Duration::from_mins(1));
    stage.apply(declared.clone()).await;
    assert_eq!(stage.refusal(), None);
    // Made again, it starts anew.
    advance(Duration::from_mins(9)).await;
    declared.last_used = None;
    stage.apply(declared.clone()).await;
    assert_eq!(stage.refusal(), Some(Refusal::SessionIdle));
    declared.incarnation = Some(Arc::from("uid-2"));
    stage.apply(declared).await;
    assert_eq!(stage.refusal(), None);
}

/// Invariant 5.
#[tokio::test(start_paused = true)]
async fn a_session_made_again_is_another() {
    let mut stage = Stage::new();
    let mut declared = stage.declared(&json!({}));
    stage.apply(declared.clone()).await;
    let first = stage.session().unwrap();
    stage.apply(declared.clone()).await;
    assert!(Arc::ptr_eq(&first, &stage.session().unwrap()));
    declared.incarnation = Some(Arc::from("uid-2"));
    stage.apply(declared).await;
    assert!(first.ended.is_cancelled());
    assert_eq!(first.refusal(), Refusal::SessionRevoked);
    assert!(!Arc::ptr_eq(&first, &stage.session().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_refused_by_name() {
    let mut stage = Stage::new();
    let good = stage.declared(&json!({}));
    for (error, refusal, met) in [
        (SpecError::NotFound, Refusal::NoSession, Refusal::SessionRevoked),
        (SpecError::Unknown, Refusal::SessionUnknown, Refusal::SessionInvalid),
        (
            SpecError::Shape("x".to_owned()),
            Refusal::SessionInvalid,
            Refusal::SessionInvalid,
        ),
    ] {
        stage.apply(good.clone()).await;
        let live = stage.session().unwrap();
        let bad = Declared {
            spec: Err(error),
            incarnation: None,
            ..good.clone()
        };
        stage.apply(bad).await;
        assert_eq!((stage.refusal(), live.refusal()), (Some(refusal), met));
        assert_eq!(stage.report().phase, Phase::Refused);
    }
}

/// Invariant 5: the store looks by itself.
#[tokio::test(start_paused = true)]
async fn the_store_ends_what_is_over_within_a_second() {
    let mut stage = Stage::new();
    let at = stage.clock.now() + Duration::from_secs(30);
    for (more, refusal, phase, ends) in [
        (json!({"idleTimeout": "10s"}), Refusal::SessionIdle, Phase::Idle, None),
        (
            json!({"expiresAt": at}),
            Refusal::SessionExpired,
            Phase::Expired,
            Some(at),
        ),
    ] {
        stage.apply(stage.declared(&more)).await;
        let live = stage.session().unwrap();
        let due = stage.clock.now()
            + if ends.is_some() {
                Duration::from_secs(20)
            } else {
                Duration::from_secs(10)
            };
        let (declare, declared) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let store = std::mem::replace(&mut stage.store, Store::new(Outfit, stage.clock.clone()).0);
        let running = tokio::spawn(store.run(declared, stop.clone()));
        live.ended.cancelled().await;
        assert_eq!(live.refusal(), refusal);
        let late = stage.clock.now().duration_since(due);
        assert!(!late.is_negative() && late.as_millis() < 1000, "{late:?}");
        tokio::task::yield_now().await;
        let report = stage.report();
        assert_eq!((report.phase, report.expires_at), (phase, ends));
        assert_eq!(report.acts_as.as_deref(), Some("jane"));
        drop(declare);
        stop.cancel();
        running.await.unwrap();
        let clock = stage.clock.clone();
        let (store, lookup, _) = Store::new(Outfit, clock.clone());
        stage = Stage {
            store,
            lookup,
            clock,
            id: stage.id,
        };
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_says_how_a_session_stands() {
    let mut stage = Stage::new();
    stage.apply(stage.declared(&json!({}))).await;
    assert_eq!(
        (stage.report().connections, stage.report().last_used),
        (0, Some(stage.clock.now()))
    );
    let open = stage.session().unwrap().usage.open(&stage.clock);
    let came = stage.clock.now();
    advance(Duration::from_secs(5)).await;
    let report = stage.report();
    assert_eq!(
        (report.phase, report.connections, report.last_used),
        (Phase::Active, 1, Some(came))
    );
    drop(open);
    assert_eq!(
        (stage.report().connections, stage.report().last_used),
        (0, Some(stage.clock.now()))
    );
}

/// Both would hand a declaration to the network; the session that goes on isn't brought into force a second time.
#[tokio::test(start_paused = true)]
async fn what_acts_as_before_goes_on_and_what_does_not_ends() {
    let mut stage = Stage::new();
    stage.apply(stage.declared(&json!({}))).await;
    let first = stage.session().unwrap();
    stage.apply(stage.declared(&json!({"idleTimeout": "1h"}))).await;
    assert!(Arc::ptr_eq(&first, &stage.session().unwrap()));
    stage.apply(stage.declared(&json!({"refuse": []}))).await;
    assert!(first.ended.is_cancelled());
    assert_eq!(first.refusal(), Refusal::SessionRevoked);
    let second = stage.session().unwrap();
    stage.store.apply(Vec::new()).await;
    assert!(second.ended.is_cancelled());
    assert_eq!(stage.refusal(), Some(Refusal::NoSession));
}
