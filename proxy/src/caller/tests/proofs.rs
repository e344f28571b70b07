//! What counts where several things are shown, and how long an answer of the API server's is good.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderName, HeaderValue};
use rstest::rstest;
use tokio::time::advance;

use super::*;
use crate::clock::Clock;

/// Says of `good...` that it is jane's, and of `pod...` that it is of the pod with that UID; `away` has no answer.
fn api_server() -> (Mock, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mock = Mock::new(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        let token = request.body["spec"]["token"].as_str().unwrap_or_default();
        if token == "away" {
            return Answer::Nothing;
        }
        Answer::Json(201, review(token))
    });
    (mock, asked)
}

fn review(token: &str) -> Value {
    let user = json!({"username": "jane", "groups": ["devs", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-uid": [token]}});
    let good = token.starts_with("good") || token.starts_with("pod") || token.starts_with("ey");
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": token},
        "status": {"authenticated": good, "user": if good { user } else { json!({}) }}})
}

fn shown(fields: &[(&str, &str)]) -> Shown {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    Shown::read(&headers, false).unwrap()
}

fn token(token: &str) -> Shown {
    shown(&[("authorization", &format!("Bearer {token}"))])
}

fn prover(mock: &Mock, authorities: Authorities) -> Prover {
    let clock = Clock::in_step_with_timers(at(NOW));
    Prover::new(
        authorities,
        Reviewer::new(mock.client(), Arc::from([]), clock),
        Metrics::new(),
    )
}

#[rstest]
#[case::certificate(Some(true), None, Ok("system:node:a by certificate"))]
#[case::token(None, Some("good"), Ok("jane by token"))]
#[case::the_certificate_first(Some(true), Some("good"), Ok("system:node:a by certificate"))]
#[case::nor_is_the_token_looked_at(Some(true), Some("bad"), Ok("system:node:a by certificate"))]
#[case::the_token_makes_up(Some(false), Some("good"), Ok("jane by token"))]
#[case::bad_certificate(Some(false), None, Err(Refusal::Unproven))]
#[case::both_bad(Some(false), Some("bad"), Err(Refusal::Unproven))]
#[case::bad_token(None, Some("bad"), Err(Refusal::Unproven))]
#[case::no_answer(None, Some("away"), Err(Refusal::ProofUnavailable))]
#[case::nothing(None, None, Ok("nobody by none"))]
#[tokio::test(start_paused = true)]
async fn what_counts(
    #[case] certificate: Option<bool>,
    #[case] bearer: Option<&str>,
    #[case] expected: Result<&str, Refusal>,
) {
    let (ca, other) = (Ca::new(), Ca::new());
    let certificate = certificate.map(|good| if good { &ca } else { &other }.client(named("system:node:a")));
    let (mock, _) = api_server();
    let prover = prover(&mock, source(Some(ca.authorities())).1);
    let shown = bearer.map_or_else(|| shown(&[]), token);
    let caller = prover.prove(certificate.as_deref(), &shown, at(NOW)).await;
    let caller = caller.map(|caller| format!("{} by {}", caller.name().unwrap_or("nobody"), caller.proof.name()));
    assert_eq!(caller.as_deref().map_err(|refusal| *refusal), expected);
}

/// Nobody is taken for less than they may be: the certificate might be good.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_cannot_be_judged_is_not_passed_by() {
    let (mock, asked) = api_server();
    let prover = prover(&mock, source(None).1);
    let certificate = Ca::new().client(named("jane"));
    let refused = prover.prove(Some(&certificate), &token("good"), at(NOW)).await;
    assert_eq!(refused.unwrap_err(), Refusal::ProofUnavailable);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn one_question_answers_all_who_ask_meanwhile() {
    let (mock, asked) = api_server();
    let prover = prover(&mock, Authorities::default());
    let shown = token("good");
    let all = (0..100).map(|_| prover.prove(None, &shown, at(NOW)));
    assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // Another token is another question.
    assert!(prover.prove(None, &token("good2"), at(NOW)).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[rstest]
#[case::yes("good", 9, 1)]
#[case::yes_no_longer("good", 10, 2)]
#[case::no("bad", 1, 1)]
#[case::no_no_longer("bad", 2, 2)]
#[case::what_is_not_known("away", 0, 2)]
// {"exp": 1780272005}: five seconds after NOW.
#[case::before_it_expires("eyJhbGciOiJub25lIn0.eyJleHAiOjE3ODAyNzIwMDV9.x", 4, 1)]
#[case::when_it_has_expired("eyJhbGciOiJub25lIn0.eyJleHAiOjE3ODAyNzIwMDV9.x", 5, 2)]
#[tokio::test(start_paused = true)]
async fn an_answer_is_good_for_a_while(#[case] bearer: &str, #[case] seconds: u64, #[case] questions: usize) {
    let (mock, asked) = api_server();
    let prover = prover(&mock, Authorities::default());
    let first = prover.prove(None, &token(bearer), at(NOW)).await;
    advance(Duration::from_secs(seconds)).await;
    let second = prover.prove(None, &token(bearer), at(NOW)).await;
    assert_eq!(first.map(drop), second.map(drop));
    assert_eq!(asked.load(Ordering::SeqCst), questions);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_false_tokens_crowd_out_no_true_one() {
    let (mock, asked) = api_server();
    let prover = prover(&mock, Authorities::default());
    assert!(prover.prove(None, &token("good"), at(NOW)).await.is_ok());
    for index in 0..review::REMEMBERED + 10 {
        assert!(
            prover
                .prove(None, &token(&format!("bad{index}")), at(NOW))
                .await
                .is_err()
        );
    }
    let before = asked.load(Ordering::SeqCst);
    assert!(prover.prove(None, &token("good"), at(NOW)).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

#[rstest]
#[case::its_own(Some("pod-1"), Some("pod-1"), Ok(()))]
#[case::anothers(Some("pod-2"), Some("pod-1"), Err(Refusal::OtherPodsToken))]
#[case::unknown_pod(Some("pod-1"), None, Err(Refusal::OtherPodsToken))]
#[case::nothing(None, Some("pod-1"), Err(Refusal::NoPodToken))]
#[case::bad(Some("bad"), Some("bad"), Err(Refusal::NoPodToken))]
#[case::no_answer(Some("away"), Some("pod-1"), Err(Refusal::ProofUnavailable))]
#[tokio::test(start_paused = true)]
async fn a_pods_own_token(
    #[case] bearer: Option<&str>,
    #[case] uid: Option<&str>,
    #[case] expected: Result<(), Refusal>,
) {
    let (mock, _) = api_server();
    let shown = bearer.map_or_else(|| shown(&[]), token);
    let prover = prover(&mock, Authorities::default());
    assert_eq!(prover.is_of_pod(&shown, uid).await, expected);
}

/// Users whom impersonation would make another of.
#[rstest]
#[case::no_group(json!({"username": "jane", "groups": []}))]
#[case::anonymous_in_a_group(json!({"username": "system:anonymous", "groups": ["devs"]}))]
#[case::no_name(json!({"username": "", "groups": ["system:authenticated"]}))]
#[case::empty_group(json!({"username": "jane", "groups": ["", "system:authenticated"]}))]
#[case::white_space(json!({"username": "jane ", "groups": ["system:authenticated"]}))]
#[case::line_break(json!({"username": "jane\r\nx", "groups": ["system:authenticated"]}))]
#[case::upper_case_key(json!({"username": "jane", "groups": ["system:authenticated"], "extra": {"Scopes": ["a"]}}))]
#[case::empty_extra(json!({"username": "jane", "groups": ["system:authenticated"], "extra": {"scopes": []}}))]
#[case::our_session(json!({"username": "jane", "groups": ["system:authenticated"],
    "extra": {"session.understudy.dev": ["a/b"]}}))]
#[case::our_original(json!({"username": "jane", "groups": ["system:authenticated"],
    "extra": {"original-user-info.understudy.dev": ["{}"]}}))]
