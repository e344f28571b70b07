//! One pod's part: kubectl runs in it, and what was sent, seen and answered is shown and judged.

use anyhow::Result;
use understudy_tests::node::{Pod, SeenRequest};

use crate::{
    kubectl_log::{self, Sent},
    page::Page,
    stage::Stage,
};

/// The three pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Tagged,
    Untagged,
    Ended,
}

/// What one kubectl printed.
struct Said {
    line: &'static str,
    code: Option<i32>,
    text: String,
}

/// What an act is judged by.
struct Evidence {
    whoami: Said,
    pods: Said,
    sent: Vec<Sent>,
    seen: Vec<SeenRequest>,
}

impl Act {
    pub(crate) const ALL: [Self; 3] = [Self::Tagged, Self::Untagged, Self::Ended];

    /// Plays it, and says whether all of it was as it must be.
    pub(crate) async fn play(self, stage: &Stage, page: &Page) -> Result<bool> {
        page.act(self.pod(stage).name(), self.subtitle());
        let mark = stage.api.mark().await?;
        let mut sent = Vec::new();
        let whoami = self.kubectl(stage, "auth whoami", &mut sent).await?;
        page.command(whoami.line, &whoami.text);
        let pods = self.kubectl(stage, "get pods --namespace prod", &mut sent).await?;
        page.command(pods.line, &pods.text);
        let evidence = Evidence {
            whoami,
            pods,
            sent,
            seen: stage.api.seen_since(mark).await?,
        };

        page.side_by_side(
            &evidence.sent,
            &evidence.seen,
            self.pod(stage).token(),
            stage.node.accounts(),
        );
        let judged = match self {
            Self::Tagged => evidence.judge_tagged(stage),
            Self::Untagged => evidence.judge_untagged(stage),
            Self::Ended => evidence.judge_ended(stage)?,
        };
        for (claim, holds) in &judged {
            page.judgement(claim, *holds);
        }
        Ok(judged.iter().all(|(_, holds)| *holds))
    }

    fn pod(self, stage: &Stage) -> &Pod {
        match self {
            Self::Tagged => &stage.tagged,
            Self::Untagged => &stage.untagged,
            Self::Ended => &stage.ended,
        }
    }

    fn subtitle(self) -> &'static str {
        match self {
            Self::Tagged => "carries the session support/alice",
            Self::Untagged => "carries no session: Understudy has nothing to do with it",
            Self::Ended => "carries the session support/bob, which has ended",
        }
    }

    async fn kubectl(self, stage: &Stage, line: &'static str, sent: &mut Vec<Sent>) -> Result<Said> {
        let output = self.pod(stage).kubectl(&format!("{line} -v=6")).await?;
        let (requests, stderr) = kubectl_log::part(&output.stderr);
        sent.extend(requests);
        Ok(Said {
            line,
            code: output.code,
            text: format!("{}{stderr}", output.stdout),
        })
    }
}

impl Said {
    fn succeeded_with(&self, word: &str) -> bool {
        self.code == Some(0) && self.text.contains(word)
    }

    fn failed_with(&self, word: &str) -> bool {
        self.code.is_some_and(|code| code != 0) && self.text.contains(word)
    }
}

type Judgements = Vec<(String, bool)>;

impl Evidence {
    fn judge_tagged(&self, stage: &Stage) -> Judgements {
        let accounts = stage.node.accounts();
        let (viewer, agent) = (accounts.viewer.username(), accounts.agent.username());
        let mut judged = vec![
            (format!("kubectl acts as {viewer}"), self.whoami.succeeded_with(&viewer)),
            (
                "it gets the pods that only that account may see".to_owned(),
                self.pods.succeeded_with("web-0"),
            ),
            ("every request it sent arrived".to_owned(), self.all_sent_were_seen()),
            (
                format!("each as that account, impersonated by {agent}"),
                self.all_seen(|seen| seen.user == viewer && seen.impersonator.as_ref() == Some(&agent)),
            ),
        ];
        if self.headers_are_known() {
            let token = stage.tagged.token();
            judged.push((
                "the pod's own token never left the node".to_owned(),
                self.all_seen(|seen| !seen.holds(token)),
            ));
            let agents = |seen: &SeenRequest| seen.bearer() == Some(&accounts.agent.token);
            judged.push(("the agent's token went in its place".to_owned(), self.all_seen(agents)));
        }
        judged
    }

    fn judge_untagged(&self, stage: &Stage) -> Judgements {
        let powerless = stage.node.accounts().powerless.username();
        let mut judged = vec![
            (
                format!("kubectl acts as itself, {powerless}"),
                self.whoami.succeeded_with(&powerless),
            ),
            (
                "which may not see the pods".to_owned(),
                self.pods.failed_with("Forbidden"),
            ),
            ("every request it sent arrived".to_owned(), self.all_sent_were_seen()),
            (
                "each as that account, with nobody in between".to_owned(),
                self.all_seen(|seen| seen.user == powerless && seen.impersonator.is_none()),
            ),
        ];
        if self.headers_are_known() {
            let own = |seen: &SeenRequest| seen.bearer() == Some(stage.untagged.token());
            judged.push(("its own token arrived untouched".to_owned(), self.all_seen(own)));
        }
        judged
    }

    fn judge_ended(&self, stage: &Stage) -> Result<Judgements> {
        let audit = stage.agent.audit()?;
        let mut of_pod = audit
            .iter()
            .filter(|event| event.pod() == Some(stage.ended.name()))
            .peekable();
        let audited = of_pod.peek().is_some() && of_pod.all(|event| event.refused().is_some());
        let refused = |said: &Said| said.code.is_some_and(|code| code != 0);
        Ok(vec![
            (
                "kubectl is refused".to_owned(),
                refused(&self.whoami) && self.pods.failed_with("Forbidden"),
            ),
            (
                "with 403, every time".to_owned(),
                !self.sent.is_empty() && self.sent.iter().all(|sent| sent.code == Some(403)),
            ),
            ("nothing reached the API server".to_owned(), self.seen.is_empty()),
            ("the audit log says that it was refused".to_owned(), audited),
        ])
    }

    fn all_sent_were_seen(&self) -> bool {
        let arrived = |sent: &Sent| {
            self.seen
                .iter()
                .any(|seen| (&seen.method, &seen.uri) == (&sent.method, &sent.uri))
        };
        !self.sent.is_empty() && self.sent.iter().all(arrived)
    }

    fn all_seen(&self, holds: impl Fn(&SeenRequest) -> bool) -> bool {
        !self.seen.is_empty() && self.seen.iter().all(holds)
    }

    /// A real kube-apiserver's audit log has no headers.
    fn headers_are_known(&self) -> bool {
        self.seen.iter().all(|seen| seen.headers.is_some())
    }
}
