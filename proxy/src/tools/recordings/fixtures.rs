//! Recordings for tests, written by what the agent writes them with.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use crate::recording::{
    about::{About, Asked, Target},
    cast::{Cast, End},
    ports::Event,
    stream::{Channel, Side},
    transcript::Piece,
};

/// When they begin.
pub(super) const BEGAN: &str = "2026-11-22T14:00:00Z";

pub(super) fn about(session: &str, target: &str) -> About {
    About {
        audit_id: "7a1e".to_owned(),
        session: session.to_owned(),
        node: "node-1".to_owned(),
        pod: "support/shell-0".to_owned(),
        user: None,
        impersonated_user: Some("viewer".to_owned()),
        target: Target {
            subresource: "exec",
            namespace: "prod".to_owned(),
            pod: target.to_owned(),
        },
        asked: Asked {
            command: vec!["sh".to_owned()],
            tty: true,
            ..Asked::default()
        },
        records_stdin: false,
    }
}

/// A recording in which each text is shown a second after the one before, each in a write of its own.
pub(super) fn recorded(about: &About, said: &[&str]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut cast = Cast::begin(&mut file, about, BEGAN.parse::<Timestamp>().unwrap()).unwrap();
    for (at, text) in (1..).zip(said) {
        let piece = Piece::Bytes(Channel::Stdout, text.as_bytes().to_vec());
        cast.write([(Duration::from_secs(at), &piece)]).unwrap();
    }
    cast.end(Duration::from_secs(10), End::Closed).unwrap();
    file
}

/// A port-forward, in which one connection carries a little.
pub(super) fn forwarded() -> Vec<u8> {
    let mut about = about("support/alice", "web-0");
    about.target.subresource = "portforward";
    about.asked = Asked::default();
    let mut file = Vec::new();
    let mut cast = Cast::begin(&mut file, &about, BEGAN.parse::<Timestamp>().unwrap()).unwrap();
    let connection = 1;
    let events = [
        Event::Opened { connection, port: 80 },
        Event::Carried {
            connection,
            side: Side::Client,
            bytes: 19,
        },
        Event::Closed { connection },
    ];
    for (at, event) in (1..).zip(events) {
        cast.write([(Duration::from_secs(at), &Piece::Port(event))]).unwrap();
    }
    cast.end(Duration::from_secs(10), End::Closed).unwrap();
    file
}

/// Up to the line that has a text, and without it.
pub(super) fn cut_before(recording: &[u8], text: &str) -> Vec<u8> {
    let all = String::from_utf8(recording.to_vec()).unwrap();
    let kept = all.split_inclusive('\n').take_while(|line| !line.contains(text));
    kept.collect::<String>().into_bytes()
}

pub(super) fn file(directory: &Path, name: &str, recording: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, recording).unwrap();
    path
}
