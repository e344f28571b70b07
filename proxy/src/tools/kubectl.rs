//! kubectl as the way to the cluster. A plugin is called by it, and it knows what a kubeconfig may ask for: programs that
//! fetch credentials, proxies, contexts, and the streams of port-forward over WebSocket and SPDY.

use std::{
    io,
    process::{Output, Stdio},
    time::Duration,
};

use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroize as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use super::{
    AskOptions,
    ask::{AskError, Lines, ask, follow},
};
use crate::operator::access::audience;

/// How long kubectl may take: somebody may have to log in meanwhile.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a port may take to be forwarded.
const FORWARDING: Duration = Duration::from_secs(20);
/// How long a token is good: the shortest that the API server makes.
const TOKEN_LIFE: &str = "10m";
/// What of kubectl's complaint is shown, in bytes.
const COMPLAINT: usize = 2048;
/// A line of kubectl's that is longer isn't one.
const LINE: u64 = 1024;

/// Why the cluster can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    /// There is none.
    #[error("kubectl can't be run ({0}): install it, or ask the agent of this node alone with --socket")]
    Missing(io::Error),
    /// It says no.
    #[error("kubectl {what}: {said}")]
    Failed {
        /// The command, without its flags.
        what: String,
        /// What it said.
        said: String,
    },
    /// It takes too long.
    #[error("kubectl {0} didn't end in time: see that the API server answers")]
    Silent(String),
    /// It says something else.
    #[error("kubectl {what} says what isn't understood ({problem}): use a release that suits the cluster")]
    Gibberish {
        /// The command.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The agent behind it.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// kubectl, as the options have it.
#[derive(Debug, Clone)]
pub(super) struct Kubectl<'a> {
    options: &'a AskOptions,
}

