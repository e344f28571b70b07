//! Users as `audit.k8s.io/v1` writes them (`authentication.k8s.io/v1` `UserInfo`), put into JSON once and used for every
//! event that names them.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderValue;
use k8s_openapi::api::authentication::v1::UserInfo;
use percent_encoding::percent_decode_str;

use super::text;
use crate::{
    identity::{
        ANONYMOUS, AUTHENTICATED, ActsAs, IMPERSONATE_EXTRA_PREFIX, IMPERSONATE_GROUP, IMPERSONATE_SESSION,
        IMPERSONATE_UID, IMPERSONATE_USER,
    },
    pod::{SessionId, WantedPod},
};

const UNAUTHENTICATED: &str = "system:unauthenticated";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Longer names are cut, and groups and extra values beyond as much are left out: the backlog's memory is bounded by it.
const NAME_LIMIT: usize = 1024;
const REST_LIMIT: usize = 8 * 1024;

/// A user, as rules ask for it and as an event has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    groups: Vec<String>,
    json: Arc<str>,
}

impl User {
    /// A user of whom all is known. An empty name is nobody's whom the agent knows.
    #[must_use]
    pub fn new(name: &str, uid: Option<&str>, groups: Vec<String>, extra: &BTreeMap<String, Vec<String>>) -> Self {
        let json = json(name, uid, &groups, extra);
        Self {
            name: name.to_owned(),
            groups,
            json: json.into(),
        }
    }

    /// Whoever shows no credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, None, vec![UNAUTHENTICATED.to_owned()], &BTreeMap::new())
    }

    /// A service account, with the groups that Kubernetes gives it.
    #[must_use]
    pub fn service_account(
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        extra: &BTreeMap<String, Vec<String>>,
    ) -> Self {
        let mut groups = account_groups(namespace);
        groups.push(AUTHENTICATED.to_owned());
        Self::new(
            &format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            uid,
            groups,
            extra,
        )
    }

    /// What the agent knows of the user that a pod is by itself: its service account where its source names that, and
    /// which pod it is, as the API server says it of a token that is bound to a pod.
    #[must_use]
    pub fn of_pod(pod: &WantedPod) -> Self {
        let namespace = pod.session.namespace();
        let mut extra = BTreeMap::new();
        let name = pod.name.rsplit('/').next().unwrap_or_default();
        for (key, value) in [("pod-name", Some(name)), ("pod-uid", pod.uid.as_deref())] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        }
        match &pod.service_account {
            Some(account) => Self::service_account(namespace, account, None, &extra),
            None => Self::new("", None, Vec::new(), &extra),
        }
    }

    /// A user as the API server says it.
    #[must_use]
    pub fn of(info: &UserInfo) -> Self {
        Self::new(
            info.username.as_deref().unwrap_or_default(),
            info.uid.as_deref(),
            info.groups.clone().unwrap_or_default(),
            info.extra.as_ref().unwrap_or(&BTreeMap::new()),
        )
    }

    /// Whom the API server takes a request for that impersonates: what the headers say, and the groups that it adds by
    /// itself (`k8s.io/apiserver/pkg/endpoints/filters`, `WithImpersonation`).
    #[must_use]
    pub fn impersonated(acts_as: &ActsAs, told: Option<&SessionId>) -> Self {
        let (mut uid, mut groups) = (None, Vec::new());
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut add = |name: &str, value: &str| {
            let key = name.strip_prefix(IMPERSONATE_EXTRA_PREFIX).unwrap_or(name);
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_default().push(value.to_owned());
        };
        for (name, value) in acts_as.lines() {
            let value = text_of(value);
            if *name == IMPERSONATE_GROUP {
                groups.push(value);
            } else if *name == IMPERSONATE_UID {
                uid = Some(value);
            } else if *name != IMPERSONATE_USER {
                add(name.as_str(), &value);
            }
        }
        if let Some(session) = told {
            add(IMPERSONATE_SESSION.as_str(), session.text());
        }
        let account = acts_as.name().strip_prefix(SERVICE_ACCOUNT_PREFIX);
        if let (true, Some((namespace, _))) = (groups.is_empty(), account.and_then(|account| account.split_once(':'))) {
            groups = account_groups(namespace);
        }
        let given = if acts_as.name() == ANONYMOUS {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        let has_one = |group: &String| group == UNAUTHENTICATED || (group == AUTHENTICATED && given == AUTHENTICATED);
        if !groups.iter().any(has_one) {
            groups.push(given.to_owned());
        }
        Self::new(acts_as.name(), uid.as_deref(), groups, &extra)
    }

    /// Its name; empty where the agent doesn't know it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its groups.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// As an event has it.
    pub(crate) fn json(&self) -> &Arc<str> {
        &self.json
    }
}

fn account_groups(namespace: &str) -> Vec<String> {
    vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}

