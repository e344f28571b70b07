//! Kubernetes' impersonation: `Impersonate-User`, `-Group`, `-Uid` and `-Extra-*`, each of which the impersonator
//! needs the right to. Plain functions over headers and rules; the caller takes the headers off afterwards.

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use super::{
    auth::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo},
    rbac::Rules,
    request::{Attributes, ResourceTarget, Target},
    status::Status,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

/// What the headers ask to become.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: Vec<(String, String)>,
}

/// The user that the requestor becomes by these headers; `None` when they ask for nobody.
///
/// # Errors
/// 400 for a group, uid or extra without a user; 403 for the first part that the requestor has no right to.
pub fn impersonate(headers: &HeaderMap, requestor: &UserInfo, rules: &Rules) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = Wanted::of(headers)? else {
        return Ok(None);
    };
    for target in wanted.targets() {
        rules.authorize(
            requestor,
            &Attributes {
                verb: "impersonate".to_owned(),
                target: Target::Resource(target),
            },
        )?;
    }
    Ok(Some(wanted.into_user()))
}

/// Takes every impersonation header off, so that no handler can see one.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| matches!(name.as_str(), USER | GROUP | UID) || name.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
        let mut extra = Vec::new();
        for name in headers.keys() {
            if let Some(encoded) = name.as_str().strip_prefix(EXTRA) {
                let key = extra_key(encoded);
                extra.extend(headers.get_all(name).iter().map(|value| (key.clone(), text(value))));
            }
        }
        let wanted = Self {
            user: first(USER),
            groups: headers.get_all(GROUP).iter().map(text).collect(),
            uid: first(UID),
            extra,
        };
        if !wanted.user.is_empty() {
            Ok(Some(wanted))
        } else if wanted == Self::default() {
            Ok(None)
        } else {
            Err(Status::bad_request(
                "requested impersonation of a group, uid or extra without impersonating a user",
            ))
        }
    }

    /// The rights that it takes, in the order in which kube-apiserver asks for them.
    fn targets(&self) -> Vec<ResourceTarget> {
        let core = |resource: &str, namespace: &str, name: &str| ResourceTarget {
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..ResourceTarget::default()
        };
        let mut targets = vec![match service_account(&self.user) {
            Some((namespace, name)) => core("serviceaccounts", namespace, name),
            None => core("users", "", &self.user),
        }];
        targets.extend(self.groups.iter().map(|group| core("groups", "", group)));
        targets.extend(self.extra.iter().map(|(key, value)| ResourceTarget {
            group: AUTHENTICATION_GROUP.to_owned(),
            subresource: key.clone(),
            ..core("userextras", "", value)
        }));
        if !self.uid.is_empty() {
            targets.push(ResourceTarget {
                group: AUTHENTICATION_GROUP.to_owned(),
                ..core("uids", "", &self.uid)
            });
        }
        targets
    }

    fn into_user(self) -> UserInfo {
        let mut groups = self.groups;
        if groups.is_empty()
            && let Some((namespace, _)) = service_account(&self.user)
        {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let has = |group: &str| groups.iter().any(|own| own == group);
        if self.user == ANONYMOUS {
            if !has(UNAUTHENTICATED) {
                groups.push(UNAUTHENTICATED.to_owned());
            }
        } else if !has(AUTHENTICATED) && !has(UNAUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        let mut user = UserInfo {
            username: self.user,
            uid: self.uid,
            groups,
            ..UserInfo::default()
        };
        for (key, value) in self.extra {
            user.extra.entry(key).or_default().push(value);
        }
        user
    }
}

/// Lower-cased first, then percent-decoded: `%41` stays an upper-case A. A key that can't be decoded stays as sent.
fn extra_key(encoded: &str) -> String {
    let lower = encoded.to_ascii_lowercase();
    let bytes = lower.as_bytes();
    let well_formed = bytes.iter().enumerate().all(|(index, byte)| {
        *byte != b'%'
            || bytes
                .get(index + 1..index + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if well_formed {
        percent_decode_str(&lower).decode_utf8_lossy().into_owned()
    } else {
        lower
    }
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    let valid = |part: &str| !part.is_empty() && !part.contains(':');
    (valid(namespace) && valid(name)).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SA: &str = "system:serviceaccount:prod:viewer";

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn requestor(name: &str) -> UserInfo {
        UserInfo {
            username: name.to_owned(),
            ..UserInfo::default()
        }
    }

    fn rules() -> Rules {
        r#"
rules:
- users: [all]
  verbs: [impersonate]
  resources: ["*"]
- users: [narrow]
  verbs: [impersonate]
  resources: [serviceaccounts]
  resourceNames: [viewer]
  namespaces: [prod]
- users: [narrow]
  verbs: [impersonate]
  resources: [groups]
  resourceNames: ["system:authenticated"]
- users: [narrow]
  verbs: [impersonate]
  apiGroups: [authentication.k8s.io]
  resources: [userextras/scopes]
  resourceNames: [view]
"#
        .parse()
        .unwrap()
    }

    #[rstest]
    #[case::user(&[("impersonate-user", "bob")], "bob", &[AUTHENTICATED])]
    #[case::user_and_group(&[("impersonate-user", "bob"), ("impersonate-group", "dev")], "bob", &["dev", AUTHENTICATED])]
    #[case::authenticated_not_twice(&[("impersonate-user", "bob"), ("impersonate-group", AUTHENTICATED)], "bob", &[AUTHENTICATED])]
    #[case::service_account(&[("impersonate-user", SA)], SA, &["system:serviceaccounts", "system:serviceaccounts:prod", AUTHENTICATED])]
    #[case::service_account_with_groups(&[("impersonate-user", SA), ("impersonate-group", "dev")], SA, &["dev", AUTHENTICATED])]
    #[case::not_quite_a_service_account(&[("impersonate-user", "system:serviceaccount:prod")], "system:serviceaccount:prod", &[AUTHENTICATED])]
    #[case::anonymous(&[("impersonate-user", ANONYMOUS)], ANONYMOUS, &[UNAUTHENTICATED])]
    #[case::unauthenticated(&[("impersonate-user", "bob"), ("impersonate-group", UNAUTHENTICATED)], "bob", &[UNAUTHENTICATED])]
    fn who_one_becomes(#[case] list: &[(&str, &str)], #[case] name: &str, #[case] groups: &[&str]) {
        let user = impersonate(&headers(list), &requestor("all"), &rules())
            .unwrap()
            .unwrap();
        assert_eq!(user.username, name);
        assert_eq!(user.groups, groups);
    }

    #[rstest]
    #[case("Impersonate-Extra-Scopes", "scopes")]
    #[case("impersonate-extra-example.com%2fKey", "example.com/key")]
    #[case("impersonate-extra-a%41b", "aAb")]
    #[case("impersonate-extra-a%zz", "a%zz")]
    #[case("impersonate-extra-a%2", "a%2")]
    fn extra_keys(#[case] header: &str, #[case] key: &str) {
        let user = impersonate(
            &headers(&[("impersonate-user", "bob"), (header, "1"), (header, "2")]),
            &requestor("all"),
            &rules(),
        )
        .unwrap()
        .unwrap();
        assert_eq!(user.extra[key], ["1", "2"]);
    }

    #[rstest]
    #[case(&[("impersonate-group", "dev")])]
    #[case(&[("impersonate-uid", "1")])]
    #[case(&[("impersonate-extra-scopes", "view")])]
    #[case(&[("impersonate-user", ""), ("impersonate-group", "dev")])]
    fn parts_without_a_user_are_a_bad_request(#[case] list: &[(&str, &str)]) {
        let status = impersonate(&headers(list), &requestor("all"), &rules()).unwrap_err();
        assert_eq!(status.code(), 400);
    }

    #[rstest]
    #[case::allowed(&[("impersonate-user", SA), ("impersonate-group", AUTHENTICATED), ("impersonate-extra-scopes", "view")], None)]
    #[case::another_account(&[("impersonate-user", "system:serviceaccount:prod:admin")],
        Some(r#"serviceaccounts "admin" is forbidden: User "narrow" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "prod""#))]
    #[case::user(&[("impersonate-user", "bob")],
        Some(r#"users "bob" is forbidden: User "narrow" cannot impersonate resource "users" in API group "" at the cluster scope"#))]
    #[case::one_group_of_two(&[("impersonate-user", SA), ("impersonate-group", AUTHENTICATED), ("impersonate-group", "system:masters")],
        Some(r#"groups "system:masters" is forbidden: User "narrow" cannot impersonate resource "groups" in API group "" at the cluster scope"#))]
    #[case::extra_value(&[("impersonate-user", SA), ("impersonate-extra-scopes", "admin")],
        Some(r#"userextras.authentication.k8s.io "admin" is forbidden: User "narrow" cannot impersonate resource "userextras/scopes" in API group "authentication.k8s.io" at the cluster scope"#))]
    #[case::uid(&[("impersonate-user", SA), ("impersonate-uid", "1")],
        Some(r#"uids.authentication.k8s.io "1" is forbidden: User "narrow" cannot impersonate resource "uids" in API group "authentication.k8s.io" at the cluster scope"#))]
    fn every_part_needs_its_right(#[case] list: &[(&str, &str)], #[case] refused: Option<&str>) {
        let result = impersonate(&headers(list), &requestor("narrow"), &rules());
        assert_eq!(
            result.err().map(|status| status.message().to_owned()).as_deref(),
            refused
        );
    }

    #[test]
    fn strip_leaves_the_rest() {
        let mut map = headers(&[
            ("impersonate-user", "a"),
            ("impersonate-group", "b"),
            ("impersonate-uid", "c"),
            ("impersonate-extra-x", "d"),
            ("accept", "e"),
        ]);
        strip(&mut map);
        assert_eq!(map, headers(&[("accept", "e")]));
    }
}
