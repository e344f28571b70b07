//! `sessions`: who is on.

use std::{collections::BTreeSet, io::Write, path::Path};

use clap::Args;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    AskOptions, Form, ToolError, WATCH, ask::ask_socket, cluster, kubectl::Kubectl, output, progress, table,
    write_value,
};
use crate::operator::view::{PodStateView, PodView, SessionView, SessionsView};

/// The options of `sessions`.
#[derive(Debug, Args)]
pub struct SessionsOptions {
    /// The session to show; all, where none is named.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// The namespace to show; the context's, where none is named. With --socket, all.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    pub all_namespaces: bool,
    /// The form.
    #[arg(short, long, value_enum)]
    pub output: Option<Form>,
    /// Go on, and show what changes.
    #[arg(short, long)]
    pub watch: bool,
    /// Leave the table's headers out.
    #[arg(long)]
    pub no_headers: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskOptions,
}

/// What is written as JSON and YAML.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    items: &'a [Item],
}

/// A session, with the nodes that it is on. Its requests and its pods by name are known to agents alone, and so in the
/// wide forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    nodes: Vec<String>,
    enrolled: i64,
    waiting: i64,
    #[serde(flatten)]
    session: SessionView,
}

/// Agents that are asked at a time: each takes two runs of kubectl.
const AGENTS_AT_ONCE: usize = 8;

const HEADERS: [&str; 8] = [
    "NAMESPACE",
    "NAME",
    "PHASE",
    "ACTS AS",
    "PODS",
    "STREAMS",
    "LAST USED",
    "EXPIRES",
];
const WIDE: [&str; 5] = ["METHOD", "REQUESTS", "SINCE", "NODES", "POD NAMES"];

/// What a session that is no longer there is called in place of its phase, as in a watch's events.
const DELETED: &str = "Deleted";

pub(super) async fn run(options: &SessionsOptions) -> Result<(), ToolError> {
    let mut shown = gather(options).await?;
    show(&mut output(), options, &shown, true, Timestamp::now())?;
    let mut told = None;
    if !options.watch {
        return Ok(());
    }
    loop {
        tokio::time::sleep(WATCH).await;
        match gather(options).await {
            Ok(items) => {
                let news = news(&shown, &items);
                if !news.is_empty() {
                    show(&mut output(), options, &news, false, Timestamp::now())?;
                }
                (shown, told) = (items, None);
            }
            // Whoever watches wants to see it come back. It is told once.
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    writeln!(anstream::stderr(), "{text}\nstill watching; press Ctrl-C to stop")?;
                    told = Some(text);
                }
            }
        }
    }
}

/// What is other than before, and what is gone.
fn news(before: &[Item], now: &[Item]) -> Vec<Item> {
    let is_there = |item: &&Item| {
        now.iter().any(|other| {
            (&other.session.namespace, &other.session.name) == (&item.session.namespace, &item.session.name)
        })
    };
    let gone = before.iter().filter(|item| !is_there(item)).map(|item| Item {
        nodes: Vec::new(),
        enrolled: 0,
        waiting: 0,
        session: SessionView {
            phase: DELETED.to_owned(),
            streams: 0,
            pods: Vec::new(),
            ..item.session.clone()
        },
    });
    now.iter()
        .filter(|item| !before.contains(item))
        .cloned()
        .chain(gone)
        .collect()
}

async fn gather(options: &SessionsOptions) -> Result<Vec<Item>, ToolError> {
    match &options.ask.socket {
        Some(socket) => local(options, socket).await,
        None => in_cluster(options).await,
    }
}

async fn local(options: &SessionsOptions, socket: &Path) -> Result<Vec<Item>, ToolError> {
    let view: SessionsView = ask_socket(socket, "/v1/sessions").await?;
    let node = view.node;
    let is_wanted = |session: &SessionView| {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&options.namespace, &session.namespace) && is(&options.name, &session.name)
    };
    Ok(view
        .sessions
        .into_iter()
        .filter(is_wanted)
        .map(|session| {
            let (enrolled, waiting) = counts(&session.pods);
            Item {
                nodes: Some(node.clone()).into_iter().filter(|node| !node.is_empty()).collect(),
                enrolled,
                waiting,
                session,
            }
        })
        .collect())
}

