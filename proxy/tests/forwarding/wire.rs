//! What hostile clients send byte by byte, and what they see come of it, in the words of the document.

use std::{fmt, time::Duration};

use http::{HeaderMap, request::Parts};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::stage::Stage;

/// Longer than anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An answer as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) code: u16,
    /// The reason of a `Status`, if it is one that says the same code.
    pub(crate) reason: Option<String>,
    pub(crate) says_close: bool,
    pub(crate) body: Vec<u8>,
}

impl Answered {
    pub(crate) fn new(code: u16, says_close: bool, body: Vec<u8>) -> Self {
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_status = status["kind"] == "Status" && status["code"] == code;
        Self {
            code,
            reason: is_status.then(|| status["reason"].as_str().unwrap_or_default().to_owned()),
            says_close,
            body,
        }
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} `Status` {reason}", self.code),
            None => write!(f, "{}", self.code),
        }
    }
}

/// What a client saw on an HTTP/1 connection until it ended, and what the upstream saw of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answers: Vec<Answered>,
    upstream: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers: Vec<String> = self.answers.iter().map(ToString::to_string).collect();
        let answers = if answers.is_empty() {
            "no answer".to_owned()
        } else {
            answers.join(", then ")
        };
        write!(f, "{answers}, connection closed; {}", upstream(self.upstream))
    }
}

/// How many requests the upstream saw, in words.
pub(crate) fn upstream(requests: usize) -> String {
    match requests {
        0 => "nothing upstream".to_owned(),
        1 => "one request upstream".to_owned(),
        more => format!("{more} requests upstream"),
    }
}

pub(crate) async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: impl AsRef<[u8]>) {
    io.write_all(bytes.as_ref()).await.unwrap();
    io.flush().await.unwrap();
}

/// Sends bytes over HTTP/1 and reads until the agent closes, which it has to do with a `close_notify`.
pub(crate) async fn play(stage: &Stage, bytes: impl AsRef<[u8]>) -> Outcome {
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, bytes).await;
    let answers = answers(&mut client).await;
    Outcome {
        answers,
        upstream: stage.seen.count(),
    }
}

/// All answers until the connection is closed.
pub(crate) async fn answers(client: &mut (impl AsyncRead + Unpin)) -> Vec<Answered> {
    let mut received = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut received))
        .await
        .expect("the connection ends")
        .expect("with a close_notify");
    let mut rest = received.as_slice();
    let mut answers = Vec::new();
    while let Some((answered, length)) = parse(rest) {
        answers.push(answered);
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "{:?} is no answer", String::from_utf8_lossy(rest));
    answers
}

/// The next answer; the connection stays as it is.
pub(crate) async fn answer(client: &mut (impl AsyncRead + Unpin)) -> Answered {
    let mut received = Vec::new();
    loop {
        if let Some((answered, length)) = parse(&received) {
            assert_eq!(length, received.len(), "nothing comes unasked");
            return answered;
        }
        let read = timeout(PATIENCE, client.read_buf(&mut received));
        assert_ne!(read.await.expect("an answer").unwrap(), 0, "the connection ended");
    }
}

fn parse(bytes: &[u8]) -> Option<(Answered, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else {
        return None;
    };
    let field = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| std::str::from_utf8(field.value).unwrap())
    };
    let length = field("content-length").map_or(0, |length| length.parse().unwrap());
    let says_close = field("connection") == Some("close");
    let body = bytes.get(head..head + length)?.to_vec();
    Some((Answered::new(response.code.unwrap(), says_close, body), head + length))
}

/// What a request carried upstream, in words: nothing but the session's own identity, once, or what else there was.
pub(crate) fn identity_of(head: &Parts) -> String {
    let of_identity = |name: &str| {
        let folded = name.replace('_', "-");
        [
            "authorization",
            "proxy-authorization",
            "cookie",
            "forwarded",
            "x-real-ip",
            "x-client-ip",
        ]
        .contains(&&*folded)
            || ["impersonate", "x-remote", "x-forwarded", "x-original"]
                .iter()
                .any(|prefix| folded.starts_with(prefix))
    };
    let mut sent: Vec<(String, String)> = lines(&head.headers)
        .filter(|(name, value)| of_identity(name) || value.contains("bearer.authorization"))
        .collect();
    sent.sort();
    let mut own: Vec<(String, String)> = [
        ("authorization", "Bearer agent-token"),
        ("impersonate-group", "system:authenticated"),
        ("impersonate-group", "system:serviceaccounts"),
        ("impersonate-group", "system:serviceaccounts:prod"),
        ("impersonate-user", "system:serviceaccount:prod:viewer"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    own.sort();
    let ids: Vec<_> = head.headers.get_all("audit-id").iter().collect();
    if sent == own && ids.len() == 1 && ids[0] != "spoofed" {
        "only the session's identity upstream".to_owned()
    } else {
        format!("upstream saw {sent:?} and {ids:?}")
    }
}

fn lines(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
}
