use serde_json::Value;

use super::{
    super::fixtures::{BEGAN, about, cut_before, file as put, forwarded, recorded},
    *,
};

fn options(paths: &[&Path]) -> ListOptions {
    ListOptions {
        paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        session: None,
        pod: None,
        since: None,
        output: None,
        no_headers: false,
        identities: Identities::default(),
    }
}

/// Whether all were read, what is listed, and what is complained of.
fn listed(options: &ListOptions) -> (bool, String, String) {
    let now = BEGAN.parse::<Timestamp>().unwrap() + SignedDuration::from_hours(2);
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let all_read = list(options, now, &mut out, &mut complaints).unwrap();
    (
        all_read,
        String::from_utf8(out).unwrap(),
        String::from_utf8(complaints).unwrap(),
    )
}

/// One of each state, and a port-forward.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let whole = recorded(&about("support/alice", "web-0"), &["one", "two"]);
    let other = recorded(&about("support/bob", "web-1"), &["one", "two"]);
    let changed = String::from_utf8(other.clone()).unwrap().replace("two", "2wo");
    for (name, content) in [
        ("a.cast", whole),
        ("b.cast", cut_before(&other, "two")),
        ("c.cast", changed.into_bytes()),
        ("d.cast", b"{\"version\": 2, \"width\": 80, \"height\": 24}\n".to_vec()),
        ("e.cast", forwarded()),
        ("notes.txt", b"not one".to_vec()),
    ] {
        put(directory.path(), name, &content);
    }
    directory
}

#[test]
fn each_is_listed_with_how_far_it_can_be_believed() {
    let directory = directory();
    let (all_read, text, complaints) = listed(&options(&[directory.path()]));
    assert!(all_read && complaints.is_empty(), "{complaints}");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| {
            line.split("   ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    let name = |name: &str| directory.path().join(name).display().to_string();
    let who = "support/shell-0 as viewer";
    let cells = |line: usize| -> Vec<&str> {
        let mut cells = lines[line].clone();
        // How many bytes a recording has depends on how its sums are made.
        cells.remove(6);
        cells
    };
    assert_eq!(lines[0], [&HEADERS[..], &["FILE"]].concat());
    assert_eq!(
        cells(1),
        [NONE, NONE, NONE, NONE, NONE, NONE, "foreign", &name("d.cast")]
    );
    assert_eq!(
        cells(2),
        [
            "support/alice",
            who,
            "exec prod/web-0",
            "sh",
            "120m",
            "10s",
            "whole",
            &name("a.cast")
        ]
    );
    assert_eq!(
        cells(3),
        [
            "support/bob",
            who,
            "exec prod/web-1",
            "sh",
            "120m",
            "1s",
            "cut",
            &name("b.cast")
        ]
    );
    assert_eq!(
        cells(4),
        [
            "support/bob",
            who,
            "exec prod/web-1",
            "sh",
            "120m",
            "1s",
            "changed",
            &name("c.cast")
        ]
    );
    assert_eq!(
        cells(5),
        [
            "support/alice",
            who,
            "portforward prod/web-0",
            NONE,
            "120m",
            "10s",
            "whole",
            &name("e.cast")
        ]
    );
}

#[test]
fn only_what_is_asked_for_is_listed() {
    let directory = directory();
    let names = |change: &dyn Fn(&mut ListOptions)| -> Vec<String> {
        let mut options = options(&[directory.path()]);
        options.output = Some(ListForm::Name);
        change(&mut options);
        let text = listed(&options).1;
        text.lines()
            .map(|line| line.rsplit('/').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&|_| {}).len(), 5);
    assert_eq!(
        names(&|options| options.session = Some("alice".into())),
        ["a.cast", "e.cast"]
    );
    assert_eq!(
        names(&|options| options.session = Some("support/bob".into())),
        ["b.cast", "c.cast"]
    );
    assert_eq!(
        names(&|options| options.session = Some("prod/bob".into())),
        Vec::<String>::new()
    );
    assert_eq!(
        names(&|options| options.pod = Some("prod/web-1".into())),
        ["b.cast", "c.cast"]
    );
    assert_eq!(names(&|options| options.pod = Some("shell-0".into())).len(), 4);
    for (text, count) in [
        ("2026-11-22T14:00:00Z", 4),
        ("2026-11-22T14:00:01Z", 0),
        ("3h", 4),
        ("1h59m", 0),
    ] {
        assert_eq!(
            names(&|options| options.since = Some(since(text).unwrap())).len(),
            count,
            "{text}"
        );
    }
    for wrong in ["yesterday", "-2h", "0s", ""] {
        assert!(since(wrong).unwrap_err().contains("2h"), "{wrong}");
    }
}

#[test]
fn programs_are_told_all_and_nothing_that_harms_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let hostile = "support/a\u{9b}2J\u{202e}\u{7f}\u{1b}]0;x\u{7}";
    let recording = recorded(&about(hostile, "web-0"), &["one"]);
    let path = put(directory.path(), "a.cast", &recording);
    let mut options = options(&[&path]);
    options.output = Some(ListForm::Json);
    let (_, text, _) = listed(&options);
    assert!(
        text.chars()
            .all(|letter| letter == '\n' || table::shown(letter) == letter),
        "{text:?}"
    );
    let list: Value = serde_json::from_str(&text).unwrap();
    let item = &list["items"][0];
    assert_eq!(item["session"], hostile, "it reads the same");
    for (field, expected) in [
        ("state", "whole"),
        ("ending", "closed"),
        ("who", "support/shell-0 as viewer"),
        ("target", "prod/web-0"),
        ("subresource", "exec"),
        ("auditID", "7a1e"),
        ("node", "node-1"),
        ("began", BEGAN),
    ] {
        assert_eq!(item[field], expected, "{field}");
    }
    assert_eq!(item["seconds"], 10.0);
    assert_eq!(item["bytes"], recording.len());
    options.output = Some(ListForm::Wide);
    let (_, text, _) = listed(&options);
    assert!(
        text.chars()
            .all(|letter| letter == '\n' || table::shown(letter) == letter),
        "{text:?}"
    );
    assert!(text.contains("AUDIT ID") && text.contains("7a1e"), "{text}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let gone = directory.path().join("gone.cast");
    let error = file::find(std::slice::from_ref(&gone)).unwrap_err();
    assert_eq!(error.0, gone);
    std::os::unix::fs::symlink(&gone, directory.path().join("dangling.cast")).unwrap();
    put(directory.path(), "a.cast", &recorded(&about("a/b", "c"), &[]));
    let (all_read, text, complaints) = listed(&options(&[directory.path()]));
    assert!(!all_read && complaints.contains("dangling.cast"), "{complaints}");
    assert!(text.contains("a.cast"), "the others are listed: {text}");
}

#[test]
fn sizes() {
    for (bytes, expected) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (u64::MAX, "1677721.5 TiB"),
    ] {
        assert_eq!(size(bytes), expected);
    }
}
