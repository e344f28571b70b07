//! `understudy check`: whether this node can run the agent, a line for each thing that must be so, and what to do where
//! it isn't. It tries things as the agent would, changes nothing, and leaves the exit code to the caller.

mod capabilities;

use std::{
    fmt,
    io::{self, Write},
    path::Path,
};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::task;

pub use self::capabilities::{Capabilities, CapabilityError};
use crate::{
    cli::{CheckOptions, KernelOptions},
    clock::Clock,
    credentials::TokenFile,
    environment::{ApiServerUrl, EnvironmentError, SERVICE_HOST, SERVICE_PORT_HTTPS},
    kernel::probe::{self, Probe},
    trust::roots::load_roots,
};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it must be.
    Ok,
    /// The agent runs, with less than it could do.
    Warn,
    /// The agent doesn't run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How it stands.
    pub outcome: Outcome,
    /// What it is, and what was found.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "todo", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Line {
    /// A thing that is as it must be.
    #[must_use]
    pub fn ok(what: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    /// A thing without which less is possible.
    #[must_use]
    pub fn warn(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Warn,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// A thing without which nothing is possible.
    #[must_use]
    pub fn fail(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Fail,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// From an error whose text says, after the last colon, what to do.
    #[must_use]
    pub fn from_error(thing: &str, error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        match text.rsplit_once(": ") {
            Some((what, remedy)) => Self::fail(format!("{thing}: {what}"), remedy),
            None => Self::fail(format!("{thing}: {text}"), "see the error"),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Ok => "[ok]  ",
            Outcome::Warn => "[warn]",
            Outcome::Fail => "[FAIL]",
        };
        write!(f, "{mark} {}", self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, " — {remedy}"),
            None => Ok(()),
        }
    }
}

/// All that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Whether the agent can run here.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.count(Outcome::Fail) == 0
    }

    /// The lines, in the order they were added.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Writes it out, a line for each thing or, with `json`, as one object.
    ///
    /// # Errors
    /// If the writer fails.
    pub fn write(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            let report = serde_json::json!({"passed": self.passed(), "checks": self.lines});
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        for line in &self.lines {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{}", self.verdict())
    }

    fn verdict(&self) -> String {
        match (self.count(Outcome::Fail), self.count(Outcome::Warn)) {
            (0, 0) => "This node can run the agent.".to_owned(),
            (0, warnings) => format!("This node can run the agent, with {warnings} limitation(s)."),
            (failures, _) => format!("This node cannot run the agent yet: {failures} thing(s) to mend."),
        }
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.lines.iter().filter(|line| line.outcome == outcome).count()
    }
}

impl FromIterator<Line> for Report {
    fn from_iter<T: IntoIterator<Item = Line>>(lines: T) -> Self {
        Self {
            lines: lines.into_iter().collect(),
        }
    }
}

/// Looks at everything: the kernel, this process's rights, and the way to the API server.
pub async fn run(options: &CheckOptions, lookup: impl Fn(&str) -> Option<String>) -> Report {
    let KernelOptions { cgroup_root, pin_dir } = options.kernel.clone();
    // Loading programs takes the kernel a while.
    let probes = task::spawn_blocking(move || probe::all(cgroup_root.as_deref(), &pin_dir)).await;
    let mut report: Report = probes.unwrap_or_default().into_iter().map(Line::from).collect();
    match Capabilities::effective() {
        Ok(capabilities) => report.lines.extend(capabilities.lines()),
        Err(error) => report.lines.push(Line::from_error("capabilities", &error)),
    }
    report.lines.push(environment(&ApiServerUrl::from_environment(lookup)));
    report
        .lines
        .push(token(&options.cluster.token_file, &Clock::system()).await);
    report.lines.push(upstream_ca(&options.cluster.ca_file).await);
    report
}

impl From<Probe> for Line {
    fn from(probe: Probe) -> Self {
        let Probe {
            feature,
            outcome,
            loses,
            remedy,
        } = probe;
        match outcome {
            probe::Outcome::Works => Self::ok(feature),
            probe::Outcome::Fails(why) => Self::fail(format!("{feature}: {why}; this loses {loses}"), remedy),
            probe::Outcome::Lacks(why) => Self::warn(format!("{feature}: {why}; this loses {loses}"), remedy),
            // What stood in its way has a failing line of its own.
            probe::Outcome::Untried(why) => Self::warn(format!("{feature}: not tried, as {why}"), "mend that first"),
        }
    }
}

/// The API server's address in the environment.
fn environment(found: &Result<ApiServerUrl, EnvironmentError>) -> Line {
    match found {
        Ok(url) => Line::ok(format!("API server: {url} ({SERVICE_HOST}, {SERVICE_PORT_HTTPS})")),
        Err(error) => Line::from_error("API server", error),
    }
}

