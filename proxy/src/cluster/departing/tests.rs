//! Departures as tables, on a paused clock.

use rstest::rstest;
use serde_json::json;

use super::*;

fn pod(uid: &str, is_over: bool) -> Arc<TaggedPod> {
    let object = json!({"metadata": {"name": "shell", "namespace": "a", "uid": uid, "labels": {LABEL: "alice"}}});
    let pod = TaggedPod::read(&serde_json::from_value(object).unwrap());
    Arc::new(TaggedPod { is_over, ..pod })
}

/// What a node goes through, a word each: `+uid` runs, `!uid` is over, `-` nothing is in the watch, `there`/`away` is
/// said of every cgroup, `untagged`/`deleted`/`unclear` answers what is asked, a number passes seconds.
#[derive(Default)]
struct Node {
    departures: Departures,
    cgroups_away: bool,
    asked: Vec<Question>,
}

impl Node {
    fn word(&mut self, word: &str, now: Instant) {
        let answer = match word {
            "untagged" => Some(Answer::Untagged),
            "deleted" => Some(Answer::Deleted),
            "unclear" => Some(Answer::Unclear),
            _ => None,
        };
        if let Some(answer) = answer {
            let question = self.asked.remove(0);
            self.departures.answered(&question, answer, now);
            return;
        }
        match word {
            "there" => self.cgroups_away = false,
            "away" => self.cgroups_away = true,
            _ => {
                let pods = word.split(',').filter_map(|pod| {
                    pod.strip_prefix('+')
                        .map(|uid| self::pod(uid, false))
                        .or_else(|| pod.strip_prefix('!').map(|uid| self::pod(uid, true)))
                });
                let objects = pods.map(|pod| (pod.key.clone(), pod)).collect();
                self.departures.observe(&Arc::new(objects), now);
            }
        }
        self.look(now);
    }

    fn look(&mut self, now: Instant) {
        let pods = self.departures.pods();
        let there = pods.iter().filter(|_| !self.cgroups_away);
        let there = there.map(|pod| pod.uid.clone()).collect();
        self.departures.looked(&there, now);
        self.asked.extend(self.departures.due(now, ASKS));
    }
}

/// Invariant 1.
#[rstest]
#[case::runs("+one", "", 0)]
#[case::deleted_by_force("+one -", "one", 1)]
#[case::still_there_after_a_long_time("+one - deleted 600", "one", 0)]
#[case::its_processes_end("+one - deleted 60 away 11", "", 0)]
#[case::its_cgroup_is_made_late("+one away - 5 there 60", "one", 1)]
#[case::ended_before_its_object("+one away - 11", "", 0)]
#[case::loses_its_label("+one - untagged", "", 0)]
#[case::nobody_answers("+one - unclear", "one", 0)]
#[case::nobody_answers_and_then("+one - unclear 3 untagged", "", 0)]
#[case::asked_again_and_again("+one - unclear 3 unclear 5", "one", 1)]
#[case::label_given_back("+one - +one", "", 1)]
#[case::an_old_answer_says_nothing_of_a_new_departure("+one - +one - untagged", "one", 1)]
#[case::made_anew_under_its_name("+one +two", "one", 1)]
#[case::over("!one", "one", 0)]
#[case::over_and_ended("!one away 11", "", 0)]
#[case::over_and_ended_stays_so("!one away 11 !one there 5", "", 0)]
#[case::over_and_ended_and_gone("!one away 11 -", "", 0)]
#[case::over_and_gone("!one -", "one", 1)]
#[case::over_and_then_it_runs("!one +one", "", 0)]
#[tokio::test(start_paused = true)]
async fn stays_tagged(#[case] story: &str, #[case] leaving: &str, #[case] asked: usize) {
    let mut node = Node::default();
    for word in story.split(' ') {
        if let Ok(seconds) = word.parse::<u32>() {
            for _ in 0..seconds {
                tokio::time::advance(LOOK).await;
                node.look(Instant::now());
            }
        } else {
            node.word(word, Instant::now());
        }
    }
    let found: Vec<_> = node.departures.pods().iter().map(|pod| pod.uid.clone()).collect();
    assert_eq!((found.join(" ").as_str(), node.asked.len()), (leaving, asked));
}

#[rstest]
#[case::none(json!(null), Answer::Deleted)]
#[case::another(json!({"uid": "two"}), Answer::Deleted)]
#[case::without_the_label(json!({"uid": "one", "labels": {"app": "x"}}), Answer::Untagged)]
#[case::without_any(json!({"uid": "one"}), Answer::Untagged)]
#[case::with_the_label(json!({"uid": "one", "labels": {LABEL: "bob"}}), Answer::Unclear)]
fn answers(#[case] metadata: serde_json::Value, #[case] expected: Answer) {
    let object = metadata
        .is_object()
        .then(|| serde_json::from_value(json!({"metadata": metadata})).unwrap());
    assert_eq!(read(object.as_ref(), "one"), expected);
}

#[test]
fn a_cgroup_is_where_the_layout_says() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::below(root.path());
    let pod = pod("one", false);
    assert!(!has_cgroup(&pod, &layout, root.path()));
    std::fs::create_dir_all(root.path().join("kubepods/besteffort/podone")).unwrap();
    assert!(has_cgroup(&pod, &layout, root.path()));
}