fn counts(pods: &[PodView]) -> (i64, i64) {
    let enrolled = pods.iter().filter(|pod| pod.state == PodStateView::Enrolled).count();
    let count = |number| i64::try_from(number).unwrap_or(i64::MAX);
    (count(enrolled), count(pods.len() - enrolled))
}

/// The Sessions and what agents have written of them and, for the wide forms, what agents answer.
async fn in_cluster(options: &SessionsOptions) -> Result<Vec<Item>, ToolError> {
    let kubectl = Kubectl::new(&options.ask);
    let mut words = vec!["get", "sessions.understudy.dev", "-o", "json"];
    words.extend(options.name.as_deref());
    if let Some(namespace) = &options.namespace {
        words.extend(["--namespace", namespace]);
    }
    if options.all_namespaces {
        words.push("--all-namespaces");
    }
    let list = kubectl.object(&words).await?.unwrap_or_default();
    let mut items: Vec<Item> = cluster::items(&list).iter().map(of_object).collect();
    if matches!(options.output, Some(Form::Wide | Form::Json | Form::Yaml)) {
        let nodes: BTreeSet<&str> = items.iter().flat_map(|item| &item.nodes).map(String::as_str).collect();
        let views = ask_agents(&kubectl, &options.ask, &nodes).await?;
        for item in &mut items {
            add(item, &views);
        }
    }
    Ok(items)
}

/// What the agents of these nodes say, a few asked at a time. One that doesn't answer is named, and the rest shown.
async fn ask_agents(
    kubectl: &Kubectl<'_>,
    options: &AskOptions,
    nodes: &BTreeSet<&str>,
) -> Result<Vec<SessionsView>, ToolError> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let pods = cluster::agent_pods(kubectl, options, None).await?;
    if nodes.len() > AGENTS_AT_ONCE {
        progress(&format!("asking the agents of {} nodes", nodes.len()))?;
    }
    let asking = nodes.iter().map(|node| {
        let pod = cluster::of_node(&pods, node);
        async move {
            let Some(pod) = pod else {
                return Err((*node, "it has no agent".to_owned()));
            };
            let asked = kubectl.ask::<SessionsView>(node, &pod.facts.name, "/v1/sessions").await;
            asked.map_err(|error| (*node, error.to_string()))
        }
    });
    let answers: Vec<_> = futures_util::stream::iter(asking)
        .buffer_unordered(AGENTS_AT_ONCE)
        .collect()
        .await;
    let mut views = Vec::new();
    for answer in answers {
        match answer {
            Ok(view) => views.push(view),
            Err((node, why)) => writeln!(anstream::stderr(), "{node}: {why}")?,
        }
    }
    Ok(views)
}

/// Adds what agents know to what stands in the object.
fn add(item: &mut Item, views: &[SessionsView]) {
    let is_it =
        |session: &&SessionView| (&session.namespace, &session.name) == (&item.session.namespace, &item.session.name);
    let known: Vec<&SessionView> = views.iter().flat_map(|view| &view.sessions).filter(is_it).collect();
    let Some(first) = known.first() else { return };
    item.session.requests = known.iter().map(|session| session.requests).sum();
    item.session.streams = known.iter().map(|session| session.streams).sum();
    item.session.since = known.iter().filter_map(|session| session.since).min();
    item.session.pods = known.iter().flat_map(|session| session.pods.clone()).collect();
    item.session.no_credential.clone_from(&first.no_credential);
}