/// The agent's own token.
async fn token(path: &Path, clock: &Clock) -> Line {
    let file = TokenFile::follow(path, clock.clone(), Counter::default()).await;
    match file.current() {
        Ok(token) => Line::ok(format!("token: {}{}", path.display(), until(token.expiry()))),
        Err(error) => Line::from_error("token", &error.to_string().trim_start_matches("no token: ")),
    }
}

/// The CA that verifies the API server.
async fn upstream_ca(path: &Path) -> Line {
    match load_roots(path).await {
        Ok(roots) => Line::ok(format!("CA: {}, {} certificate(s)", path.display(), roots.len())),
        Err(error) => Line::from_error("CA", &error),
    }
}

fn until(expiry: Option<Timestamp>) -> String {
    expiry
        .map(|expiry| format!(", good until {expiry}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn written(report: &Report, json: bool) -> String {
        let mut out = Vec::new();
        report.write(&mut out, json).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_say_what_and_what_to_do() {
        let report: Report = [
            Line::ok("a: found"),
            Line::warn("b: weak", "do x"),
            Line::fail("c: gone", "do y"),
        ]
        .into_iter()
        .collect();
        assert!(!report.passed());
        let expected = "[ok]   a: found\n[warn] b: weak — do x\n[FAIL] c: gone — do y\n\
            This node cannot run the agent yet: 1 thing(s) to mend.\n";
        assert_eq!(written(&report, false), expected);
        let json: Value = serde_json::from_str(&written(&report, true)).unwrap();
        let expected = json!({"passed": false, "checks": [
            {"outcome": "ok", "what": "a: found"},
            {"outcome": "warn", "what": "b: weak", "todo": "do x"},
            {"outcome": "fail", "what": "c: gone", "todo": "do y"},
        ]});
        assert_eq!(json, expected);
    }

    #[rstest]
    #[case(vec![Line::ok("a")], "This node can run the agent.\n")]
    #[case(vec![Line::ok("a"), Line::warn("b", "c")], "This node can run the agent, with 1 limitation(s).\n")]
    fn verdicts(#[case] lines: Vec<Line>, #[case] verdict: &str) {
        let report: Report = lines.into_iter().collect();
        assert!(report.passed());
        assert!(written(&report, false).ends_with(verdict));
    }

    #[rstest]
    #[case(None, Some("443"), SERVICE_HOST)]
    #[case(Some("10.96.0.1"), None, SERVICE_PORT_HTTPS)]
    fn a_missing_variable_is_named(#[case] host: Option<&str>, #[case] port: Option<&str>, #[case] name: &str) {
        let found = ApiServerUrl::from_environment(|variable| {
            let value = if variable == SERVICE_HOST { host } else { port };
            value.map(str::to_owned)
        });
        let line = environment(&found);
        assert_eq!(line.outcome, Outcome::Fail);
        assert!(
            line.what.contains(name)
                && line
                    .remedy
                    .is_some_and(|remedy| remedy.starts_with("run the agent in a pod"))
        );
    }

    #[tokio::test]
    async fn files_are_tried() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let key = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        fs::write(at("token"), "secret-token").unwrap();
        fs::write(at("ca.crt"), key.cert.pem()).unwrap();
        let clock = Clock::system();
        let report: Report = [
            token(&at("token"), &clock).await,
            upstream_ca(&at("ca.crt")).await,
            token(&at("none"), &clock).await,
            upstream_ca(&at("token")).await,
        ]
        .into_iter()
        .collect();
        let outcomes: Vec<Outcome> = report.lines().iter().map(|line| line.outcome).collect();
        assert_eq!(outcomes, [[Outcome::Ok; 2], [Outcome::Fail; 2]].concat());
        let text = written(&report, false);
        assert!(!text.contains("secret-token"), "{text}");
        assert!(
            text.contains("does not exist — create it, or correct the path"),
            "{text}"
        );
    }

    #[rstest]
    #[case(probe::Outcome::Works, "[ok]   cgroup/connect4 programs")]
    #[case(
        probe::Outcome::Fails("EPERM".to_owned()),
        "[FAIL] cgroup/connect4 programs: EPERM; this loses interception — add CAP_BPF"
    )]
    #[case(
        probe::Outcome::Lacks("not built in".to_owned()),
        "[warn] cgroup/connect4 programs: not built in; this loses interception — add CAP_BPF"
    )]
    #[case(
        probe::Outcome::Untried("the maps can't be made".to_owned()),
        "[warn] cgroup/connect4 programs: not tried, as the maps can't be made — mend that first"
    )]
    fn probes(#[case] outcome: probe::Outcome, #[case] line: &str) {
        let remedy = "add CAP_BPF".to_owned();
        let probe = Probe {
            feature: "cgroup/connect4 programs",
            outcome,
            loses: "interception",
            remedy,
        };
        assert_eq!(Line::from(probe).to_string(), line);
    }
}
