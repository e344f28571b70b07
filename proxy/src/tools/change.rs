//! `revoke` and `extend`: a Session's end, moved. Whether one may is for the API server to say, and what becomes of it for
//! the agents; what was changed meanwhile isn't overwritten.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    AskOptions, ToolError, cluster,
    kubectl::{Kubectl, KubectlError},
    output, progress, table,
};
use crate::sessions::duration;

/// How long the agents are waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(500);
/// How often a change is tried that met a write of an agent's.
const ATTEMPTS: usize = 5;

/// The options of `revoke`.
#[derive(Debug, Args)]
pub struct RevokeOptions {
    /// The session.
    #[command(flatten)]
    pub change: ChangeOptions,
}

/// The options of `extend`.
#[derive(Debug, Args)]
pub struct ExtendOptions {
    /// The session.
    #[command(flatten)]
    pub change: ChangeOptions,
    /// How long it may go on from now, such as 1h30m.
    #[arg(value_name = "DURATION", value_parser = length)]
    pub by: Duration,
}

/// Which session is to be changed.
#[derive(Debug, Args)]
pub struct ChangeOptions {
    /// The session's name.
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Its namespace; the context's, where none is named.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Don't ask whether that is meant.
    #[arg(short, long)]
    pub yes: bool,
    /// Where the cluster is.
    #[command(flatten)]
    pub ask: AskOptions,
}

/// Why a session isn't changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no cluster to change it in.
    #[error("sessions of files are changed in their files: with --socket there is nothing to change")]
    Socket,
    /// There is none.
    #[error("there is no Session {0}: kubectl understudy sessions -A shows all")]
    NotFound(String),
    /// It would end it earlier.
    #[error("{session} ends later than that already, at {end}: to have it end sooner, revoke it or edit it")]
    Shorter {
        /// Which.
        session: String,
        /// When it ends.
        end: Timestamp,
    },
    /// It has no end.
    #[error("{0} has no end, and so can't be extended: kubectl edit it, to give it one")]
    Endless(String),
    /// Nobody said yes.
    #[error("nothing was changed: say --yes where there is no terminal to ask on")]
    NotConfirmed,
    /// The agents haven't said that it is over.
    #[error(
        "{session} is changed, and its agents haven't said within {}s that it is over: on {nodes} what is open may go on; look at \
         the agents there, or delete the Session",
        PATIENCE.as_secs()
    )]
    NotOver {
        /// Which.
        session: String,
        /// Where.
        nodes: String,
    },
}

fn length(text: &str) -> Result<Duration, String> {
    duration::parse("DURATION", text).map_err(|error| error.to_string())
}

/// A Session, as it was read.
struct Target {
    id: String,
    namespace: String,
    object: Value,
}

