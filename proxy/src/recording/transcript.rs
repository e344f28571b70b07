//! From what passed to what is written down: text, sizes of the terminal, and how it ended. Plain data on both sides.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    cast::Code,
    ports::Event,
    stream::{Channel, Seen, Side},
    text::Text,
};

/// A size is shorter: `{"Width":65535,"Height":65535}`.
const LONGEST_SIZE: usize = 128;
/// As much of the final `Status` is looked at.
const LONGEST_STATUS: usize = 16 * 1024;
/// As much of its message is written down.
const LONGEST_MESSAGE: usize = 1024;

/// Something that passed, kept to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a channel.
    Bytes(Channel, Vec<u8>),
    /// Nothing more comes on it.
    Closed(Channel),
    /// Something happened in a port-forward.
    Port(Event),
}

impl Piece {
    /// Adds something of a port-forward to what is kept.
    pub fn add_port(pieces: &mut Vec<Self>, event: Event) {
        if let (
            Event::Carried {
                connection,
                side,
                bytes,
            },
            Some(Self::Port(Event::Carried {
                connection: last,
                side: from,
                bytes: kept,
            })),
        ) = (event, pieces.last_mut())
            && *last == connection
            && *from == side
        {
            *kept += bytes;
        } else {
            pieces.push(Self::Port(event));
        }
    }

    /// Adds something to what is kept.
    pub fn add(pieces: &mut Vec<Self>, seen: Seen<'_>) {
        match (seen, pieces.last_mut()) {
            (Seen::Bytes(channel, bytes), Some(Self::Bytes(last, kept))) if *last == channel => {
                kept.extend_from_slice(bytes);
            }
            (Seen::Bytes(_, []), _) => {}
            (Seen::Bytes(channel, bytes), _) => pieces.push(Self::Bytes(channel, bytes.to_vec())),
            (Seen::Closed(channel), _) => pieces.push(Self::Closed(channel)),
        }
    }
}

/// What has been read of a stream, so far as what follows depends on it.
#[derive(Debug, Default)]
pub struct Transcript {
    stdin: Text,
    stdout: Text,
    stderr: Text,
    /// Whether the last text was of the second of the two outputs.
    shows_stderr: bool,
    size: Vec<u8>,
    status: Vec<u8>,
    /// The connections of a port-forward that are open, by their numbers.
    ports: BTreeMap<u32, Carried>,
}

#[derive(Debug)]
struct Carried {
    port: u16,
    up: u64,
    down: u64,
}

impl Transcript {
    /// Writes down what passed next.
    pub fn read(&mut self, piece: &Piece, write: &mut dyn FnMut(Code, &str)) {
        match piece {
            Piece::Bytes(Channel::Stdin, bytes) => {
                let text = self.stdin.read(bytes);
                if !text.is_empty() {
                    write(Code::Input, &text);
                }
            }
            Piece::Bytes(channel @ (Channel::Stdout | Channel::Stderr), bytes) => {
                let text = self.output(*channel).read(bytes);
                self.show(*channel, &text, write);
            }
            Piece::Bytes(Channel::Resize, bytes) => self.resize(bytes, write),
            Piece::Bytes(Channel::Error, bytes) => {
                let room = LONGEST_STATUS - self.status.len();
                self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Piece::Closed(Channel::Stdin) => write(Code::Closed, "stdin"),
            Piece::Closed(_) => {}
            Piece::Port(event) => self.port(*event, write),
        }
    }

    fn port(&mut self, event: Event, write: &mut dyn FnMut(Code, &str)) {
        match event {
            Event::Opened { connection, port } => {
                write(Code::Port, &format!("{connection} {port} opened"));
                self.ports.insert(connection, Carried { port, up: 0, down: 0 });
            }
            Event::Carried {
                connection,
                side,
                bytes,
            } => {
                if let Some(port) = self.ports.get_mut(&connection) {
                    match side {
                        Side::Client => port.up += bytes,
                        Side::Server => port.down += bytes,
                    }
                }
            }
            Event::Closed { connection } => {
                if let Some(Carried { port, up, down }) = self.ports.remove(&connection) {
                    write(Code::Port, &format!("{connection} {port} closed {up} {down}"));
                }
            }
        }
    }

    /// Nothing more passes.
    pub fn end(&mut self, write: &mut dyn FnMut(Code, &str)) {
        let text = self.stdin.end();
        if !text.is_empty() {
            write(Code::Input, text);
        }
        for channel in [Channel::Stdout, Channel::Stderr] {
            let text = self.output(channel).end();
            self.show(channel, text, write);
        }
        for (connection, Carried { port, up, down }) in std::mem::take(&mut self.ports) {
            write(Code::Port, &format!("{connection} {port} open {up} {down}"));
        }
        if let Some(exit) = exit(&self.status) {
            write(Code::Exit, &exit);
        }
    }

    /// Whether the server has said how it ended: nothing of what was to be shown comes after that.
    #[must_use]
    pub fn has_outcome(&self) -> bool {
        serde_json::from_slice::<Outcome>(&self.status).is_ok_and(|outcome| !outcome.status.is_empty())
    }

    fn output(&mut self, channel: Channel) -> &mut Text {
        if channel == Channel::Stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        }
    }