/// From a Session and its status.
fn of_object(object: &Value) -> Item {
    let status = &object["status"];
    let nodes: Vec<&Value> = status["nodes"].as_array().into_iter().flatten().collect();
    let sum = |field: &str| nodes.iter().filter_map(|node| node[field].as_i64()).sum::<i64>();
    let facts = cluster::session(object);
    Item {
        nodes: nodes.iter().filter_map(|node| cluster::text(&node["node"])).collect(),
        enrolled: sum("pods"),
        waiting: sum("waiting"),
        session: SessionView {
            namespace: cluster::text(&object["metadata"]["namespace"]).unwrap_or_default(),
            name: cluster::text(&object["metadata"]["name"]).unwrap_or_default(),
            phase: facts.phase.unwrap_or_default(),
            reason: facts.refusal,
            method: cluster::text(&object["spec"]["authMethod"]),
            acts_as: cluster::text(&status["actsAs"]),
            expires_at: facts.expires_at,
            last_used: nodes.iter().filter_map(|node| cluster::time(&node["lastUsed"])).max(),
            streams: usize::try_from(sum("connections")).unwrap_or_default(),
            ..SessionView::default()
        },
    }
}

fn show(
    out: &mut impl Write,
    options: &SessionsOptions,
    items: &[Item],
    is_first: bool,
    now: Timestamp,
) -> Result<(), ToolError> {
    match options.output {
        Some(form @ (Form::Json | Form::Yaml)) => write_value(out, &Listing { items }, form),
        Some(Form::Name) => {
            for item in items {
                writeln!(out, "session.understudy.dev/{}", table::printable(&item.session.name))?;
            }
            Ok(())
        }
        form => {
            if items.is_empty() {
                // Not on standard output, which may be counted.
                return Ok(writeln!(anstream::stderr(), "No sessions found.")?);
            }
            let is_wide = form == Some(Form::Wide);
            let mut headers = HEADERS.to_vec();
            if is_wide {
                headers.extend(WIDE);
            }
            let rows: Vec<Vec<String>> = items.iter().map(|item| row(item, is_wide, now)).collect();
            let headers = (is_first && !options.no_headers).then_some(headers.as_slice());
            Ok(table::write(out, headers, &rows)?)
        }
    }
}

