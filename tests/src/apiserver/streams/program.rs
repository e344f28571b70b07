//! What runs in the pods: not processes, but a few commands of a tiny shell, enough to tell whether each stream
//! carries what it should. `echo`, `cat`, `wc -c`, `head -c N /dev/zero`,
//! `head -c N` of a log that never ends, `sleep N`, `exit N`, `true`, `false`, and
//! `sh -c` of those, joined by `;` or newlines, with `>&2`.

use std::{fmt::Write as _, sync::LazyLock, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The most that is written at once.
const CHUNK: usize = 32 * 1024;

/// The log that never ends.
pub const LOG_FILE: &str = "/var/log/messages";

static LOG: LazyLock<Bytes> = LazyLock::new(|| {
    let mut text = String::with_capacity(2 * CHUNK);
    for line in 0_u64.. {
        if text.len() >= CHUNK {
            break;
        }
        let (second, micros, id) = (
            line % 60,
            line * 7919 % 1_000_000,
            line.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        // A string never fails to take more.
        let _ = writeln!(
            text,
            "2026-11-22T19:05:{second:02}.{micros:06}Z INFO request id={id} path=/api/v1/pods \"GET\" status=200"
        );
    }
    text.truncate(CHUNK);
    Bytes::from(text)
});

/// What the log has, again and again: lines as programs print them.
#[must_use]
pub fn log() -> Bytes {
    LOG.clone()
}

/// The streams of a program, as a transport holds their other ends. Channels of a few chunks, so that a slow client
/// slows the program.
pub(crate) struct Streams {
    /// Closed at the client's end of stdin.
    pub(crate) stdin: mpsc::Receiver<Bytes>,
    pub(crate) output: mpsc::Sender<(Output, Bytes)>,
}

/// Where a program writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Something to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    words: Vec<String>,
    to: Output,
}

/// A program's end, early or not.
type Exit = u8;
/// The exit of a program nobody reads any more.
const BROKEN_PIPE: Exit = 141;

impl Program {
    /// A command and its arguments.
    pub(crate) fn command(words: Vec<String>) -> Self {
        match &words[..] {
            [shell, flag, script, ..] if matches!(shell.as_str(), "sh" | "/bin/sh" | "bash") && flag == "-c" => {
                Self(parse(script))
            }
            _ => Self(vec![Step {
                words,
                to: Output::Stdout,
            }]),
        }
    }

    /// What one meets when attaching to a pod.
    pub(crate) fn attached(pod: &str) -> Self {
        Self(parse(&format!("echo attached to {pod}; cat")))
    }

    /// Nothing at all.
    pub(crate) fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Runs to the exit code.
    pub(crate) async fn run(self, mut streams: Streams) -> Exit {
        let mut last = 0;
        for step in self.0 {
            if step.words.first().is_some_and(|word| word == "exit") {
                return step.number().unwrap_or(last);
            }
            last = match step.run(&mut streams).await {
                Ok(code) => code,
                Err(Closed) => return BROKEN_PIPE,
            };
        }
        last
    }
}

/// The reader is gone.
#[derive(Debug)]
struct Closed;

impl Step {
    fn number<T: std::str::FromStr>(&self) -> Option<T> {
        self.words.get(1)?.parse().ok()
    }

    async fn run(&self, streams: &mut Streams) -> Result<Exit, Closed> {
        let Some((command, arguments)) = self.words.split_first() else {
            return Ok(0);
        };
        match command.rsplit('/').next().unwrap_or_default() {
            "echo" => {
                let line = format!("{}\n", arguments.join(" "));
                self.write(streams, line.into()).await?;
            }
            "cat" => {
                while let Some(bytes) = streams.stdin.recv().await {
                    self.write(streams, bytes).await?;
                }
            }
            "wc" => {
                let mut length = 0;
                while let Some(bytes) = streams.stdin.recv().await {
                    length += bytes.len();
                }
                self.write(streams, format!("{length}\n").into()).await?;
            }
            "head" => {
                let mut left: usize = arguments.get(1).and_then(|count| count.parse().ok()).unwrap_or(0);
                let block = match arguments.get(2).map(String::as_str) {
                    Some(LOG_FILE) => log(),
                    _ => Bytes::from(vec![0; CHUNK]),
                };
                while left > 0 {
                    let size = left.min(CHUNK);
                    self.write(streams, block.slice(..size)).await?;
                    left -= size;
                }
            }
            "sleep" => {
                let seconds = self.number::<f64>().unwrap_or(0.0).clamp(0.0, 3600.0);
                let elapsed = tokio::time::sleep(Duration::from_secs_f64(seconds));
                tokio::select! {
                    () = elapsed => {}
                    () = streams.output.closed() => return Err(Closed),
                }
            }
            "true" => {}
            "false" => return Ok(1),
            _ => {
                let text = format!("{command}: not found\n");
                let output = (Output::Stderr, text.into());
                streams.output.send(output).await.map_err(|_| Closed)?;
                return Ok(127);
            }
        }
        Ok(0)
    }

    async fn write(&self, streams: &Streams, bytes: Bytes) -> Result<(), Closed> {
        streams.output.send((self.to, bytes)).await.map_err(|_| Closed)
    }
}

fn parse(script: &str) -> Vec<Step> {
    script
        .split([';', '\n'])
        .map(|part| {
            let mut words: Vec<String> = part
                .split_whitespace()
                .map(|word| word.trim_matches(['"', '\'']).to_owned())
                .collect();
            let before = words.len();
            words.retain(|word| word != ">&2" && word != "1>&2");
            Step {
                to: if words.len() < before {
                    Output::Stderr
                } else {
                    Output::Stdout
                },
                words,
            }
        })
        .filter(|step| !step.words.is_empty())
        .collect()
}

/// What the error channel says at the end.
pub(crate) fn exit_status(code: Exit) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["echo", "a", "b"], "", "a b\n", "", 0)]
    #[case(&["cat"], "in", "in", "", 0)]
    #[case(&["wc", "-c"], "four", "4\n", "", 0)]
    #[case(&["head", "-c", "3", "/dev/zero"], "", "\0\0\0", "", 0)]
    #[case(&["head", "-c", "10", LOG_FILE], "", "2026-11-22", "", 0)]
    #[case(&["false"], "", "", "", 1)]
    #[case(&["sh", "-c", "echo out; echo err >&2; exit 3; echo never"], "", "out\n", "err\n", 3)]
    #[case(&["/bin/sh", "-c", "cat; true"], "x", "x", "", 0)]
    #[case(&["sh", "-c", "false; exit"], "", "", "", 1)]
    #[case(&["vi"], "", "", "vi: not found\n", 127)]
    #[tokio::test]
    async fn commands(
        #[case] words: &[&str],
        #[case] input: &'static str,
        #[case] stdout: &str,
        #[case] stderr: &str,
        #[case] code: Exit,
    ) {
        let (stdin, receiver) = mpsc::channel(1);
        let (sender, mut output) = mpsc::channel(8);
        stdin.send(Bytes::from_static(input.as_bytes())).await.unwrap();
        drop(stdin);
        let program = Program::command(words.iter().map(|&word| word.to_owned()).collect());
        let exit = program
            .run(Streams {
                stdin: receiver,
                output: sender,
            })
            .await;
        let mut written = [String::new(), String::new()];
        while let Some((to, bytes)) = output.recv().await {
            written[usize::from(to == Output::Stderr)] += std::str::from_utf8(&bytes).unwrap();
        }
        assert_eq!((exit, written), (code, [stdout.to_owned(), stderr.to_owned()]));
    }

    #[tokio::test]
    async fn a_program_ends_when_nobody_reads() {
        let (_stdin, receiver) = mpsc::channel(1);
        let (sender, output) = mpsc::channel(1);
        drop(output);
        let program = Program::command(vec!["sleep".to_owned(), "60".to_owned()]);
        let exit = program
            .run(Streams {
                stdin: receiver,
                output: sender,
            })
            .await;
        assert_eq!(exit, BROKEN_PIPE);
    }
}
