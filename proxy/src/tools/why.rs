//! `why`: step by step, whether a pod is intercepted, whether it may act, and what to do about the first thing that is
//! wrong. [`facts`] is what is known, [`judge`](mod@judge) what follows, [`finding`] how
//! that is said, and `remedies` what the agent's refusals mean.

pub mod facts;
pub mod finding;
pub mod judge;
mod remedies;

use std::{io::Write, path::Path, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use self::{
    facts::{AgentPodFacts, Facts, Told},
    finding::{Finding, Verdict},
    judge::judge,
};
use super::{
    AskError, AskOptions, Form, ToolError,
    ask::{ask_socket, pod_path},
    cluster,
    kubectl::Kubectl,
    output, table, write_value,
};
use crate::{check::Outcome, operator::view::WhyView, pod::is_dns1123_subdomain};

/// The options of `why`.
#[derive(Debug, Args)]
pub struct WhyOptions {
    /// The pod: its name, or namespace/name. With session files, what they call it.
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Its namespace, where POD doesn't say it; the context's otherwise.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The form.
    #[arg(short, long, value_enum, default_value_t = WhyForm::Text)]
    pub output: WhyForm,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskOptions,
}

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhyForm {
    /// For people.
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What is written as JSON and YAML.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation<'a> {
    pod: &'a str,
    verdict: Verdict,
    steps: &'a [Finding],
}

pub(super) async fn run(options: &WhyOptions) -> Result<ExitCode, ToolError> {
    let facts = match &options.ask.socket {
        Some(socket) => local(options, socket).await?,
        None => in_cluster(options).await?,
    };
    let findings = judge(&facts, Timestamp::now());
    let verdict = Verdict::of(&findings);
    write(&mut output(), options.output, &facts.pod, &findings, verdict)?;
    Ok(ExitCode::from(verdict.exit_code()))
}

/// What the cluster says, and the agent of the pod's node.
async fn in_cluster(options: &WhyOptions) -> Result<Facts, ToolError> {
    let kubectl = Kubectl::new(&options.ask);
    let (namespace, name) = match options.pod.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (options.namespace.as_deref(), options.pod.as_str()),
    };
    let mut words = vec!["get", "pod", name, "--ignore-not-found", "-o", "json"];
    if let Some(namespace) = namespace {
        words.extend(["--namespace", namespace]);
    }
    // Without the pod nothing can be said: that it can't be asked for is an error.
    let Some(object) = kubectl.object(&words).await? else {
        return Ok(Facts {
            pod: namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}")),
            object: Told::Known(None),
            ..Facts::default()
        });
    };
    let namespace = cluster::text(&object["metadata"]["namespace"]).unwrap_or_default();
    let pod = cluster::pod(&object);
    let mut facts = Facts {
        pod: format!("{namespace}/{name}"),
        ..Facts::default()
    };
    if let Some(label) = pod.label.as_deref().filter(|label| is_dns1123_subdomain(label)) {
        let words = [
            "get",
            "sessions.understudy.dev",
            label,
            "--ignore-not-found",
            "-o",
            "json",
        ];
        let words = [words.as_slice(), &["--namespace", &namespace]].concat();
        facts.session = match kubectl.object(&words).await {
            Ok(object) => Told::Known(object.as_ref().map(cluster::session)),
            Err(error) => Told::Unknown(error.to_string()),
        };
    }
    if let (Some(_), Some(node)) = (&pod.label, &pod.node) {
        (facts.agent_pods, facts.agent) = agent_of(&kubectl, &options.ask, node, &facts.pod).await;
    }
    facts.object = Told::Known(Some(pod));
    Ok(facts)
}

/// The agents of a node, and what the one in service says of a pod.
async fn agent_of(
    kubectl: &Kubectl<'_>,
    options: &AskOptions,
    node: &str,
    pod: &str,
) -> (Told<Vec<AgentPodFacts>>, Told<WhyView>) {
    let pods = match cluster::agent_pods(kubectl, options, Some(node)).await {
        Ok(pods) => pods,
        Err(error) => return (Told::Unknown(error.to_string()), Told::NotAsked),
    };
    let agent = match cluster::of_node(&pods, node) {
        None => Told::NotAsked,
        Some(agent) => match kubectl.ask(node, &agent.facts.name, &pod_path(pod)).await {
            Ok(view) => Told::Known(view),
            Err(error) => Told::Unknown(error.to_string()),
        },
    };
    (Told::Known(pods.into_iter().map(|pod| pod.facts).collect()), agent)
}

/// What the agent of this node says. That there is none is a finding as well.
async fn local(options: &WhyOptions, socket: &Path) -> Result<Facts, ToolError> {
    let pod = match &options.namespace {
        Some(namespace) if !options.pod.contains('/') => format!("{namespace}/{}", options.pod),
        _ => options.pod.clone(),
    };
    let agent = match ask_socket(socket, &pod_path(&pod)).await {
        Ok(view) => Told::Known(view),
        Err(error @ (AskError::Socket { .. } | AskError::Silent(_))) => Told::Unknown(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    Ok(Facts {
        pod,
        agent,
        ..Facts::default()
    })
}

fn write(
    out: &mut impl Write,
    form: WhyForm,
    pod: &str,
    findings: &[Finding],
    verdict: Verdict,
) -> Result<(), ToolError> {
    let form = match form {
        WhyForm::Json => Form::Json,
        WhyForm::Yaml => Form::Yaml,
        WhyForm::Text => return Ok(write_text(out, pod, findings, verdict)?),
    };
    let steps = findings;
    write_value(out, &Explanation { pod, verdict, steps }, form)
}

fn write_text(out: &mut impl Write, pod: &str, findings: &[Finding], verdict: Verdict) -> std::io::Result<()> {
    for finding in findings {
        let (mark, colour) = match finding.outcome {
            Outcome::Ok => ("[ok]  ", AnsiColor::Green),
            Outcome::Warn => ("[warn]", AnsiColor::Yellow),
            Outcome::Fail => ("[FAIL]", AnsiColor::Red),
        };
        let style = Style::new().fg_color(Some(colour.into()));
        writeln!(out, "{style}{mark}{style:#} {}", table::printable(&finding.what))?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "       {}", table::printable(remedy))?;
        }
    }
    let bold = Style::new().bold();
    writeln!(out, "{bold}{}: {}{bold:#}", table::printable(pod), verdict.text())
}

#[cfg(test)]
mod tests;
