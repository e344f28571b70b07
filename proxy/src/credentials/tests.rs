//! Tokens and their files, at hours of the tests' choosing.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use proptest::prelude::*;
use rstest::rstest;
use tokio::time::{advance, timeout};

use super::*;

const NOON: &str = "2026-06-01T12:00:00Z";

fn noon() -> Timestamp {
    NOON.parse().unwrap()
}

fn jwt(claims: &str) -> String {
    format!(
        "{}.{}.c2ln",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(claims)
    )
}

fn jwt_for(minutes: i64) -> String {
    jwt(&format!(r#"{{"exp":{}}}"#, noon().as_second() + minutes * 60))
}

#[rstest]
#[case("abc", Ok(()))]
#[case("a.b-c_d~e+f/g==", Ok(()))]
#[case("", Err(TokenError::Empty))]
#[case("a b", Err(TokenError::Character(1)))]
#[case("abc\r\nX-Evil: 1", Err(TokenError::Character(3)))]
#[case("abc\n", Err(TokenError::Character(3)))]
#[case("a\0b", Err(TokenError::Character(1)))]
#[case("a\tb", Err(TokenError::Character(1)))]
#[case("a\x7f", Err(TokenError::Character(1)))]
#[case("tök", Err(TokenError::Character(1)))]
fn tokens(#[case] text: &str, #[case] expected: Result<(), TokenError>) {
    assert_eq!(BearerToken::parse(text).map(drop), expected);
}

#[rstest]
#[case(jwt(r#"{"exp":1780315200}"#), Some(NOON))]
#[case(jwt(r#"{"exp":1780315200.5}"#), Some("2026-06-01T12:00:00.5Z"))]
#[case(jwt(r#"{"exp":1e300}"#), None)]
#[case(jwt(r#"{"exp":"soon"}"#), None)]
#[case(jwt("{}"), None)]
#[case(jwt("not json"), None)]
#[case("a.b".to_owned(), None)]
#[case("a.!!.c".to_owned(), None)]
#[case("opaque".to_owned(), None)]
fn expiries(#[case] token: String, #[case] expiry: Option<&str>) {
    let expected: Option<Timestamp> = expiry.map(|text| text.parse().unwrap());
    assert_eq!(BearerToken::parse(&token).unwrap().expiry(), expected);
}

/// As the API server itself names the account of a bound token.
#[test]
fn whose_a_service_accounts_token_is() {
    let claims = r#"{"sub":"system:serviceaccount:prod:viewer","jti":"j-1","kubernetes.io":{"namespace":"prod",
        "serviceaccount":{"name":"viewer","uid":"u-1"},"pod":{"name":"p","uid":"u-2"},"node":{"name":"n","uid":"u-3"}}}"#;
    let token = BearerToken::parse(&jwt(claims)).unwrap();
    let user: serde_json::Value = serde_json::from_str(token.user().unwrap().json()).unwrap();
    let expected = serde_json::json!({
        "username": "system:serviceaccount:prod:viewer", "uid": "u-1",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:prod", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=j-1"],
            "authentication.kubernetes.io/node-name": ["n"], "authentication.kubernetes.io/node-uid": ["u-3"],
            "authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["u-2"],
        },
    });
    assert_eq!(user, expected);
}

#[rstest]
#[case(jwt(r#"{"sub":"jane"}"#))]
#[case(jwt(r#"{"sub":7}"#))]
#[case(jwt("{}"))]
#[case("opaque".to_owned())]
fn whose_another_token_is_isnt_known(#[case] token: String) {
    assert!(BearerToken::parse(&token).unwrap().user().is_none());
}

