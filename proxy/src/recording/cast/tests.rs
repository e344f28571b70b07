//! What is written can be played and proven, and whatever is done to it shows.

mod sealed;

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::*;
use crate::recording::{
    about::{Asked, Target},
    stream::Channel,
};

fn about(tty: bool) -> About {
    About {
        audit_id: "7a1e".to_owned(),
        session: "support/alice".to_owned(),
        node: "node-1".to_owned(),
        pod: "support/shell-0".to_owned(),
        user: None,
        impersonated_user: Some("system:serviceaccount:prod:viewer".to_owned()),
        target: Target {
            subresource: "exec",
            namespace: "prod".to_owned(),
            pod: "web-0".to_owned(),
        },
        asked: Asked {
            container: "web".to_owned(),
            command: ["sh", "-c", "ls -l"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty,
        },
        records_stdin: true,
    }
}

fn bytes(channel: Channel, text: &str) -> Piece {
    Piece::Bytes(channel, text.as_bytes().to_vec())
}

fn now() -> Timestamp {
    "2026-11-22T14:00:00Z".parse().unwrap()
}

/// One that was written in so many parts, and its sum where it came to its end.
fn recorded(parts: &[Vec<(u64, Piece)>], end: Option<End>) -> (Vec<u8>, Option<String>) {
    let mut file = Vec::new();
    let mut cast = Cast::begin(&mut file, &about(true), now()).unwrap();
    for part in parts {
        let passed = part.iter().map(|(at, piece)| (Duration::from_millis(*at), piece));
        cast.write(passed).unwrap();
    }
    let sum = end.map(|end| cast.end(Duration::from_mins(1), end).unwrap().0);
    let written = cast.written();
    assert_eq!(file.len() as u64, written);
    (file, sum)
}

fn session() -> Vec<Vec<(u64, Piece)>> {
    vec![
        vec![
            (0, bytes(Channel::Resize, r#"{"Width":132,"Height":43}"#)),
            (250, bytes(Channel::Stdout, "$ ")),
        ],
        vec![(1250, bytes(Channel::Stdin, "exit\r"))],
        // Its clock is behind: of two directions, one may be told late.
        vec![(1200, bytes(Channel::Stdout, "exit\r\n\u{1b}[0m"))],
        vec![(1300, bytes(Channel::Error, r#"{"status":"Success"}"#))],
    ]
}

fn lines(file: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_breaks_off_after_its_outcome_is_not_cut_short() {
    let said = |text: &str| vec![vec![(0, bytes(Channel::Error, text))]];
    for (passed, end, why) in [
        (said(r#"{"status":"Success"}"#), End::CutShort, "closed"),
        (said(r#"{"status":"Failure","message":"no"}"#), End::CutShort, "closed"),
        (said(r#"{"status":"Succ"#), End::CutShort, "cut-short"),
        (said("{}"), End::CutShort, "cut-short"),
        (Vec::new(), End::CutShort, "cut-short"),
        (said(r#"{"status":"Success"}"#), End::BrokenOff, "broken-off"),
    ] {
        let (file, _) = recorded(&passed, Some(end));
        assert_eq!(
            verify(&file[..]).unwrap().ending,
            Ending::Whole(why.to_owned()),
            "{passed:?}"
        );
    }
}

#[test]
fn a_recording_is_an_asciicast() {
    let (file, sum) = recorded(&session(), Some(End::Closed));
    let all = lines(&file);
    let head = json!({
        "version": 2, "width": 80, "height": 24, "timestamp": 1_795_356_000,
        "title": "exec prod/web-0: sh -c 'ls -l'", "command": "sh -c 'ls -l'",
        "understudy": {
            "auditID": "7a1e", "session": "support/alice", "node": "node-1", "pod": "support/shell-0",
            "impersonatedUser": "system:serviceaccount:prod:viewer",
            "target": {"subresource": "exec", "namespace": "prod", "pod": "web-0"},
            "asked": {"container": "web", "command": ["sh", "-c", "ls -l"],
                      "stdin": true, "stdout": true, "stderr": true, "tty": true},
            "recordsStdin": true, "sums": "blake3",
        },
    });
    assert_eq!(all[0], head);
    let events: Vec<&Value> = all[1..].iter().filter(|event| event[1] != "h").collect();
    let expected = [
        json!([0.0, "r", "132x43"]),
        json!([0.25, "o", "$ "]),
        json!([1.25, "i", "exit\r"]),
        json!([1.25, "o", "exit\r\n\u{1b}[0m"]),
        json!([60.0, "x", "0"]),
        json!([60.0, "z", "closed"]),
    ];
    assert_eq!(events, expected.iter().collect::<Vec<_>>());
    // After the head, and each time that something was written.
    assert_eq!(all.len() - 1 - events.len(), 5);
    let verified = verify(&file[..]).unwrap();
    let whole = Verified {
        lines: all.len() as u64,
        sums: Sums::Blake3,
        sum: sum.unwrap(),
        ending: Ending::Whole("closed".to_owned()),
        sealing: Sealing::None,
    };
    assert_eq!(verified, whole);
}

/// As all were, before they had BLAKE3.
#[test]
fn sums_of_sha_256_are_read_as_well() {
    let (file, _) = recorded(&session(), Some(End::Closed));
    let mut sum = Sum::new(Sums::Sha256);
    let mut older = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let text = std::str::from_utf8(line).unwrap();
        let text = match text.split_once(", \"h\", ") {
            Some((time, _)) => format!("{time}, \"h\", \"{}\"]\n", sum.hex()),
            None => text.replace("\"sums\":\"blake3\"", "\"sums\":\"sha256\""),
        };
        sum.update(text.as_bytes());
        older.extend_from_slice(text.as_bytes());
    }
    let verified = verify(&older[..]).unwrap();
    assert_eq!((verified.sums, verified.sum), (Sums::Sha256, sum.hex()));
    assert_eq!(verified.ending, Ending::Whole("closed".to_owned()));
    let changed = String::from_utf8(older).unwrap().replace("exit\\r\\n", "quit\\r\\n");
    assert!(matches!(verify(changed.as_bytes()), Err(VerifyError::Changed { .. })));
}

#[test]
fn what_says_nothing_is_not_written() {
    let (empty, _) = recorded(&[], None);
    let (file, _) = recorded(&[vec![(1, bytes(Channel::Error, "{}"))], Vec::new()], None);
    assert_eq!(file, empty);
}

#[test]
fn what_a_killed_agent_leaves_is_proven_up_to_its_last_write() {
    let (file, _) = recorded(&session(), None);
    let missing = |unproven| Ending::Missing { unproven };
    assert_eq!(verify(&file[..]).unwrap().ending, missing(0));
    // A write that didn't get through.
    let mut cut = file.clone();
    cut.extend_from_slice(b"[61.0, \"o\", \"hal");
    assert_eq!(verify(&cut[..]).unwrap().ending, missing(16));
}

#[rstest::rstest]
#[case::nothing(b"")]
#[case::text(b"hello\n")]
#[case::another_cast(b"{\"version\":2,\"width\":80,\"height\":24}\n[0.1, \"o\", \"x\"]\n")]
fn what_is_no_recording_is_refused(#[case] file: &[u8]) {
    assert!(matches!(verify(file), Err(VerifyError::Foreign)));
}

#[test]
fn what_comes_after_the_end_shows() {
    let (file, _) = recorded(&session(), Some(End::CutShort));
    for more in ["[61.0, \"o\", \"more\"]\n", "[61.0"] {
        let longer = [&file[..], more.as_bytes()].concat();
        assert!(
            matches!(verify(&longer[..]), Err(VerifyError::Changed { .. })),
            "{more}"
        );
    }
}

#[test]
fn a_line_taken_out_or_put_elsewhere_shows() {
    let (file, _) = recorded(&session(), Some(End::Closed));
    let all: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    for at in 1..all.len() - 1 {
        let mut without = all.clone();
        without.remove(at);
        let mut swapped = all.clone();
        swapped.swap(at, at + 1);
        for changed in [without.concat(), swapped.concat()] {
            assert!(
                matches!(verify(&changed[..]), Err(VerifyError::Changed { .. })),
                "line {at}: {}",
                String::from_utf8_lossy(&changed)
            );
        }
    }
}

proptest! {
    /// Nobody can change a byte of what is summed up, and leave the sums standing.
    #[test]
    fn any_change_shows(at in any::<Index>(), byte in any::<u8>()) {
        let (mut file, _) = recorded(&session(), Some(End::Closed));
        let sum = verify(&file[..]).unwrap().sum;
        let at = at.index(file.len());
        prop_assume!(file[at] != byte);
        file[at] = byte;
        // The last sum isn't summed up itself, save in the agent's log.
        if let Ok(verified) = verify(&file[..]) {
            prop_assert_ne!(verified.sum, sum);
            let has_end = matches!(verified.ending, Ending::Whole(_));
            prop_assert!(!has_end || at >= file.len() - 82, "at {at}");
        }
    }

    /// A cut leaves no end.
    #[test]
    fn any_cut_shows(at in any::<Index>()) {
        let (file, _) = recorded(&session(), Some(End::Closed));
        let cut = &file[..at.index(file.len())];
        match verify(cut) {
            Ok(verified) => prop_assert!(!matches!(verified.ending, Ending::Whole(_)), "{cut:?}"),
            Err(error) => prop_assert!(matches!(error, VerifyError::Foreign), "{error}"),
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut file, _) = recorded(&session(), None);
        file.extend_from_slice(&bytes);
        let _ = verify(&file[..]);
        let _ = verify(&bytes[..]);
    }
}

/// A disk with so much room.
struct Disk {
    held: Vec<u8>,
    room: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room - self.held.len());
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.held.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_full_disk_holds_is_whole_when_it_is_cut_back() {
    let (whole, _) = recorded(&session(), Some(End::Closed));
    let (head, _) = recorded(&[], None);
    for room in head.len()..whole.len() {
        let disk = Disk { held: Vec::new(), room };
        let mut cast = Cast::begin(disk, &about(true), now()).unwrap();
        let failed = session().iter().any(|part| {
            let passed = part.iter().map(|(at, piece)| (Duration::from_millis(*at), piece));
            cast.write(passed).is_err()
        });
        assert!(failed || cast.end(Duration::from_mins(1), End::Closed).is_err());
        let kept = usize::try_from(cast.written()).unwrap();
        // There is room again, and it ends as it must.
        cast.sink.held.truncate(kept);
        assert_eq!(
            verify(&cast.sink.held[..]).unwrap().ending,
            Ending::Missing { unproven: 0 }
        );
        cast.sink.room = usize::MAX;
        cast.end(Duration::from_secs(61), End::BrokenOff).unwrap();
        let ending = Ending::Whole("broken-off".to_owned());
        assert_eq!(verify(&cast.sink.held[..]).unwrap().ending, ending);
    }
}
