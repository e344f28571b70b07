use std::fs;

use rstest::rstest;
use serde_json::Value;

use super::{
    super::{
        fixtures::{about, cut_before, file, forwarded, recorded},
        tape::State,
    },
    *,
};

/// What becomes of a recording, and how far it was believed.
fn made(recording: &[u8], form: ExportForm) -> (String, State) {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "a.cast", recording);
    let mut out = Vec::new();
    let summary = match form {
        ExportForm::Html => export(&path, &Identities::default(), Page::new(&mut out)),
        ExportForm::Text => export(&path, &Identities::default(), Text::new(&mut out)),
    };
    (String::from_utf8(out).unwrap(), summary.unwrap().state)
}

fn text(said: &[&str]) -> String {
    made(&recorded(&about("support/alice", "web-0"), said), ExportForm::Text).0
}

/// What the page's player is given.
fn tape(page: &str) -> Value {
    let (_, rest) = page
        .split_once(r#"<script type="application/json" id="recording">"#)
        .unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[rstest]
#[case::lines(&["$ ls\r\n", "a  b\r\n$ "], "$ ls\na  b\n$\n")]
#[case::colours(&["\u{1b}[1;31mred\u{1b}[0m\r\n"], "red\n")]
#[case::corrected(&["lx\u{8}s\r\n"], "ls\n")]
#[case::overwritten(&["10%\r", "99%\r\n"], "99%\n")]
#[case::in_pieces(&["a\u{1b}[", "31mb"], "ab\n")]
#[case::full_screen(&["a\r\n\u{1b}[?1049hvim\u{1b}[?1049lb"], "a\nb\n")]
#[case::cleared(&["a\r\n\u{1b}[H\u{1b}[2Jb"], "a\nb\n")]
#[case::title(&["a\u{1b}]0;b\u{7}c"], "ac\n")]
#[case::turned(&["a\u{202e}"], "a\u{fffd}\n")]
#[case::nothing(&[], "")]
fn text_is_what_was_said(#[case] said: &[&str], #[case] expected: &str) {
    assert_eq!(text(said), expected);
}

#[test]
fn all_of_a_long_recording_is_in_the_text() {
    let all = (0..500)
        .map(|number| format!("line {number}\r\n"))
        .collect::<Vec<_>>()
        .concat();
    assert_eq!(text(&[&all]), all.replace('\r', ""));
    let long = "x".repeat(500);
    assert_eq!(text(&[&long]), format!("{long}\n"), "a line that was wrapped is one");
}

#[test]
fn a_port_forward_is_told_in_words() {
    let (text, state) = made(&forwarded(), ExportForm::Text);
    let expected = "1.000s connection 1 to port 80: opened\n\
                    3.000s connection 1 to port 80: closed, 19 bytes to it, 0 bytes from it\n";
    assert_eq!(text, expected);
    assert_eq!(state.exit_code(), 0);
    let (page, _) = made(&forwarded(), ExportForm::Html);
    assert!(
        tape(&page)["frames"][1]["r"][0][1][0]
            .as_str()
            .unwrap()
            .contains("port 80: opened")
    );
}

#[rstest]
fn what_is_not_proven_is_not_exported(#[values(ExportForm::Text, ExportForm::Html)] form: ExportForm) {
    let whole = recorded(&about("support/alice", "web-0"), &["one ", "two ", "three "]);
    let whole_text = String::from_utf8(whole.clone()).unwrap();
    let unsummed = [cut_before(&whole, "two"), b"[2.000, \"o\", \"two \"]\n".to_vec()].concat();
    for (recording, code, has, has_not) in [
        (whole.clone(), 0, "three", "2wo"),
        (cut_before(&whole, "three"), 3, "two", "three"),
        (unsummed, 3, "one", "two"),
        (whole_text.replace("two", "2wo").into_bytes(), 4, "one", "2wo"),
        (
            whole_text.replacen("[1.000, \"o\", \"one \"]\n", "", 1).into_bytes(),
            4,
            "",
            "two",
        ),
        // Its head was changed: nothing of it is proven, not even whose it is.
        (whole_text.replacen("alice", "malet", 1).into_bytes(), 4, "", "malet"),
    ] {
        let (made, state) = made(&recording, form);
        assert_eq!(state.exit_code(), code, "{state:?}");
        let shown = match form {
            // The page around it has words of its own.
            ExportForm::Html => tape(&made).to_string(),
            ExportForm::Text => made.clone(),
        };
        assert!(shown.contains(has), "{state:?}: {made}");
        assert!(!shown.contains(has_not), "{state:?}: {made}");
        assert_eq!(state.warning().is_some(), code != 0);
        if form == ExportForm::Html {
            assert_eq!(tape(&made)["end"]["state"], state.name());
        }
    }
}

#[test]
fn a_page_is_what_was_shown_frame_by_frame() {
    let (page, _) = made(
        &recorded(
            &about("support/alice", "web-0"),
            &["a\u{1b}[1;31mb", "\r\n\u{4e16}", "\u{1b}[48;2;1;2;3m!"],
        ),
        ExportForm::Html,
    );
    let tape = tape(&page);
    let frames = tape["frames"].as_array().unwrap();
    assert_eq!(frames.len(), 4, "{frames:?}");
    assert_eq!(frames[0]["s"], serde_json::json!([80, 24]));
    assert_eq!(frames[1]["t"], 1000);
    assert_eq!(frames[1]["r"], serde_json::json!([[0, ["a", ["b", 1, -1, 1]]]]));
    assert_eq!(frames[1]["c"], serde_json::json!([2, 0]));
    assert_eq!(frames[2]["r"], serde_json::json!([[1, [["\u{4e16}", 1, -1, 65]]]]));
    assert_eq!(
        frames[3]["r"][0][1][1],
        serde_json::json!(["!", 1, 256 + 0x0001_0203, 1])
    );
    assert_eq!(tape["end"]["length"], 10_000);
    assert_eq!(tape["about"]["title"], "exec prod/web-0: sh");
}

/// Whatever is recorded, and whatever the recording says of itself, it's text in an element that isn't run.
#[rstest]
#[case("</script><script>alert(1)</script>")]
#[case("<!--<script>")]
#[case("<img src=x onerror=alert(1)>")]
#[case("]]>\u{2028}alert(1)")]
#[case("&lt;/script&gt;&#60;script>")]
#[case("\"});alert(1);({\"")]
#[case("javascript:alert(1)")]
fn nothing_recorded_is_run_by_a_browser(#[case] hostile: &str) {
    let mut about = about(hostile, hostile);
    hostile.clone_into(&mut about.node);
    about.asked.command = vec![hostile.to_owned()];
    let (page, _) = made(&recorded(&about, &[hostile]), ExportForm::Html);
    let (harmless, _) = made(
        &recorded(&super::super::fixtures::about("a/b", "c"), &["d"]),
        ExportForm::Html,
    );
    for mark in ["<script", "</script", "<!--", "<img", "onerror=\"", "&lt;", "]]>"] {
        assert_eq!(page.matches(mark).count(), harmless.matches(mark).count(), "{mark}");
    }
    let tape = tape(&page);
    let shown: String = tape["frames"][1]["r"][0][1][0].as_str().unwrap().to_owned();
    assert_eq!(shown, hostile.replace('\u{2028}', "\u{fffd}"), "it is shown as it was");
}

/// The page's policy lets what is in it run and nothing else, and nothing be fetched.
#[test]
fn a_page_has_a_policy_that_allows_its_own_player_alone() {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use sha2::{Digest as _, Sha256};
    let (page, _) = made(&recorded(&about("a/b", "c"), &["d"]), ExportForm::Html);
    let (_, script) = page.rsplit_once("<script>").unwrap();
    let script = script.split_once("</script>").unwrap().0;
    let style = page.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(style)
    );
    assert!(page.contains(&policy), "{page}");
    for outside in [
        "http:",
        "https:",
        "src=",
        "href=",
        "url(",
        "@import",
        "style=\"",
        "innerHTML",
        "eval(",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn what_is_made_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let recording = recorded(&about("a/b", "c"), &["d"]);
    let output = directory.path().join("a.txt");
    let options = ExportOptions {
        file: file(directory.path(), "a.cast", &recording),
        to: ExportForm::Text,
        output: Some(output.clone()),
        identities: Identities::default(),
    };
    assert_eq!(run(&options).unwrap(), 0);
    assert_eq!(fs::read_to_string(&output).unwrap(), "d\n");
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    let foreign = ExportOptions {
        file: output,
        to: ExportForm::Text,
        output: None,
        identities: Identities::default(),
    };
    assert!(
        run(&foreign).unwrap_err().to_string().contains("isn't a recording"),
        "and nothing else is one"
    );
}