#[test]
fn an_odd_claim_keeps_no_token_from_expiring() {
    let token = BearerToken::parse(&jwt(r#"{"exp":1780315200,"sub":7,"kubernetes.io":[]}"#)).unwrap();
    assert_eq!((token.expiry(), token.user()), (Some(noon()), None));
}

#[test]
fn no_formatting_shows_the_secret() {
    let token = BearerToken::parse("hunter2").unwrap();
    assert_eq!(token.header_value(), "Bearer hunter2");
    let error = BearerToken::parse("hunter2 ").unwrap_err();
    let shown = format!("{token:?} {token} {:?} {error} {error:?}", token.header_value());
    assert!(!shown.contains("hunter2"), "{shown}");
}

proptest! {
    #[test]
    fn what_parses_makes_one_header_line(text in any::<String>()) {
        if let Ok(token) = BearerToken::parse(&text) {
            let header = token.header_value();
            let expected = format!("Bearer {text}");
            prop_assert_eq!(header.as_bytes(), expected.as_bytes());
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the tables hold results")]
fn good(token: &str) -> Result<BearerToken, CredentialError> {
    Ok(BearerToken::parse(token).unwrap())
}

fn bad() -> Result<BearerToken, CredentialError> {
    Err(CredentialError::Unreadable(Arc::new(ReadError::Missing(
        "token".into(),
    ))))
}

/// Readings, each at a minute after noon, and what is sent at a later minute.
#[rstest]
#[case::good(vec![(0, good("a"))], 999, Some("a".to_owned()))]
#[case::never_good(vec![(0, bad())], 0, None)]
#[case::rotated(vec![(0, good("a")), (1, good("b"))], 1, Some("b".to_owned()))]
#[case::opaque_within_grace(vec![(0, good("a")), (5, bad())], 14, Some("a".to_owned()))]
#[case::opaque_after_grace(vec![(0, good("a")), (5, bad())], 15, None)]
#[case::grace_counts_from_the_first_failure(vec![(0, good("a")), (5, bad()), (14, bad())], 15, None)]
#[case::a_good_reading_ends_it(vec![(0, good("a")), (5, bad()), (6, good("a"))], 99, Some("a".to_owned()))]
#[case::jwt_outlives_the_grace(vec![(0, good(&jwt_for(60))), (5, bad())], 59, Some(jwt_for(60)))]
#[case::jwt_expires(vec![(0, good(&jwt_for(60))), (5, bad())], 60, None)]
#[case::jwt_expires_though_readable(vec![(0, good(&jwt_for(60)))], 60, None)]
#[case::expired_does_not_replace_valid(vec![(0, good(&jwt_for(60))), (30, good(&jwt_for(20)))], 40, Some(jwt_for(60)))]
fn readings(
    #[case] read: Vec<(i64, Result<BearerToken, CredentialError>)>,
    #[case] minute: i64,
    #[case] sent: Option<String>,
) {
    let at = |minute: i64| noon() + SignedDuration::from_mins(minute);
    let path = Path::new("token");
    let last = read.into_iter().fold(Reading::default(), |reading, (minute, outcome)| {
        reading.next(outcome, at(minute), path, &Counter::default())
    });
    let expected = sent.map(|token| BearerToken::parse(&token).unwrap());
    assert_eq!(last.at(at(minute), path).ok(), expected);
}

struct Rig {
    directory: tempfile::TempDir,
    failures: Counter,
    file: TokenFile,
}

impl Rig {
    async fn new(contents: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        if let Some(contents) = contents {
            fs::write(&path, contents).unwrap();
        }
        let failures = Counter::default();
        let file = TokenFile::follow(&path, Clock::in_step_with_timers(noon()), failures.clone()).await;
        Self {
            directory,
            failures,
            file,
        }
    }

    fn write(&self, contents: &str) {
        let next = self.directory.path().join("next");
        fs::write(&next, contents).unwrap();
        fs::rename(next, self.directory.path().join("token")).unwrap();
    }

    async fn next_reading(&mut self) {
        // The clock is stopped, and jumps: longer than the slowest poll.
        timeout(Duration::from_mins(5), self.file.changed())
            .await
            .expect("the file is re-read");
    }

    fn sends(&self) -> Option<HeaderValue> {
        self.file.current().ok().map(|token| token.header_value())
    }
}

#[tokio::test(start_paused = true)]
async fn follows_a_rotation_and_outlives_a_removal() {
    let mut rig = Rig::new(Some("one\n")).await;
    assert_eq!(rig.sends().unwrap(), "Bearer one");

    rig.write(&jwt_for(60));
    rig.next_reading().await;
    assert_eq!(rig.sends().unwrap(), format!("Bearer {}", jwt_for(60)).as_str());
    assert_eq!(rig.failures.get(), 0);

    fs::remove_file(rig.directory.path().join("token")).unwrap();
    rig.next_reading().await;
    assert_eq!(rig.failures.get(), 1);
    assert!(rig.sends().is_some());
    advance(Duration::from_hours(1)).await;
    assert!(matches!(rig.file.current(), Err(CredentialError::Expired { .. })));

    rig.write("two\r\n");
    rig.next_reading().await;
    assert_eq!(rig.sends().unwrap(), "Bearer two");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_comes_late_is_found() {
    let mut rig = Rig::new(None).await;
    let error = rig.file.current().unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
    rig.write("one");
    rig.next_reading().await;
    assert_eq!(rig.sends().unwrap(), "Bearer one");
}

#[rstest]
#[case(b"", "empty")]
#[case(b"\n\n", "empty")]
#[case(b"two words", "byte 3")]
#[case(b"ab\xff", "byte 2")]
#[tokio::test]
async fn says_what_is_wrong_with_a_token_file(#[case] contents: &[u8], #[case] says: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = TokenFile::follow(&path, Clock::system(), Counter::default()).await;
    let error = file.current().unwrap_err().to_string();
    assert!(
        error.contains(says) && error.contains(path.to_str().unwrap()),
        "{error}"
    );
}
