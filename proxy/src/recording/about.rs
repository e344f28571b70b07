//! What a recording says of itself: who, where, what command.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::Serialize;

/// What a recording is of. It stands in its first line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The id of the request in the audit log, here and in the API server's own.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// The session, `namespace/name`.
    pub session: String,
    /// The node whose agent recorded it.
    pub node: String,
    /// The pod that asked.
    pub pod: String,
    /// Who its caller proved to be, where it had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As whom it was done, where that is impersonated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<String>,
    /// Where it was done.
    pub target: Target,
    /// What was asked for there.
    pub asked: Asked,
    /// Whether what was typed is in it.
    pub records_stdin: bool,
}

/// Where an exec, an attach or a port-forward goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// `exec`, `attach` or `portforward`.
    pub subresource: &'static str,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
}

impl Target {
    /// Whether ports are forwarded there.
    #[must_use]
    pub fn is_forward(&self) -> bool {
        self.subresource == PORT_FORWARD
    }
}

/// The subresource of a port-forward.
pub const PORT_FORWARD: &str = "portforward";

/// The parameters of an exec or attach (`PodExecOptions`, `PodAttachOptions`).
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a parameter of the URI, and they are independent"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The container; empty where the server chooses.
    pub container: String,
    /// The command and its arguments. An attach has none.
    pub command: Vec<String>,
    /// Whether something may be typed.
    pub stdin: bool,
    /// Whether output is wanted.
    pub stdout: bool,
    /// Whether complaints are, on a stream of their own.
    pub stderr: bool,
    /// Whether there is a terminal.
    pub tty: bool,
}

impl Asked {
    /// Reads them off a URI's query, as the API server does.
    #[must_use]
    pub fn of(query: &str) -> Self {
        let mut asked = Self::default();
        // Of a flag the first value counts.
        let (mut stdin, mut stdout, mut stderr, mut tty) = (None, None, None, None);
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value);
            match &*unescape(name) {
                "container" if asked.container.is_empty() => asked.container = value.into_owned(),
                "command" => asked.command.push(value.into_owned()),
                "stdin" => {
                    stdin.get_or_insert(is_true(&value));
                }
                "stdout" => {
                    stdout.get_or_insert(is_true(&value));
                }
                "stderr" => {
                    stderr.get_or_insert(is_true(&value));
                }
                "tty" => {
                    tty.get_or_insert(is_true(&value));
                }
                _ => {}
            }
        }
        asked.stdin = stdin.unwrap_or_default();
        asked.stdout = stdout.unwrap_or_default();
        asked.stderr = stderr.unwrap_or_default();
        asked.tty = tty.unwrap_or_default();
        asked
    }

    /// The command as one would type it.
    #[must_use]
    pub fn command_line(&self) -> String {
        self.command
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl About {
    /// A line that says what it is of.
    #[must_use]
    pub fn title(&self) -> String {
        let Target {
            subresource,
            namespace,
            pod,
        } = &self.target;
        match self.asked.command_line() {
            command if command.is_empty() => format!("{subresource} {namespace}/{pod}"),
            command => format!("{subresource} {namespace}/{pod}: {command}"),
        }
    }
}

/// `Convert_Slice_string_To_bool` of apimachinery.
fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn parameters_are_read_as_the_api_server_does() {
        let asked =
            Asked::of("command=sh&command=-c&command=echo+a%20b%3B+exit&container=web&stdin=true&tty=1&stdout=");
        let expected = Asked {
            container: "web".to_owned(),
            command: ["sh", "-c", "echo a b; exit"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(asked, expected);
        assert_eq!(asked.command_line(), "sh -c 'echo a b; exit'");
        let other = Asked::of("stdin=FALSE&stdin=true&tty=0&stderr");
        assert!(other.stderr && !other.stdin && !other.tty, "{other:?}");
        assert_eq!(Asked::of(""), Asked::default());
    }

    #[rstest]
    #[case("ls", "ls")]
    #[case("a b", "'a b'")]
    #[case("", "''")]
    #[case("it's", r"'it'\''s'")]
    fn words_stay_words(#[case] word: &str, #[case] shown: &str) {
        assert_eq!(quoted(word), shown);
    }
}