    fn show(&mut self, channel: Channel, text: &str, write: &mut dyn FnMut(Code, &str)) {
        if text.is_empty() {
            return;
        }
        let is_stderr = channel == Channel::Stderr;
        if self.shows_stderr != is_stderr {
            self.shows_stderr = is_stderr;
            write(Code::Stream, if is_stderr { "stderr" } else { "stdout" });
        }
        write(Code::Output, text);
    }

    /// Each size is an object without another in it.
    fn resize(&mut self, bytes: &[u8], write: &mut dyn FnMut(Code, &str)) {
        for byte in bytes {
            if self.size.len() >= LONGEST_SIZE {
                self.size.clear();
            }
            self.size.push(*byte);
            if *byte == b'}' {
                match serde_json::from_slice(&self.size) {
                    Ok(Size { width, height }) if width > 0 && height > 0 => {
                        write(Code::Resize, &format!("{width}x{height}"));
                    }
                    // Of no size, or none: nothing that could be shown.
                    Ok(_) | Err(_) => {}
                }
                self.size.clear();
            }
        }
    }
}

/// `TerminalSize` of `k8s.io/client-go/tools/remotecommand`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Outcome {
    status: String,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// The exit code, or what is said in its place.
fn exit(status: &[u8]) -> Option<String> {
    if status.is_empty() {
        return None;
    }
    // Before v4 it was text, and nothing where it went well.
    let mut said = match serde_json::from_slice::<Outcome>(status) {
        Ok(outcome) if outcome.status == "Success" => return Some("0".to_owned()),
        Ok(outcome) => {
            let code = outcome
                .details
                .causes
                .into_iter()
                .find(|cause| cause.reason == "ExitCode");
            code.map_or(outcome.message, |cause| cause.message)
        }
        Err(_) => String::from_utf8_lossy(status).into_owned(),
    };
    said.truncate(said.floor_char_boundary(LONGEST_MESSAGE));
    Some(said)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn written(pieces: &[(Channel, &str)]) -> Vec<(Code, String)> {
        let mut transcript = Transcript::default();
        let mut lines = Vec::new();
        let mut write = |code, text: &str| lines.push((code, text.to_owned()));
        for (channel, text) in pieces {
            transcript.read(&Piece::Bytes(*channel, text.as_bytes().to_vec()), &mut write);
        }
        transcript.end(&mut write);
        lines
    }

    fn line(code: Code, text: &str) -> (Code, String) {
        (code, text.to_owned())
    }

    #[test]
    fn outputs_are_told_apart_where_they_change() {
        let pieces = [
            (Channel::Stdout, "a\n"),
            (Channel::Stdout, "b"),
            (Channel::Stderr, "c\n"),
            (Channel::Stdin, "d\n"),
            (Channel::Stderr, "e"),
            (Channel::Stdout, "f"),
        ];
        let expected = [
            line(Code::Output, "a\n"),
            line(Code::Output, "b"),
            line(Code::Stream, "stderr"),
            line(Code::Output, "c\n"),
            line(Code::Input, "d\n"),
            line(Code::Output, "e"),
            line(Code::Stream, "stdout"),
            line(Code::Output, "f"),
        ];
        assert_eq!(written(&pieces), expected);
    }

    #[test]
    fn what_ports_carried_is_summed_up() {
        let carried = |connection, side, bytes| Event::Carried {
            connection,
            side,
            bytes,
        };
        let mut pieces = Vec::new();
        for event in [
            Event::Opened {
                connection: 1,
                port: 80,
            },
            carried(1, Side::Client, 5),
            carried(1, Side::Client, 6),
            carried(1, Side::Server, 7),
            Event::Opened {
                connection: 2,
                port: 443,
            },
            carried(2, Side::Server, 8),
            Event::Closed { connection: 1 },
            carried(1, Side::Server, 9),
        ] {
            Piece::add_port(&mut pieces, event);
        }
        assert_eq!(pieces[1], Piece::Port(carried(1, Side::Client, 11)));
        assert_eq!(pieces.len(), 7);
        let mut transcript = Transcript::default();
        let mut lines = Vec::new();
        let mut write = |code, text: &str| lines.push((code, text.to_owned()));
        for piece in &pieces {
            transcript.read(piece, &mut write);
        }
        transcript.end(&mut write);
        let texts = ["1 80 opened", "2 443 opened", "1 80 closed 11 7", "2 443 open 0 8"];
        assert_eq!(lines, texts.map(|text| line(Code::Port, text)));
    }

    #[test]
    fn sizes_are_read_wherever_they_are_cut() {
        let long = format!("{}{{\"Width\":7,\"Height\":8}}", "x".repeat(1000));
        let pieces = [
            (Channel::Resize, r#"{"Width":80,"Height":24}{"Wid"#),
            (Channel::Resize, "th\":132,\"Height\":43}\n"),
            (Channel::Resize, r#"{"Width":0,"Height":0}{}{"Width":-1,"Height":1}"#),
            (Channel::Resize, r#"{"Width":1,"Height":2}"#),
            (Channel::Resize, &long),
        ];
        let sizes = ["80x24", "132x43", "1x2"].map(|size| line(Code::Resize, size));
        assert_eq!(written(&pieces), sizes);
    }

    #[rstest]
    #[case::success(r#"{"metadata":{},"status":"Success"}"#, Some("0"))]
    #[case::code(
        r#"{"status":"Failure","message":"command terminated","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#,
        Some("137")
    )]
    #[case::no_code(r#"{"status":"Failure","message":"no such container"}"#, Some("no such container"))]
    #[case::before_v4("command terminated", Some("command terminated"))]
    #[case::nothing("", None)]
    fn how_it_ended_is_said(#[case] status: &str, #[case] said: Option<&str>) {
        let (start, end) = status.split_at(status.len() / 2);
        let lines = written(&[(Channel::Error, start), (Channel::Error, end)]);
        assert_eq!(
            lines,
            said.map(|said| line(Code::Exit, said)).into_iter().collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_status_without_end_is_bounded() {
        let long = "x".repeat(LONGEST_STATUS);
        let lines = written(&[(Channel::Error, &long), (Channel::Error, &long)]);
        assert_eq!(lines, [line(Code::Exit, &long[..LONGEST_MESSAGE])]);
    }

    #[test]
    fn what_is_kept_is_put_together() {
        let mut pieces = Vec::new();
        for seen in [
            Seen::Bytes(Channel::Stdout, b"a"),
            Seen::Bytes(Channel::Stdout, b"b"),
            Seen::Bytes(Channel::Stderr, b""),
            Seen::Closed(Channel::Stdout),
            Seen::Bytes(Channel::Stdout, b"c"),
        ] {
            Piece::add(&mut pieces, seen);
        }
        let bytes = |text: &[u8]| Piece::Bytes(Channel::Stdout, text.to_vec());
        assert_eq!(pieces, [bytes(b"ab"), Piece::Closed(Channel::Stdout), bytes(b"c")]);
    }
}
