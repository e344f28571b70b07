//! What is sealed is proven to all, and read by whom it is for alone.

use super::*;
use crate::recording::age::{Identity, Recipient};

const IDENTITY: &str = "AGE-SECRET-KEY-14TY9V30FVZJGF36DQUTX9L7CW9U2HJNARVL3HS4S6JHVG6DTXM2SK3444S\n";
const OTHERS: &str = "AGE-SECRET-KEY-1EHEW7YDJ9WCD469M970TMYG28LZ064UXX75GU7VGPLD3L9TJW3RQK6HKKX\n";
const RECIPIENT: &str = "age14vqqauf09tdf2p0ykj8z3czwglqw4svrm5c7qzv5026kxfdw34hqgx6u65";

fn identities(text: &str) -> Vec<Identity> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Identity::read(file.path()).unwrap()
}

fn sealed(parts: &[Vec<(u64, Piece)>], end: Option<End>) -> Vec<u8> {
    let mut file = Vec::new();
    let recipients: [Recipient; 1] = [RECIPIENT.parse().unwrap()];
    let mut cast = Cast::begin_for(&mut file, &about(true), now(), &recipients).unwrap();
    for part in parts {
        let passed = part.iter().map(|(at, piece)| (Duration::from_millis(*at), piece));
        cast.write(passed).unwrap();
    }
    if let Some(end) = end {
        cast.end(Duration::from_mins(1), end).unwrap();
    }
    file
}

fn opened(file: &[u8], identity: &str) -> Result<(Verified, String), VerifyError> {
    let mut text = Vec::new();
    let verified = read(file, &identities(identity), &mut |line| {
        text.extend_from_slice(line.bytes());
        Ok(())
    })?;
    Ok((verified, String::from_utf8(text).unwrap()))
}

/// All of a recording that isn't sealed, but for its sums.
fn unsealed(parts: &[Vec<(u64, Piece)>], end: Option<End>) -> String {
    let (file, _) = recorded(parts, end);
    let text = String::from_utf8(file).unwrap();
    let lines = text.split_inclusive('\n').filter(|line| !line.contains(", \"h\", "));
    lines.collect()
}

#[test]
fn whom_it_is_for_reads_what_anybody_would_of_another() {
    for end in [None, Some(End::Closed)] {
        let file = sealed(&session(), end);
        let (verified, text) = opened(&file, IDENTITY).unwrap();
        assert_eq!(verified.sealing, Sealing::Opened);
        assert_eq!(text, unsealed(&session(), end));
    }
}

#[test]
fn all_others_see_that_it_is_whole_and_nothing_else() {
    let file = sealed(&session(), Some(End::Closed));
    let verified = verify(&file[..]).unwrap();
    assert_eq!(verified.ending, Ending::Whole("closed".to_owned()));
    assert_eq!(verified.sealing, Sealing::Closed);
    let text = String::from_utf8(file.clone()).unwrap();
    for secret in ["exit", "ls -l", "web-0", "viewer", "132x43"] {
        assert!(!text.contains(secret), "{secret} is in the clear: {text}");
    }
    // By that it is found.
    let head = &lines(&file)[0]["understudy"];
    assert_eq!(
        (&head["auditID"], &head["session"], &head["sealed"]["recipients"][0]),
        (&json!("7a1e"), &json!("support/alice"), &json!(RECIPIENT))
    );
    assert!(matches!(opened(&file, OTHERS), Err(VerifyError::Sealed(_))));
}

#[test]
fn what_a_killed_agent_leaves_is_opened_up_to_its_last_write() {
    let mut file = sealed(&session(), None);
    let whole = opened(&file, IDENTITY).unwrap();
    file.extend_from_slice(b"[2.000, \"e\", \"AAAA");
    let (verified, text) = opened(&file, IDENTITY).unwrap();
    assert_eq!(verified.ending, Ending::Missing { unproven: 18 });
    assert_eq!(text, whole.1);
}

