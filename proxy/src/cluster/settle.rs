//! When pods of an earlier agent may be let go: once everything that a list made since names is wanted.
//!
//! The watch can't say it. What it has seen may be older than what the agent before knew, whose pods were in force
//! until just now: to let go what the watch hasn't seen would send them straight through (invariant 1).

use std::{sync::Arc, time::Duration};

use kube::{
    Api,
    api::{DynamicObject, ListParams},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::pods::{self, TaggedPod};
use crate::{backoff, enrol::Leftovers, pod::WantedPod};

/// How long the watch may take to see what a list has shown. By then a pod of the list may be gone, and it is made anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between lists that fail, twice as long each time, and less by chance.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Asks for the node's pods, and says [`Leftovers::Untag`] when `wanted` has all that `wanted_of` makes of them. To be
/// called when the kernel side is in force, and nobody else writes to it.
pub async fn settle(
    client: kube::Client,
    node: String,
    wanted_of: impl Fn(&[Arc<TaggedPod>]) -> Vec<WantedPod> + Send,
    mut wanted: watch::Receiver<Arc<[WantedPod]>>,
    leftovers: watch::Sender<Leftovers>,
) {
    let query = pods::query(&node);
    let api: Api<DynamicObject> = Api::all_with(client, &query.resource);
    // Consistent, as the watches' lists are: not from whatever cache the API server has.
    let parameters = ListParams {
        label_selector: query.labels,
        field_selector: query.fields,
        ..ListParams::default()
    };
    let mut pause = SHORTEST;
    loop {
        if leftovers.is_closed() {
            return;
        }
        match api.list(&parameters).await {
            Ok(list) => {
                pause = SHORTEST;
                let listed: Vec<Arc<TaggedPod>> = list
                    .items
                    .iter()
                    .map(|object| Arc::new(TaggedPod::read(object)))
                    .collect();
                let all = wanted_of(&listed);
                let seen = wanted.wait_for(|wanted| all.iter().all(|pod| wanted.contains(pod)));
                match timeout(PATIENCE, seen).await {
                    Ok(Ok(_)) => {
                        leftovers.send_replace(Leftovers::Untag);
                        return;
                    }
                    Ok(Err(_)) => return,
                    Err(_) => tracing::debug!("a listed pod isn't wanted yet, or no longer there"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "this node's pods can't be listed: those of the agent before that aren't known \
                    stay refused");
                sleep(backoff::up_to(pause)).await;
                pause = LONGEST.min(pause * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use serde_json::json;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::cluster::mock::{Answer, Mock, list};

    fn pod(name: &str) -> serde_json::Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "uid": name,
            "labels": {pods::LABEL: "s"}}})
    }

    fn wanted(names: &[&str]) -> Arc<[WantedPod]> {
        let wanted = |name: &&str| WantedPod {
            cgroup: format!("besteffort/pod{name}").into(),
            name: format!("a/{name}").into(),
            session: "a/s".parse().unwrap(),
            uid: None,
            service_account: None,
        };
        names.iter().map(wanted).collect()
    }

    struct Settling {
        mock: Mock,
        wanted: watch::Sender<Arc<[WantedPod]>>,
        leftovers: watch::Receiver<Leftovers>,
        task: JoinHandle<()>,
    }

    /// With what lists are answered, one after another.
    fn start(lists: Vec<Answer>) -> Settling {
        let mut lists = VecDeque::from(lists);
        let mock = Mock::new(move |asked| {
            assert_eq!(asked.path, "/api/v1/pods");
            lists.pop_front().unwrap_or(Answer::Nothing)
        });
        let wanted_of = |pods: &[Arc<TaggedPod>]| {
            let names: Vec<&str> = pods.iter().map(|pod| pod.key.name.as_str()).collect();
            wanted(&names).to_vec()
        };
        let (wanted, receiver) = watch::channel(Arc::from([]));
        let (send, leftovers) = watch::channel(Leftovers::Refuse);
        let task = tokio::spawn(settle(mock.client(), "one".to_owned(), wanted_of, receiver, send));
        Settling {
            mock,
            wanted,
            leftovers,
            task,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leftovers_are_let_go_when_all_that_is_listed_is_wanted() {
        let lists = vec![
            Answer::status(503, "ServiceUnavailable"),
            Answer::Json(200, list("7", &[pod("one"), pod("two")])),
        ];
        let mut settling = start(lists);
        settling.wanted.send_replace(wanted(&["one"]));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(*settling.leftovers.borrow(), Leftovers::Refuse);
        settling.wanted.send_replace(wanted(&["two", "one", "more"]));
        settling
            .leftovers
            .wait_for(|now| *now == Leftovers::Untag)
            .await
            .unwrap();
        settling.task.await.unwrap();
        let asked = settling.mock.seen();
        let query = &asked[0].query;
        assert!(
            query.contains("spec.nodeName%3Done") && !query.contains("resourceVersion"),
            "{query}"
        );
    }

    /// One that is gone again is never wanted: another list doesn't have it.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_out_of_date_is_made_anew() {
        let lists = vec![
            Answer::Json(200, list("7", &[pod("one"), pod("gone")])),
            Answer::Json(200, list("9", &[pod("one")])),
        ];
        let mut settling = start(lists);
        settling.wanted.send_replace(wanted(&["one"]));
        sleep(PATIENCE / 2).await;
        assert_eq!(*settling.leftovers.borrow(), Leftovers::Refuse);
        settling
            .leftovers
            .wait_for(|now| *now == Leftovers::Untag)
            .await
            .unwrap();
    }
}
