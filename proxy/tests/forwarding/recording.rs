//! Streams of a session that is recorded: what is written down is what passed, and what must be recorded and can't be
//! doesn't pass.

use std::{fs, future::Future, path::Path, time::Duration};

use rstest::rstest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use understudy::{
    metrics::RecordingFailure,
    recording::cast::{Ending, verify},
};

use crate::{
    stage::{Stage, Terms, whole},
    upgrades::{ASK, head, raw_under, write},
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-protocol: v5.channel.k8s.io\r\n\r\n";

fn terms(recording: &str, directory: Option<&Path>) -> Terms {
    let mut terms = Terms::default();
    terms.spec["recording"] = json!(recording);
    terms.recordings = directory.map(Path::to_owned);
    terms
}

const EXIT: &str = r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;

/// A message, in one frame.
fn frame(mask: Option<[u8; 4]>, channel: u8, payload: &[u8]) -> Vec<u8> {
    let message = [&[channel][..], payload].concat();
    let length = u8::try_from(message.len()).unwrap();
    assert!(length < 126);
    let Some(mask) = mask else {
        return [&[0x82, length][..], &message].concat();
    };
    let masked = message.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [0x82, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
}

fn from_client(channel: u8, payload: &[u8]) -> Vec<u8> {
    frame(Some([7, 1, 200, 90]), channel, payload)
}

fn from_server(channel: u8, payload: &[u8]) -> Vec<u8> {
    frame(None, channel, payload)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not in time"))
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// The one recording that there is, once it is at its end: its lines, and why it ended.
async fn recorded(directory: &Path) -> (Vec<Value>, String) {
    let ended = async {
        loop {
            if let [file] = &files(directory)[..] {
                let bytes = fs::read(file).unwrap();
                if let Ok(verified) = verify(&bytes[..])
                    && let Ending::Whole(why) = verified.ending
                {
                    let text = String::from_utf8(bytes).unwrap();
                    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
                    return (lines.collect(), why);
                }
            }
            tokio::task::yield_now().await;
        }
    };
    within("a recording with its end", ended).await
}

/// Codes and texts, without sums and times.
fn events(lines: &[Value]) -> Vec<(&str, &str)> {
    let events = lines[1..]
        .iter()
        .map(|line| (line[1].as_str().unwrap(), line[2].as_str().unwrap()));
    events.filter(|(code, _)| *code != "h").collect()
}

#[rstest]
#[case::without_stdin(false)]
#[case::with_stdin(true)]
#[tokio::test]
async fn what_is_written_down_is_what_passed(#[case] stdin: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut terms = terms("required", Some(directory.path()));
    terms.spec["recordStdin"] = json!(stdin);
    let (stage, played) = raw_under(terms, |mut upstream| async move {
        let asked = head(&mut upstream).await.to_lowercase();
        assert!(!asked.contains("sec-websocket-extensions"), "{asked}");
        // What comes right behind the head is recorded too.
        write(&mut upstream, [SWITCH.as_bytes(), &from_server(1, b"$ ")].concat()).await;
        let typed = from_client(0, b"caf\xc3\xa9\n");
        let mut up = vec![0; from_client(4, br#"{"Width":100,"Height":30}"#).len() + typed.len()];
        upstream.read_exact(&mut up).await.unwrap();
        assert!(up.ends_with(&typed), "nothing of it is changed");
        for (channel, payload) in [
            (1, &b"caf\xc3"[..]),
            (1, &b"\xa9\n"[..]),
            (2, &b"not found\n"[..]),
            (3, EXIT.as_bytes()),
        ] {
            write(&mut upstream, from_server(channel, payload)).await;
        }
        write(&mut upstream, [0x88, 2, 3, 0xe8]).await;
        upstream.shutdown().await.unwrap();
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    let ask = ASK.replace("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n");
    write(&mut client, ask).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    let mut prompt = vec![0; from_server(1, b"$ ").len()];
    client.read_exact(&mut prompt).await.unwrap();
    write(&mut client, from_client(4, br#"{"Width":100,"Height":30}"#)).await;
    write(&mut client, from_client(0, b"caf\xc3\xa9\n")).await;
    let mut shown = Vec::new();
    within("the stream ends", client.read_to_end(&mut shown)).await.unwrap();
    client.shutdown().await.unwrap();
    played.await.unwrap();

    let (lines, why) = recorded(directory.path()).await;
    assert_eq!(why, "closed");
    let about = &lines[0]["understudy"];
    let events_of_audit = stage.events().await;
    assert_eq!(about["auditID"], events_of_audit[0]["auditID"]);
    // Each names the other.
    let name = files(directory.path())[0].file_name().unwrap().to_owned();
    for event in &events_of_audit {
        assert_eq!(event["annotations"]["understudy.dev/recording"], name.to_str().unwrap());
    }
    assert_eq!(about["session"], "support/alice");
    assert_eq!(about["pod"], "shell-0");
    assert_eq!(about["impersonatedUser"], "system:serviceaccount:prod:viewer");
    assert_eq!(
        about["target"],
        json!({"subresource": "exec", "namespace": "default", "pod": "p"})
    );
    assert_eq!(lines[0]["command"], "cat");
    let (outputs, others): (Vec<_>, Vec<_>) = events(&lines).into_iter().partition(|(code, _)| *code == "o");
    let shown: String = outputs.into_iter().map(|(_, text)| text).collect();
    assert_eq!(shown, "$ caf\u{e9}\r\nnot found\r\n");
    let typed = stdin.then_some(("i", "caf\u{e9}\n"));
    let after = [("s", "stderr"), ("x", "7"), ("z", "closed")];
    let expected: Vec<_> = [("r", "100x30")].into_iter().chain(typed).chain(after).collect();
    assert_eq!(others, expected);
    let mode = std::os::unix::fs::PermissionsExt::mode(&files(directory.path())[0].metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// A port-forward of the form that has no sub-protocol.
fn forward_by_no_name() -> String {
    let line = ASK
        .lines()
        .find(|line| line.starts_with("sec-websocket-protocol"))
        .unwrap();
    ASK.replace("/exec", "/portforward").replace(&format!("{line}\r\n"), "")
}

/// That its messages are read is shown with kubectl; here, that one which can't be followed doesn't go on.
#[rstest]
#[case::required("required", false)]
#[case::best_effort("best-effort", true)]
#[tokio::test]
async fn a_port_forward_is_watched(#[case] recording: &str, #[case] goes_on: bool) {
    const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
    // A ping of SPDY's; and data of a stream that nobody opened.
    const PING: [u8; 14] = [0x82, 12, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    const HIDDEN: [u8; 11] = [0x82, 9, 0, 0, 0, 7, 0, 0, 0, 1, b'x'];
    let directory = tempfile::tempdir().unwrap();
    let (stage, played) = raw_under(terms(recording, Some(directory.path())), |mut upstream| async move {
        let asked = head(&mut upstream).await;
        assert!(
            asked.starts_with("GET /api/v1/namespaces/default/pods/p/portforward"),
            "{asked}"
        );
        let switch = SWITCH.replace("v5.channel.k8s.io", TUNNEL);
        write(&mut upstream, [switch.as_bytes(), &PING].concat()).await;
        let _ = upstream.read_u8().await;
        let _ = upstream.write_all(&HIDDEN).await;
        let _ = upstream.shutdown().await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    let ask = ASK
        .replace("/exec", "/portforward")
        .replace("v5.channel.k8s.io", TUNNEL);
    write(&mut client, ask).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    let mut seen = [0; PING.len()];
    client.read_exact(&mut seen).await.unwrap();
    write(&mut client, [0x8a, 0x80, 0, 0, 0, 0]).await;
    let mut rest = Vec::new();
    let _ = within("it ends", client.read_to_end(&mut rest)).await;
    assert_eq!(rest.ends_with(&HIDDEN), goes_on, "{rest:?}");
    drop(client);
    played.await.unwrap();
    let (lines, why) = recorded(directory.path()).await;
    assert_eq!(lines[0]["title"], "portforward default/p: cat");
    assert_eq!(
        (events(&lines), why.as_str()),
        (vec![("z", "broken-off")], "broken-off")
    );
}

#[rstest]
#[case::no_directory("required", false, ASK.to_owned(), 503)]
#[case::base64("required", true, ASK.replace("v5.channel", "base64.channel"), 403)]
#[case::forward_by_channels("required", true, ASK.replace("/exec", "/portforward"), 403)]
#[case::forward_by_no_name("required", true, forward_by_no_name(), 403)]
#[case::by_the_kubelet("required", true, ASK.replace("namespaces/default/pods/p/exec", "nodes/n/proxy/exec/d/p/c"), 403)]
#[case::best_effort_no_directory("best-effort", false, ASK.to_owned(), 404)]
#[case::best_effort_base64("best-effort", true, ASK.replace("v5.channel", "base64.channel"), 404)]
#[case::not_switched("required", true, ASK.to_owned(), 404)]
#[tokio::test]
async fn what_must_be_recorded_and_cannot_be_is_refused(
    #[case] recording: &str,
    #[case] has_directory: bool,
    #[case] ask: String,
    #[case] code: u16,
) {
    let directory = tempfile::tempdir().unwrap();
    let terms = terms(recording, has_directory.then(|| directory.path()));
    let stage = Stage::new(terms, |_| async {
        let mut answer = whole("no such pod");
        *answer.status_mut() = http::StatusCode::NOT_FOUND;
        answer
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ask).await;
    let answer = head(&mut client).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
    assert_eq!(
        stage.seen.count(),
        usize::from(code == 404),
        "sent on only where it may be"
    );
    // No stream, no recording.
    within("no file is left", async {
        while !files(directory.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[rstest]
#[case::required("required", false)]
#[case::best_effort("best-effort", true)]
#[tokio::test]
async fn a_stream_that_cannot_be_followed_ends_where_it_must_be_recorded(
    #[case] recording: &str,
    #[case] goes_on: bool,
) {
    let directory = tempfile::tempdir().unwrap();
    let (stage, played) = raw_under(terms(recording, Some(directory.path())), |mut upstream| async move {
        head(&mut upstream).await;
        write(&mut upstream, [SWITCH.as_bytes(), &from_server(1, b"seen")].concat()).await;
        let _ = upstream.read_u8().await;
        // Compressed, which nobody asked for.
        let hidden = [0xc2, 7, 1, b'h', b'i', b'd', b'd', b'e', b'n'];
        let _ = upstream.write_all(&hidden).await;
        let _ = upstream.shutdown().await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ASK).await;
    head(&mut client).await;
    let mut seen = vec![0; from_server(1, b"seen").len()];
    client.read_exact(&mut seen).await.unwrap();
    write(&mut client, from_client(0, b"x")).await;
    let mut rest = Vec::new();
    // Cut off, or to its end.
    let _ = within("it ends", client.read_to_end(&mut rest)).await;
    assert_eq!(rest.ends_with(b"hidden"), goes_on, "{rest:?}");
    drop(client);
    played.await.unwrap();
    let (lines, why) = recorded(directory.path()).await;
    assert_eq!(why, "broken-off");
    assert_eq!(events(&lines), [("o", "seen"), ("z", "broken-off")]);
    assert_eq!(stage.metrics.recording().failures(RecordingFailure::Stream), 1);
}

#[tokio::test]
async fn a_sessions_end_is_in_its_recordings() {
    let directory = tempfile::tempdir().unwrap();
    let (stage, _played) = raw_under(terms("required", Some(directory.path())), |mut upstream| async move {
        head(&mut upstream).await;
        write(&mut upstream, [SWITCH.as_bytes(), &from_server(1, b"seen")].concat()).await;
        let _ = upstream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ASK).await;
    head(&mut client).await;
    let mut seen = vec![0; from_server(1, b"seen").len()];
    client.read_exact(&mut seen).await.unwrap();
    stage.declare(None).await;
    let (lines, why) = recorded(directory.path()).await;
    assert_eq!((events(&lines)[0], why.as_str()), (("o", "seen"), "cut-short"));
}