fn row(item: &Item, is_wide: bool, now: Timestamp) -> Vec<String> {
    let session = &item.session;
    let mut cells = vec![
        session.namespace.clone(),
        session.name.clone(),
        session.phase.clone(),
        session.acts_as.clone().unwrap_or_default(),
        format!("{}/{}", item.enrolled, item.enrolled + item.waiting),
        session.streams.to_string(),
        table::ago(session.last_used, now),
        table::until(session.expires_at, now),
    ];
    if is_wide {
        let pods: Vec<&str> = session.pods.iter().map(|pod| pod.name.as_str()).collect();
        cells.extend([
            session.method.clone().unwrap_or_default(),
            session.requests.to_string(),
            table::ago(session.since, now),
            item.nodes.join(","),
            pods.join(","),
        ]);
    }
    cells
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: SessionsOptions,
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn alice() -> Item {
        let pod = |name: &str, state| PodView {
            name: name.to_owned(),
            session: "support/alice".to_owned(),
            state,
            ..PodView::default()
        };
        Item {
            nodes: vec!["box".to_owned()],
            enrolled: 1,
            waiting: 1,
            session: SessionView {
                namespace: "support".to_owned(),
                name: "alice".to_owned(),
                phase: "Active".to_owned(),
                method: Some("gateway-kubernetes-auth".to_owned()),
                acts_as: Some("system:serviceaccount:prod:viewer".to_owned()),
                since: Some(at(0)),
                expires_at: Some(at(700)),
                last_used: Some(at(95)),
                requests: 12,
                streams: 1,
                pods: vec![
                    pod("support/shell", PodStateView::Enrolled),
                    pod("support/web", PodStateView::Waiting),
                ],
                ..SessionView::default()
            },
        }
    }

    fn shown(arguments: &[&str], items: &[Item]) -> String {
        let options = Line::try_parse_from(["sessions"].iter().chain(arguments))
            .unwrap()
            .options;
        let mut out = Vec::new();
        show(&mut out, &options, items, true, at(100)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[rstest]
    #[case::table(
        &[],
        "NAMESPACE   NAME    PHASE    ACTS AS                             PODS   STREAMS   LAST USED   EXPIRES\n\
         support     alice   Active   system:serviceaccount:prod:viewer   1/2    1         5s          10m\n"
    )]
    #[case::wide(
        &["-o", "wide", "--no-headers"],
        "support   alice   Active   system:serviceaccount:prod:viewer   1/2    1      5s     10m    \
         gateway-kubernetes-auth   12     100s   box    support/shell,support/web\n"
    )]
    #[case::name(&["-o", "name"], "session.understudy.dev/alice\n")]
    fn forms(#[case] arguments: &[&str], #[case] expected: &str) {
        assert_eq!(shown(arguments, &[alice()]), expected);
    }

    #[test]
    fn programs_get_all_of_it() {
        let json: serde_json::Value = serde_json::from_str(&shown(&["-o", "json"], &[alice()])).unwrap();
        assert_eq!(json["items"][0]["nodes"][0], "box");
        assert_eq!(json["items"][0]["requests"], 12);
        assert_eq!(json["items"][0]["pods"][1]["state"], "waiting");
        let yaml = shown(&["-o", "yaml"], &[alice()]);
        assert!(
            yaml.contains("actsAs: system:serviceaccount:prod:viewer") || yaml.contains("actsAs: \"system"),
            "{yaml}"
        );
        assert_eq!(shown(&[], &[]), "", "that there is none is said elsewhere");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown(&["-o", "json"], &[])).unwrap(),
            serde_json::json!({"items": []})
        );
    }

    #[test]
    fn a_sessions_object_and_its_agents_make_one_row() {
        let object = serde_json::json!({
            "metadata": {"namespace": "support", "name": "alice"},
            "spec": {"authMethod": "gateway-kubernetes-auth"},
            "status": {"phase": "Active", "actsAs": "jane", "pods": 3, "nodes": [
                {"node": "a", "pods": 1, "waiting": 1, "connections": 2, "lastUsed": "1970-01-01T00:01:00Z"},
                {"node": "b", "pods": 2, "connections": 1, "lastUsed": "1970-01-01T00:01:30Z"},
            ]},
        });
        let mut item = of_object(&object);
        assert_eq!((item.enrolled, item.waiting, item.session.streams), (3, 1, 3));
        assert_eq!(item.session.last_used, Some(at(90)));
        let view = |requests, since| SessionsView {
            sessions: vec![SessionView {
                requests,
                since: Some(at(since)),
                ..alice().session
            }],
            ..SessionsView::default()
        };
        add(&mut item, &[view(3, 50), view(4, 40)]);
        assert_eq!((item.session.requests, item.session.since), (7, Some(at(40))));
        assert_eq!((item.session.streams, item.session.pods.len()), (2, 4));
        assert_eq!(item.session.acts_as.as_deref(), Some("jane"), "the object says whom");
    }

    #[test]
    fn a_watch_tells_what_changed_and_what_went() {
        let mut busier = alice();
        busier.session.requests += 1;
        let mut bob = alice();
        bob.session.name = "bob".to_owned();
        let both = [alice(), bob.clone()];
        assert_eq!(news(&both, &both), []);
        assert_eq!(news(&both, &[busier.clone(), bob.clone()]), [busier]);
        assert_eq!(news(&[alice()], &both), [bob]);

        let gone = news(&both, &[alice()]);
        let told: Vec<_> = gone
            .iter()
            .map(|item| (item.session.name.as_str(), item.session.phase.as_str(), item.enrolled))
            .collect();
        assert_eq!(told, [("bob", "Deleted", 0)]);
        assert_eq!(gone[0].session.acts_as, alice().session.acts_as, "whom it was");
    }
}