/// Makes the sums of a file anew, as anybody can.
fn summed_anew<'l>(lines: impl IntoIterator<Item = &'l str>) -> Vec<u8> {
    let mut sum = Sum::new(Sums::Blake3);
    let mut file = Vec::new();
    for line in lines {
        let line = match line.split_once(", \"h\", ") {
            Some((time, _)) => format!("{time}, \"h\", \"{}\"]\n", sum.hex()),
            None => line.to_owned(),
        };
        sum.update(line.as_bytes());
        file.extend_from_slice(line.as_bytes());
    }
    file
}

#[test]
fn what_is_taken_out_shows_to_whom_it_is_for_even_where_sums_are_made_anew() {
    let file = String::from_utf8(sealed(&session(), Some(End::Closed))).unwrap();
    let all: Vec<&str> = file.split_inclusive('\n').collect();
    let same = summed_anew(all.iter().copied());
    assert_eq!(same, file.as_bytes());
    let frames: Vec<usize> = (0..all.len()).filter(|at| all[*at].contains(", \"e\", ")).collect();
    assert_eq!(frames.len(), 5);
    for at in &frames {
        // With the sum behind it. Behind the last is the end, and without both it would be a recording that has none.
        let last = *at + usize::from(all[*at + 1].contains(", \"h\", "));
        let without = all
            .iter()
            .enumerate()
            .filter(|(place, _)| !(*at..=last).contains(place));
        let changed = summed_anew(without.map(|(_, line)| *line));
        assert!(
            matches!(opened(&changed, IDENTITY), Err(VerifyError::Changed { .. })),
            "line {at}"
        );
    }
    // An end that the agent didn't write, after what it did.
    let cut = [
        &all[..=frames[2] + 1],
        &["[2.000, \"z\", \"closed\"]\n", "[2.000, \"h\", \"\"]\n"],
    ]
    .concat();
    let changed = summed_anew(cut);
    assert_eq!(verify(&changed[..]).unwrap().ending, Ending::Whole("closed".to_owned()));
    assert!(matches!(opened(&changed, IDENTITY), Err(VerifyError::Changed { .. })));
}

#[test]
fn nothing_in_the_clear_is_taken_for_what_was_sealed() {
    let file = String::from_utf8(sealed(&session(), None)).unwrap();
    let shown = ["[2.000, \"o\", \"planted\"]\n", "[2.000, \"h\", \"\"]\n"];
    let changed = summed_anew(file.split_inclusive('\n').chain(shown));
    assert!(matches!(verify(&changed[..]), Err(VerifyError::Changed { .. })));
}

#[test]
fn what_a_full_disk_holds_is_opened_when_it_is_cut_back() {
    let whole = sealed(&session(), Some(End::Closed));
    let begun = sealed(&[], None);
    let recipients: [Recipient; 1] = [RECIPIENT.parse().unwrap()];
    for room in (begun.len()..whole.len()).step_by(7) {
        let disk = Disk { held: Vec::new(), room };
        let mut cast = Cast::begin_for(disk, &about(true), now(), &recipients).unwrap();
        let failed = session().iter().any(|part| {
            let passed = part.iter().map(|(at, piece)| (Duration::from_millis(*at), piece));
            cast.write(passed).is_err()
        });
        assert!(failed || cast.end(Duration::from_mins(1), End::Closed).is_err());
        cast.sink.held.truncate(usize::try_from(cast.written()).unwrap());
        cast.sink.room = usize::MAX;
        cast.end(Duration::from_secs(61), End::BrokenOff).unwrap();
        let (verified, text) = opened(&cast.sink.held, IDENTITY).unwrap();
        assert_eq!(verified.ending, Ending::Whole("broken-off".to_owned()));
        assert!(text.ends_with("\"z\", \"broken-off\"]\n"), "{text}");
    }
}