fn who_cannot_be_carried(#[case] user: Value) {
    assert!(ActsAs::caller(&serde_json::from_value(user).unwrap()).is_err());
}

fn asks_to_be(fields: &[(&str, &str)]) -> Shown {
    let mut all = vec![("authorization", "Bearer good")];
    all.extend(fields);
    shown(&all)
}

/// Jane may impersonate bob and the group ops. Of eve the API server has nothing to say.
fn with_rights() -> Mock {
    Mock::new(|request| {
        if request.path.ends_with("tokenreviews") {
            return Answer::Json(201, review("good"));
        }
        assert_eq!(request.body["spec"]["user"], "jane");
        assert_eq!(request.body["spec"]["groups"], json!(["devs", "system:authenticated"]));
        let right = &request.body["spec"]["resourceAttributes"];
        assert_eq!(right["verb"], "impersonate");
        let name = right["name"].as_str().unwrap_or_default();
        if name == "eve" {
            return Answer::Nothing;
        }
        let mut answer = request.body.clone();
        answer["status"] = json!({"allowed": name == "bob" || name == "ops"});
        Answer::Json(201, answer)
    })
}

#[rstest]
#[case::may(&[("impersonate-user", "bob"), ("impersonate-group", "ops")], Ok(()))]
#[case::may_not_the_user(&[("impersonate-user", "root")], Err(Refusal::ImpersonationForbidden))]
#[case::may_not_one_of_all(&[("impersonate-user", "bob"), ("impersonate-group", "ops"), ("impersonate-group", "system:masters")],
    Err(Refusal::ImpersonationForbidden))]