impl<'a> Kubectl<'a> {
    pub(super) fn new(options: &'a AskOptions) -> Self {
        Self { options }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(words);
        if let Some(kubeconfig) = &self.options.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &self.options.context {
            command.arg("--context").arg(context);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(super) async fn run(&self, words: &[&str]) -> Result<Vec<u8>, KubectlError> {
        let what = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        let ended = timeout(PATIENCE, self.command(words).output()).await;
        let Output { status, stdout, stderr } = ended
            .map_err(|_| KubectlError::Silent(what.clone()))?
            .map_err(KubectlError::Missing)?;
        if status.success() {
            return Ok(stdout);
        }
        let said = complaint(&stderr);
        Err(KubectlError::Failed { what, said })
    }

    /// Runs it, and reads the object that it prints; none where it prints nothing.
    pub(super) async fn object(&self, words: &[&str]) -> Result<Option<Value>, KubectlError> {
        let printed = self.run(words).await?;
        if printed.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let object = serde_json::from_slice(&printed).map_err(|error| KubectlError::Gibberish {
            what: words.iter().take(2).copied().collect::<Vec<_>>().join(" "),
            problem: error.to_string(),
        })?;
        Ok(Some(object))
    }

    /// A token of the operators' account for the agent of one node, as a request shows it.
    async fn token(&self, node: &str) -> Result<HeaderValue, KubectlError> {
        let audience = format!("--audience={}", audience(node));
        let life = format!("--duration={TOKEN_LIFE}");
        let (account, namespace) = (&self.options.operator_account, &self.options.agents_namespace);
        let words = ["create", "token", account, "--namespace", namespace, &audience, &life];
        let mut printed = self.run(&words).await?;
        let token = std::str::from_utf8(&printed).map(|text| SecretString::from(text.trim()));
        printed.zeroize();
        let gibberish = |problem: &str| KubectlError::Gibberish {
            what: "create token".to_owned(),
            problem: problem.to_owned(),
        };
        let token = token.map_err(|_| gibberish("no token"))?;
        let mut field = format!("Bearer {}", token.expose_secret());
        let bearer = HeaderValue::from_str(&field);
        field.zeroize();
        let mut bearer = bearer.map_err(|_| gibberish("no token"))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }

    /// Asks the agent of a node, in the pod `pod`, over a port that the API server forwards.
    pub(super) async fn ask<T: DeserializeOwned>(&self, node: &str, pod: &str, path: &str) -> Result<T, KubectlError> {
        let bearer = self.token(node).await?;
        let (stream, forwarding) = self.forward(pod).await?;
        let answer = ask(stream, path, Some(bearer), &format!("of {node}")).await;
        // It would go with its handle; so that nothing of it is left when we say what we found, it is waited for.
        let mut forwarding = forwarding;
        let _gone = forwarding.kill().await;
        Ok(answer?)
    }

    /// Looks on at the agent of a node, in the pod `pod`, over a port that the API server forwards for as long as what
    /// carries it is held.
    pub(super) async fn follow(&self, node: &str, pod: &str, path: &str) -> Result<(Lines, Child), KubectlError> {
        let bearer = self.token(node).await?;
        let (stream, forwarding) = self.forward(pod).await?;
        let lines = follow(stream, path, Some(bearer), &format!("of {node}")).await?;
        Ok((lines, forwarding))
    }

    /// A connection to the agents' port in a pod, and what carries it.
    async fn forward(&self, pod: &str) -> Result<(TcpStream, Child), KubectlError> {
        let what = || "port-forward".to_owned();
        let (target, port) = (format!("pod/{pod}"), format!(":{}", self.options.agent_port));
        let namespace = &self.options.agents_namespace;
        let words = [
            "port-forward",
            &target,
            &port,
            "--namespace",
            namespace,
            "--address",
            "127.0.0.1",
        ];
        let mut child = self.command(&words).spawn().map_err(KubectlError::Missing)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut stdout = stdout.map(BufReader::new);
        let begun = async {
            let mut line = String::new();
            if let Some(stdout) = &mut stdout {
                stdout.take(LINE).read_line(&mut line).await?;
            }
            Ok::<_, io::Error>(line)
        };
        let begun = timeout(FORWARDING, begun).await;
        let line = match begun {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return Err(KubectlError::Missing(error)),
            Err(_) => return Err(KubectlError::Silent(what())),
        };
        let Some(local) = forwarded_from(&line) else {
            let _gone = child.kill().await;
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                let _whole = stderr.take(COMPLAINT as u64).read_to_end(&mut said).await;
            }
            return Err(KubectlError::Failed {
                what: what(),
                said: complaint(&said),
            });
        };
        // It says each connection that it carries, and dies where nobody reads that.
        tokio::spawn(read_out(stdout));
        tokio::spawn(read_out(stderr));
        let stream = TcpStream::connect(("127.0.0.1", local)).await;
        let stream = stream.map_err(|error| KubectlError::Failed {
            what: what(),
            said: format!("its port can't be dialled ({error})"),
        })?;
        Ok((stream, child))
    }
}

/// Reads to the end what nobody wants to know.
async fn read_out(from: Option<impl AsyncRead + Unpin>) {
    if let Some(mut from) = from {
        // It ends with who writes, however that may be.
        let _ended = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}

/// The port of ours, as `port-forward` says it: `Forwarding from 127.0.0.1:40001 -> 9903`.
fn forwarded_from(line: &str) -> Option<u16> {
    let rest = line.trim().strip_prefix("Forwarding from 127.0.0.1:")?;
    rest.split_once(" -> ")?.0.parse().ok()
}

/// What kubectl says of a failure, without what would move the cursor.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(&stderr[..stderr.len().min(COMPLAINT)]);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|letter| !letter.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        "it failed without a word".to_owned()
    } else {
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Forwarding from 127.0.0.1:40001 -> 9903\n", Some(40_001))]
    #[case("Forwarding from [::1]:40001 -> 9903\n", None)]
    #[case("Forwarding from 127.0.0.1:400010 -> 9903\n", None)]
    #[case("", None)]
    fn the_port_is_read(#[case] line: &str, #[case] expected: Option<u16>) {
        assert_eq!(forwarded_from(line), expected);
    }

    #[rstest]
    #[case(b"", "it failed without a word")]
    #[case(b"error: a\x1b[2J\n\nb\n", "error: a[2J; b")]
    fn complaints(#[case] said: &[u8], #[case] expected: &str) {
        assert_eq!(complaint(said), expected);
    }
}
