//! The demo's pages: how things look, nothing of what they mean. Colours on a terminal only.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use understudy_tests::node::{Accounts, SeenRequest};

use crate::kubectl_log::Sent;

/// The width of each of the two columns.
const COLUMN: usize = 56;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Where the demo is shown.
#[derive(Debug)]
pub(crate) struct Page {
    colours: bool,
}

impl Page {
    pub(crate) fn on_standard_output() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: io::stdout().is_terminal() && !unwanted,
        }
    }

    /// Prints a line. A reader that is gone ends nothing: the checks and the cleaning up go on.
    pub(crate) fn line(text: &str) {
        drop(writeln!(io::stdout(), "{text}"));
    }

    pub(crate) fn title(&self, text: &str) {
        Self::line(&format!("\n{}\n", self.paint(BOLD, text)));
    }

    pub(crate) fn step(&self, text: &str) {
        Self::line(&format!("  {} {text}", self.paint(GREEN, "✓")));
    }

    pub(crate) fn act(&self, pod: &str, subtitle: &str) {
        let heading = format!("── pod {pod} ");
        let rule = "─".repeat((2 * COLUMN + 3).saturating_sub(heading.chars().count()));
        Self::line(&format!(
            "\n{}\n   {subtitle}\n",
            self.paint(BOLD, &format!("{heading}{rule}"))
        ));
    }

    pub(crate) fn command(&self, line: &str, printed: &str) {
        Self::line(&format!("   {}", self.paint(CYAN, &format!("$ kubectl {line}"))));
        for line in printed.lines() {
            Self::line(&format!("   {line}"));
        }
        Self::line("");
    }

    /// What was sent and what was seen: a request that is both stands in one row.
    pub(crate) fn side_by_side(&self, sent: &[Sent], seen: &[SeenRequest], token: &str, accounts: &Accounts) {
        Self::row(
            &self.column(BOLD, "what the pod sent"),
            &self.column(BOLD, "what the API server saw"),
        );
        let mut unmatched: Vec<&SeenRequest> = seen.iter().collect();
        for request in sent {
            let same = |seen: &&SeenRequest| (&seen.method, &seen.uri) == (&request.method, &request.uri);
            let arrived = unmatched.iter().position(same).map(|index| unmatched.remove(index));
            let code = request.code.map_or_else(String::new, |code| format!("answered {code}"));
            let left = [
                format!("{} {}", request.method, request.uri),
                format!("  with its own token, {}", tail(token)),
                format!("  {code}"),
            ];
            self.rows(
                &left,
                &arrived.map_or_else(|| vec!["nothing".to_owned()], |seen| describe(seen, accounts)),
            );
        }
        for request in unmatched {
            self.rows(&["(not logged by kubectl)".to_owned()], &describe(request, accounts));
        }
        Self::line("");
    }

    pub(crate) fn judgement(&self, claim: &str, holds: bool) {
        let mark = if holds {
            self.paint(GREEN, "✓")
        } else {
            self.paint(RED, "✗ NOT SO:")
        };
        Self::line(&format!("   {mark} {claim}"));
    }

    pub(crate) fn verdict(&self, right: bool, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if right {
            let text = format!("Everything was as it must be ({seconds:.1} s).");
            Self::line(&format!("\n{}", self.paint(GREEN, &text)));
        } else {
            self.failure(&format!(
                "Something was not as it must be ({seconds:.1} s); the lines marked ✗ say what."
            ));
        }
    }

    pub(crate) fn failure(&self, text: &str) {
        Self::line(&format!("\n{}", self.paint(RED, text)));
    }

    pub(crate) fn shell_banner() {
        Self::line(
            "\n\
You are in the tagged pod. Try:
  kubectl auth whoami
  kubectl get pods --namespace prod
  kubectl get configmap settings --namespace prod --output yaml
  kubectl get secrets --namespace prod          # refused: the session's account may not
  cat /var/run/secrets/kubernetes.io/serviceaccount/token   # the powerless token it really holds
Leave with `exit`; everything is cleaned up then.
",
        );
    }

    pub(crate) fn what_next() {
        Self::line(
            "\n\
What to try next
  cargo xtask demo --shell   the same, then a shell inside the tagged pod
  cargo xtask test           every claim of the design, tested
  understudy check           whether this node can run the agent
  ARCHITECTURE.md            how a connection gets from connect() to the API server
",
        );
    }

    fn rows(&self, left: &[String], right: &[String]) {
        for index in 0..left.len().max(right.len()) {
            let cell = |side: &[String]| {
                let text = side.get(index).map_or("", String::as_str);
                self.column(if index == 0 { "" } else { DIM }, text)
            };
            Self::row(&cell(left), &cell(right));
        }
    }

    fn row(left: &str, right: &str) {
        Self::line(format!("   {left} │ {right}").trim_end());
    }

    /// `text` in exactly one column's width; colours take no room.
    fn column(&self, colour: &str, text: &str) -> String {
        let mut cell: String = text.chars().take(COLUMN).collect();
        if text.chars().count() > COLUMN {
            cell.pop();
            cell.push('…');
        }
        let padding = " ".repeat(COLUMN - cell.chars().count());
        format!("{}{padding}", self.paint(colour, &cell))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours && !colour.is_empty() && !text.is_empty() {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn describe(seen: &SeenRequest, accounts: &Accounts) -> Vec<String> {
    let mut lines = vec![format!("{} {}", seen.method, seen.uri), format!("  as {}", seen.user)];
    if let Some(impersonator) = &seen.impersonator {
        lines.push(format!("  impersonated by {impersonator}"));
    }
    if let Some(token) = seen.bearer() {
        let whose = match token {
            _ if token == accounts.agent.token => "the agent's token",
            _ if token == accounts.powerless.token => "the pod's own token",
            _ => "another token",
        };
        lines.push(format!("  with {whose}, {}", tail(token)));
    }
    lines
}

/// Enough of a token to tell it from another.
fn tail(token: &str) -> String {
    let skipped = token.chars().count().saturating_sub(6);
    format!("…{}", token.chars().skip(skipped).collect::<String>())
}