/// Header values that the agent made are UTF-8.
fn text_of(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn json(name: &str, uid: Option<&str>, groups: &[String], extra: &BTreeMap<String, Vec<String>>) -> String {
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    if !name.is_empty() {
        text::member(&mut out, "username", &name[..name.floor_char_boundary(NAME_LIMIT)]);
    }
    if let Some(uid) = uid.filter(|uid| !uid.is_empty()) {
        text::member(&mut out, "uid", &uid[..uid.floor_char_boundary(NAME_LIMIT)]);
    }
    let mut left = REST_LIMIT;
    let mut fits = |text: &String| {
        let fits = text.len() <= left;
        left = left.saturating_sub(text.len());
        fits
    };
    let groups: Vec<&String> = groups.iter().filter(|group| fits(group)).collect();
    if !groups.is_empty() {
        text::key(&mut out, "groups");
        text::strings(&mut out, &groups);
    }
    let mut kept: Vec<(&String, Vec<&String>)> = Vec::new();
    for (key, values) in extra {
        let values: Vec<&String> = values.iter().filter(|value| fits(value)).collect();
        if !values.is_empty() && fits(key) {
            kept.push((key, values));
        }
    }
    if !kept.is_empty() {
        text::key(&mut out, "extra");
        out.push(b'{');
        for (key, values) in kept {
            text::key_of(&mut out, key);
            text::strings(&mut out, &values);
        }
        out.push(b'}');
    }
    out.push(b'}');
    // What serde_json writes is UTF-8.
    String::from_utf8(out).unwrap_or_else(|_| "{}".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn read(user: &User) -> Value {
        serde_json::from_str(user.json()).unwrap()
    }

    fn pod(service_account: Option<&str>, uid: Option<&str>) -> WantedPod {
        WantedPod {
            cgroup: "x".into(),
            name: "support/shell-0".into(),
            session: "support/alice".parse().unwrap(),
            uid: uid.map(Arc::from),
            service_account: service_account.map(Arc::from),
        }
    }

    #[rstest]
    #[case::all(Some("runner"), Some("7"), json!({
        "username": "system:serviceaccount:support:runner",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:support", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-name": ["shell-0"], "authentication.kubernetes.io/pod-uid": ["7"]},
    }))]
    #[case::of_a_file(None, None, json!({"extra": {"authentication.kubernetes.io/pod-name": ["shell-0"]}}))]
    fn a_pods_own_user(#[case] account: Option<&str>, #[case] uid: Option<&str>, #[case] expected: Value) {
        assert_eq!(read(&User::of_pod(&pod(account, uid))), expected);
    }

    /// The cases of `impersonation_test.go` that say which groups are added.
    #[rstest]
    #[case("jane", &["devs"], &["devs", "system:authenticated"])]
    #[case("jane", &["system:authenticated", "devs"], &["system:authenticated", "devs"])]
    #[case("jane", &["system:unauthenticated"], &["system:unauthenticated"])]
    #[case("system:anonymous", &[], &["system:unauthenticated"])]
    #[case("system:anonymous", &["system:authenticated"], &["system:authenticated", "system:unauthenticated"])]
    #[case("system:serviceaccount:ns:sa", &[], &["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"])]
    #[case("system:serviceaccount:ns:sa", &["x"], &["x", "system:authenticated"])]
    fn groups_that_the_api_server_adds(#[case] name: &str, #[case] sent: &[&str], #[case] expected: &[&str]) {
        let sent: Vec<String> = sent.iter().map(|group| (*group).to_owned()).collect();
        let acts_as = ActsAs::user(name, &sent, None, &[]).unwrap();
        assert_eq!(User::impersonated(&acts_as, None).groups(), expected);
    }

    #[test]
    fn what_is_impersonated_is_read_back_off_the_headers() {
        let extra = [
            (
                "example.org/scopes".to_owned(),
                vec!["view".to_owned(), "é\"".to_owned()],
            ),
            ("a".to_owned(), vec!["b".to_owned()]),
        ];
        let acts_as = ActsAs::user("jane", &["system:authenticated".to_owned()], Some("42"), &extra).unwrap();
        let user = User::impersonated(&acts_as, Some(&"support/alice".parse().unwrap()));
        let expected = json!({
            "username": "jane", "uid": "42", "groups": ["system:authenticated"],
            "extra": {"a": ["b"], "example.org/scopes": ["view", "é\""], "session.understudy.dev": ["support/alice"]},
        });
        assert_eq!(read(&user), expected);
        assert!(
            user.json().starts_with(r#"{"username":"jane","uid":"42","groups":["#),
            "in Kubernetes' order"
        );
    }

    #[test]
    fn an_extra_value_may_have_any_name() {
        let extra = BTreeMap::from([("a\"\n\\".to_owned(), vec!["b".to_owned()])]);
        let user = User::new("jane", None, Vec::new(), &extra);
        assert_eq!(read(&user)["extra"], json!({"a\"\n\\": ["b"]}));
    }

    #[test]
    fn a_user_takes_no_more_room_than_it_may() {
        let groups: Vec<String> = (0..1000).map(|n| format!("{n:0100}")).collect();
        let user = User::new(&"é".repeat(5000), None, groups, &BTreeMap::new());
        assert!(user.json().len() < 10 * 1024, "{}", user.json().len());
        assert_eq!(read(&user)["username"].as_str().unwrap().len(), NAME_LIMIT);
        assert_eq!(user.groups().len(), 1000, "rules see all");
    }
}