pub(super) async fn revoke(options: &RevokeOptions) -> Result<ExitCode, ToolError> {
    let kubectl = kubectl(&options.change)?;
    let target = find(&kubectl, &options.change).await?;
    let now = Timestamp::now();
    if is_over(&target.object, now) {
        say(&format!("{} is over already", target.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    confirm(
        &options.change,
        &format!("end {}, {}", target.id, described(&target.object)),
    )?;
    patch(&kubectl, &options.change, &target, now).await?;
    progress("its end is set; waiting for the agents of its nodes to say so")?;
    wait_until_over(&kubectl, &options.change, &target).await?;
    say(&format!("{} revoked", target.id))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn extend(options: &ExtendOptions) -> Result<ExitCode, ToolError> {
    let kubectl = kubectl(&options.change)?;
    let target = find(&kubectl, &options.change).await?;
    let end = end_after(&target, Timestamp::now(), options.by)?;
    confirm(
        &options.change,
        &format!("have {}, {}, end at {end}", target.id, described(&target.object)),
    )?;
    patch(&kubectl, &options.change, &target, end).await?;
    say(&format!("{} ends at {end}", target.id))?;
    Ok(ExitCode::SUCCESS)
}

fn kubectl(options: &ChangeOptions) -> Result<Kubectl<'_>, ChangeError> {
    match options.ask.socket {
        Some(_) => Err(ChangeError::Socket),
        None => Ok(Kubectl::new(&options.ask)),
    }
}

async fn read(kubectl: &Kubectl<'_>, options: &ChangeOptions) -> Result<Option<Value>, KubectlError> {
    let mut words = vec![
        "get",
        "sessions.understudy.dev",
        &options.session,
        "--ignore-not-found",
        "-o",
        "json",
    ];
    if let Some(namespace) = &options.namespace {
        words.extend(["--namespace", namespace]);
    }
    kubectl.object(&words).await
}

async fn find(kubectl: &Kubectl<'_>, options: &ChangeOptions) -> Result<Target, ToolError> {
    let Some(object) = read(kubectl, options).await? else {
        let namespace = options.namespace.as_deref().unwrap_or("of the context's namespace");
        return Err(ChangeError::NotFound(format!("{namespace}/{}", options.session)).into());
    };
    let namespace = cluster::text(&object["metadata"]["namespace"]).unwrap_or_default();
    Ok(Target {
        id: format!("{namespace}/{}", options.session),
        namespace,
        object,
    })
}

fn is_over(object: &Value, now: Timestamp) -> bool {
    let facts = cluster::session(object);
    facts.phase.as_deref() == Some("Expired") || facts.expires_at.is_some_and(|at| at <= now)
}

/// When it is to end: never sooner than it would.
fn end_after(target: &Target, now: Timestamp, by: Duration) -> Result<Timestamp, ChangeError> {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    let end = now.checked_add(by).unwrap_or(Timestamp::MAX);
    let end = Timestamp::from_second(end.as_second()).unwrap_or(end);
    let has_end = target.object["spec"]["expiresAt"].is_string() || target.object["spec"]["ttl"].is_string();
    match cluster::session(&target.object).expires_at {
        None if !has_end => Err(ChangeError::Endless(target.id.clone())),
        Some(before) if before > end => Err(ChangeError::Shorter {
            session: target.id.clone(),
            end: before,
        }),
        _ => Ok(end),
    }
}

/// Moves its end. What somebody has changed of its spec since it was read isn't overwritten; agents write its status all the
/// while, and that is no change to it.
async fn patch(
    kubectl: &Kubectl<'_>,
    options: &ChangeOptions,
    target: &Target,
    end: Timestamp,
) -> Result<(), KubectlError> {
    let mut object = target.object.clone();
    let mut attempts = ATTEMPTS;
    loop {
        let patch = change(&object, end).to_string();
        let words = ["patch", "sessions.understudy.dev", &options.session];
        let words = [
            words.as_slice(),
            &["--namespace", &target.namespace, "--type=merge", "--patch", &patch],
        ]
        .concat();
        attempts -= 1;
        let error = match kubectl.run(&words).await {
            Err(error) if attempts > 0 && is_conflict(&error) => error,
            done => return done.map(drop),
        };
        match read(kubectl, options).await? {
            Some(now) if is_same_spec(&now, &target.object) => object = now,
            _ => return Err(error),
        }
    }
}

fn is_conflict(error: &KubectlError) -> bool {
    matches!(error, KubectlError::Failed { said, .. } if said.contains("(Conflict)"))
}

/// The API server counts changes of a spec.
fn is_same_spec(one: &Value, other: &Value) -> bool {
    let of = |object: &Value| {
        (
            object["metadata"]["uid"].clone(),
            object["metadata"]["generation"].clone(),
        )
    };
    of(one) == of(other)
}

fn change(object: &Value, end: Timestamp) -> Value {
    let end = Timestamp::from_second(end.as_second()).unwrap_or(end).to_string();
    json!({
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "spec": {"expiresAt": end, "ttl": null},
    })
}

/// Waits until every node with pods of it says that it is over.
async fn wait_until_over(kubectl: &Kubectl<'_>, options: &ChangeOptions, target: &Target) -> Result<(), ToolError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Some(object) = read(kubectl, options).await? else {
            return Ok(());
        };
        let nodes = still_on(&object);
        if nodes.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(ChangeError::NotOver {
                session: target.id.clone(),
                nodes: nodes.join(", "),
            }
            .into());
        }
        sleep(LOOK).await;
    }
}