#[case::may_not_the_uid(&[("impersonate-user", "bob"), ("impersonate-uid", "1")], Err(Refusal::ImpersonationForbidden))]
#[case::may_not_the_extra(&[("impersonate-user", "bob"), ("impersonate-extra-scopes", "x")], Err(Refusal::ImpersonationForbidden))]
#[case::ours(&[("impersonate-user", "bob"), ("impersonate-extra-original-user-info.understudy.dev", "ops")], Err(Refusal::Uncarriable))]
#[case::upper_case_key(&[("impersonate-user", "bob"), ("impersonate-extra-%41", "ops")], Err(Refusal::Uncarriable))]
#[case::no_answer(&[("impersonate-user", "eve")], Err(Refusal::ProofUnavailable))]
#[tokio::test(start_paused = true)]
async fn a_caller_is_whom_the_cluster_lets_it_be(
    #[case] fields: &[(&str, &str)],
    #[case] expected: Result<(), Refusal>,
) {
    let prover = prover(&with_rights(), Authorities::default());
    let shown = asks_to_be(fields);
    let caller = prover.prove(None, &shown, at(NOW)).await.unwrap();
    let acts_as = prover.acts_as(&caller, &shown).await;
    assert_eq!(acts_as.as_ref().map(drop).map_err(|refusal| *refusal), expected);
    if let Ok(acts_as) = acts_as {
        let acts_as = acts_as.unwrap();
        let lines: Vec<_> = acts_as
            .lines()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(lines[..2], [("impersonate-user", "bob"), ("impersonate-group", "ops")]);
        let [_, _, (name, original)] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!(*name, "impersonate-extra-original-user-info.understudy.dev");
        let original: Value = serde_json::from_str(original).unwrap();
        assert_eq!(original["username"], "jane");
        assert_eq!(original["groups"], json!(["devs", "system:authenticated"]));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_too_much_is_refused_unasked() {
    let mock = with_rights();
    let prover = prover(&mock, Authorities::default());
    let mut fields = vec![("impersonate-user", "bob")];
    fields.extend((0..nested::MOST).map(|_| ("impersonate-group", "ops")));
    let shown = asks_to_be(&fields);
    let caller = prover.prove(None, &shown, at(NOW)).await.unwrap();
    assert_eq!(
        prover.acts_as(&caller, &shown).await,
        Err(Refusal::ImpersonationForbidden)
    );
    assert_eq!(mock.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_nobody_and_impersonates_nobody() {
    let (mock, asked) = api_server();
    let prover = prover(&mock, Authorities::default());
    let caller = prover.prove(None, &shown(&[]), at(NOW)).await.unwrap();
    assert_eq!(prover.acts_as(&caller, &shown(&[])).await, Ok(None));
    let requested = shown(&[("impersonate-user", "bob")]);
    assert_eq!(
        prover.acts_as(&caller, &requested).await,
        Err(Refusal::ImpersonationForbidden)
    );
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
