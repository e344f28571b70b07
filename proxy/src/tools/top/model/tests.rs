use super::*;
use crate::operator::view::NoticeView;

/// What an agent says, `seconds` after it was first asked, of a session that requests have come under.
pub(in crate::tools::top) fn said(node: &str, name: &str, requests: u64, failures: u64) -> Heard {
    let bucket = |up_to, count| Bucket { up_to, count };
    let view = SessionsView {
        node: node.to_owned(),
        sessions: vec![SessionView {
            namespace: "support".to_owned(),
            name: name.to_owned(),
            phase: "Active".to_owned(),
            acts_as: Some("system:serviceaccount:prod:viewer".to_owned()),
            requests,
            failures,
            streams: 1,
            added: vec![bucket(Some(100), requests), bucket(None, 0)],
            pods: vec![PodView {
                name: format!("support/{name}-shell"),
                state: PodStateView::Enrolled,
                ..PodView::default()
            }],
            ..SessionView::default()
        }],
        ..SessionsView::default()
    };
    Heard::Line(node.into(), serde_json::to_vec(&view).unwrap().into())
}

fn model(heard: Vec<(u64, Heard)>) -> Model {
    let mut model = Model::default();
    let start = Instant::now();
    for (second, heard) in heard {
        model.heard(heard, start + Duration::from_secs(second));
    }
    model
}

#[test]
fn a_rate_takes_two_looks() {
    let row = &model(vec![(0, said("box", "alice", 10, 0))]).rows()[0];
    assert_eq!((row.rate, row.failures, row.p50), (None, None, None));
    let row = &model(vec![(0, said("box", "alice", 10, 1)), (2, said("box", "alice", 50, 3))]).rows()[0];
    assert_eq!((row.rate, row.failures), (Some(20.0), Some(1.0)));
    assert_eq!(row.p50, Some(Duration::from_micros(50)));
    assert_eq!(row.p99, Some(Duration::from_micros(100)));
}

#[test]
fn what_began_anew_has_no_rate_yet() {
    let row = &model(vec![(0, said("box", "alice", 10, 0)), (2, said("box", "alice", 3, 0))]).rows()[0];
    assert_eq!(row.rate, None, "the agent was started anew");
    let lost = Heard::Lost("box".into(), "broken".to_owned());
    let heard = vec![
        (0, said("box", "alice", 10, 0)),
        (2, lost),
        (4, said("box", "alice", 30, 0)),
    ];
    let row = &model(heard).rows()[0];
    assert_eq!(row.rate, Some(5.0), "the counts go on");
}

#[test]
fn a_session_on_many_nodes_is_one_row() {
    let heard = |second, of: u64| {
        [
            (second, said("a", "alice", of, 0)),
            (second, said("b", "alice", 2 * of, 0)),
        ]
    };
    let model = model([heard(0, 10), heard(1, 20)].concat());
    let rows = model.rows();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.rate, row.streams), (Some(30.0), 2));
    assert_eq!((row.enrolled, row.pods, row.nodes.len()), (2, 2, 2));
    let pods = model.pods(&row.key);
    assert_eq!(pods.iter().map(|row| row.node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(model.agents(), (2, 2));
}

#[test]
fn an_agent_that_cannot_be_heard_is_named_and_what_it_said_stays() {
    let lost = Heard::Lost("b".into(), "the agent of b broke off".to_owned());
    let mut model = model(vec![
        (0, said("a", "alice", 1, 0)),
        (0, said("b", "bob", 1, 0)),
        (1, lost),
    ]);
    assert_eq!(model.troubles(), ["b: the agent of b broke off"]);
    assert_eq!((model.agents(), model.rows().len()), ((1, 2), 2));
    model.heard(Heard::Up("b".into()), Instant::now());
    assert_eq!(model.troubles(), [""; 0]);
    model.heard(Heard::Gone("b".into()), Instant::now());
    assert_eq!(model.rows().len(), 1);
    model.heard(Heard::Blind("kubectl get: no".to_owned()), Instant::now());
    model.heard(Heard::TooMany(90), Instant::now());
    assert_eq!(model.troubles().len(), 2);
    model.heard(Heard::Line("a".into(), "?".into()), Instant::now());
    assert!(
        model.troubles()[1].contains("isn't understood"),
        "{:?}",
        model.troubles()
    );
}

#[test]
fn other_namespaces_are_left_out_and_notices_say_nothing() {
    let mut model = Model::new(Some("prod".to_owned()));
    assert!(model.is_silent());
    model.heard(
        Heard::Notice("box".into(), NoticeView::new("box", 0, None)),
        Instant::now(),
    );
    model.heard(said("box", "alice", 1, 0), Instant::now());
    assert!(model.rows().is_empty() && !model.is_silent());
}