/// The nodes whose agents say that it goes on.
fn still_on(object: &Value) -> Vec<String> {
    let nodes = object["status"]["nodes"].as_array().into_iter().flatten();
    nodes
        .filter(|node| node["phase"] == "Active" && node["pods"] != 0)
        .filter_map(|node| cluster::text(&node["node"]))
        .collect()
}

fn described(object: &Value) -> String {
    let whom = cluster::text(&object["status"]["actsAs"])
        .map_or_else(String::new, |whom| format!("which acts as {whom} and "));
    let pods = object["status"]["pods"].as_i64().unwrap_or_default();
    format!("{whom}has {pods} pod(s)")
}

/// Asks on the terminal whether that is meant.
fn confirm(options: &ChangeOptions, question: &str) -> Result<(), ToolError> {
    if options.yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(ChangeError::NotConfirmed.into());
    }
    let mut asking = anstream::stderr();
    write!(asking, "{}? [y/N] ", table::printable(question))?;
    asking.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(ChangeError::NotConfirmed.into())
    }
}

fn say(line: &str) -> io::Result<()> {
    writeln!(output(), "{}", table::printable(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(spec: &Value) -> Target {
        Target {
            id: "support/alice".to_owned(),
            namespace: "support".to_owned(),
            object: json!({"metadata": {"resourceVersion": "7"}, "spec": spec}),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_session_is_extended_and_never_shortened() {
        let hour = Duration::from_hours(1);
        let soon = target(&json!({"expiresAt": "1970-01-01T00:10:00Z"}));
        assert_eq!(end_after(&soon, at(0), hour).unwrap(), at(3600));
        let late = target(&json!({"expiresAt": "1970-01-01T02:00:00Z"}));
        let error = end_after(&late, at(0), hour).unwrap_err();
        assert!(
            matches!(error, ChangeError::Shorter { end, .. } if end == at(7200)),
            "{error}"
        );
        let unread = target(&json!({"ttl": "5m"}));
        assert_eq!(end_after(&unread, at(0), hour).unwrap(), at(3600));
        let endless = end_after(&target(&json!({})), at(0), hour).unwrap_err().to_string();
        assert!(endless.contains("no end"), "{endless}");
    }

    #[test]
    fn nothing_but_the_end_is_changed_and_of_the_object_that_was_read() {
        let object = target(&json!({"ttl": "5m", "idleTimeout": "1m"})).object;
        let expected = json!({
            "metadata": {"resourceVersion": "7"},
            "spec": {"expiresAt": "1970-01-01T00:00:09Z", "ttl": null},
        });
        assert_eq!(change(&object, at(9)), expected);
    }

    #[test]
    fn agents_may_write_its_status_and_nobody_else_its_spec() {
        let object = |generation, version| json!({"metadata": {"uid": "u", "generation": generation, "resourceVersion": version}});
        assert!(is_same_spec(&object(1, "7"), &object(1, "8")));
        assert!(!is_same_spec(&object(1, "7"), &object(2, "8")));
        let conflict = |said: &str| KubectlError::Failed {
            what: "patch".to_owned(),
            said: said.to_owned(),
        };
        assert!(is_conflict(&conflict(
            "Error from server (Conflict): Operation cannot be fulfilled"
        )));
        assert!(!is_conflict(&conflict("Error from server (Forbidden): no")));
    }

    #[test]
    fn what_goes_on_is_seen() {
        let object = json!({"status": {"nodes": [
            {"node": "a", "phase": "Expired", "pods": 1},
            {"node": "b", "phase": "Active", "pods": 2},
            {"node": "c", "pods": 0},
        ]}});
        assert_eq!(still_on(&object), ["b"]);
        assert!(is_over(&json!({"spec": {"expiresAt": "1970-01-01T00:00:09Z"}}), at(9)));
        assert!(!is_over(&json!({"spec": {}}), at(9)));
    }

    #[test]
    fn lengths_are_those_of_sessions() {
        assert_eq!(length("1h30m"), Ok(Duration::from_mins(90)));
        let error = length("tomorrow").unwrap_err();
        assert!(error.contains("DURATION") && error.contains("1h30m"), "{error}");
    }
}
