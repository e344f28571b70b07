//! A caller who asks to be somebody else is so only where the cluster says that it may, and goes along itself.

use rstest::rstest;
use serde_json::{Value, json};
use understudy_cases::{Area, seen};

use crate::callers::{forwarded, identity_of, refusal, send, stage_that_judges};

/// Jane may impersonate bob of the group ops, with the scope view, and nobody else. Of eve nothing is said.
fn judge(review: &Value) -> Option<Value> {
    if review["kind"] == "TokenReview" {
        return Some(json!({"authenticated": true, "user": {"username": "jane", "groups": ["system:authenticated"]}}));
    }
    assert_eq!(review["spec"]["user"], "jane");
    let right = &review["spec"]["resourceAttributes"];
    let text = |field: &str| right[field].as_str().unwrap_or_default().to_owned();
    let asked = [text("group"), text("resource"), text("subresource"), text("name")].join("|");
    match asked.as_str() {
        "|users||eve" => None,
        "|users||bob" | "|groups||ops" | "authentication.k8s.io|userextras|scopes|view" => {
            Some(json!({"allowed": true}))
        }
        // A webhook that denies outweighs one that allows.
        "|users||mallory" => Some(json!({"allowed": true, "denied": true})),
        _ => Some(json!({"allowed": false})),
    }
}

#[tokio::test]
async fn whoever_may_impersonates_and_is_named() {
    let (stage, reviews) = stage_that_judges(json!({}), judge).await;
    let fields = [
        ("authorization", "Bearer jane"),
        ("impersonate-user", "bob"),
        ("impersonate-group", "ops"),
        ("impersonate-extra-%73copes", "view"),
    ];
    let response = send(&stage, None, &fields).await;
    assert_eq!((response.status().as_u16(), reviews.count()), (200, 4));
    let identity = identity_of(&stage);
    let lines: Vec<_> = identity
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        lines[..4],
        [
            ("authorization", "Bearer agent-token"),
            ("impersonate-user", "bob"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-scopes", "view"),
        ]
    );
    assert_eq!(
        (lines.len(), lines[4].0),
        (5, "impersonate-extra-original-user-info.understudy.dev")
    );
    let original: Value = serde_json::from_str(lines[4].1).unwrap();
    assert_eq!(
        original,
        json!({"username": "jane", "groups": ["system:authenticated"]})
    );
    seen(
        Area::Identity,
        "A caller that may impersonate whom it asks for",
        "goes as that user, the caller beside it in `original-user-info.understudy.dev`",
    );
}

#[rstest]
#[case("A caller that may not impersonate the user", &[("impersonate-user", "root")], "403 `Status` Forbidden")]
#[case("A caller that may impersonate the user, but not the group",
    &[("impersonate-user", "bob"), ("impersonate-group", "ops"), ("impersonate-group", "system:masters")], "403 `Status` Forbidden")]
#[case("A caller that may impersonate the user, but not the UID",
    &[("impersonate-user", "bob"), ("impersonate-uid", "1")], "403 `Status` Forbidden")]
#[case("A caller that may impersonate one value of an extra, and not the other",
    &[("impersonate-user", "bob"), ("impersonate-extra-scopes", "view"), ("impersonate-extra-scopes", "edit")], "403 `Status` Forbidden")]
#[case("A caller whose impersonation is allowed and denied", &[("impersonate-user", "mallory")], "403 `Status` Forbidden")]
#[case("A caller of whose rights the API server says nothing", &[("impersonate-user", "eve")], "503 `Status` ServiceUnavailable")]
#[case("A caller that brings `original-user-info.understudy.dev` itself",
    &[("impersonate-user", "bob"), ("impersonate-extra-original-user-info.understudy.dev", "{}")], "422 `Status` Invalid")]
#[case("A caller that asks for an extra key with an upper-case letter",
    &[("impersonate-user", "bob"), ("impersonate-extra-%41", "x")], "422 `Status` Invalid")]
#[case("A caller that asks for a group without a user", &[("impersonate-group", "ops")], "400 `Status` BadRequest")]
#[case("A caller that asks for two users", &[("impersonate-user", "bob"), ("impersonate-user", "root")], "400 `Status` BadRequest")]
#[case("A caller whose two extra keys come to the same",
    &[("impersonate-user", "bob"), ("impersonate-extra-scopes", "view"), ("impersonate-extra-%73copes", "view")], "400 `Status` BadRequest")]
#[case("A caller that asks with an underscore", &[("impersonate_user", "bob")], "403 `Status` Forbidden")]
#[case("A caller that asks with an unknown suffix", &[("impersonate-user", "bob"), ("impersonate-anything", "x")], "403 `Status` Forbidden")]
#[tokio::test]
async fn whoever_may_not_is_refused(#[case] case: &str, #[case] fields: &[(&str, &str)], #[case] expected: &str) {
    let (stage, _) = stage_that_judges(json!({}), judge).await;
    let mut all = vec![("authorization", "Bearer jane")];
    all.extend(fields);
    let outcome = refusal(send(&stage, None, &all).await, &stage).await;
    assert_eq!(outcome, format!("{expected}; nothing upstream"));
    seen(Area::Identity, case, outcome);
}

#[tokio::test]
async fn nobody_impersonates_nobody() {
    let (stage, reviews) = stage_that_judges(json!({}), judge).await;
    let outcome = refusal(send(&stage, None, &[("impersonate-user", "bob")]).await, &stage).await;
    assert_eq!(
        (outcome.as_str(), reviews.count()),
        ("403 `Status` Forbidden; nothing upstream", 0)
    );
    assert!(forwarded(&stage).is_empty());
    seen(Area::Identity, "A caller that proves nothing and impersonates", outcome);
}
