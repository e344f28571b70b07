//! What a request asks for, read from its method and URI as kube-apiserver's request-info resolver reads it.
//! Whether it may have it is `rbac`'s to say.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// The verb and its target: what authorization looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, ... for a resource; the method in lower case for a path.
    pub verb: String,
    /// What the verb is done to.
    pub target: Target,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An object, or a list of them.
    Resource(ResourceTarget),
    /// Anything else: discovery, health, version.
    Path(String),
}

/// An object or a list. Empty strings stand for "not given", as in kube-apiserver's own attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceTarget {
    /// The API group; empty is the core group.
    pub group: String,
    /// The version in the group.
    pub version: String,
    /// The plural name.
    pub resource: String,
    /// `log`, `exec`, `status`, ...
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Attributes {
    /// Reads a request's method and URI.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let query = Query::of(uri);
        match resource_target(uri.path()) {
            Some(mut target) => {
                let verb = resource_verb(method, &query, &mut target);
                Self {
                    verb: verb.to_owned(),
                    target: Target::Resource(target),
                }
            }
            None => Self {
                verb: method.as_str().to_ascii_lowercase(),
                target: Target::Path(uri.path().to_owned()),
            },
        }
    }
}

fn resource_target(path: &str) -> Option<ResourceTarget> {
    let mut parts = path
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned());
    let group = match parts.next()?.as_str() {
        "api" => String::new(),
        "apis" => parts.next()?,
        _ => return None,
    };
    let version = parts.next()?;
    let rest: Vec<String> = parts.collect();
    let at = |index: usize| rest.get(index).cloned().unwrap_or_default();
    let mut target = ResourceTarget {
        group,
        version,
        resource: at(0),
        ..ResourceTarget::default()
    };
    if target.resource.is_empty() {
        return None;
    }
    let own_subresource = matches!(at(2).as_str(), "" | "status" | "finalize");
    if target.resource == "namespaces" && rest.len() > 1 {
        target.namespace = at(1);
        if own_subresource {
            target.name = at(1);
            target.subresource = at(2);
        } else {
            target.resource = at(2);
            target.name = at(3);
            target.subresource = at(4);
        }
    } else {
        target.name = at(1);
        target.subresource = at(2);
    }
    Some(target)
}

fn resource_verb(method: &Method, query: &Query, target: &mut ResourceTarget) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if target.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ if target.name.is_empty() => {
            // A list of the one object called so is authorized by that name.
            if let Some(name) = query
                .first("fieldSelector")
                .and_then(|selector| selector.strip_prefix("metadata.name="))
                .filter(|name| !name.contains(','))
            {
                name.clone_into(&mut target.name);
            }
            if query.flag("watch") { "watch" } else { "list" }
        }
        _ => "get",
    }
}

/// The parameters of a URI, decoded, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Self {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        Self(
            uri.query()
                .unwrap_or_default()
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of that name.
    pub(crate) fn first(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// All values of that name.
    pub(crate) fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean as Kubernetes reads it: given and neither `false` nor `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.first(key)
            .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("GET", "/api/v1/pods", "list", ["", "pods", "", "", ""])]
    #[case("GET", "/api/v1/namespaces", "list", ["", "namespaces", "", "", ""])]
    #[case("GET", "/api/v1/namespaces/a", "get", ["", "namespaces", "", "a", "a"])]
    #[case("PUT", "/api/v1/namespaces/a/status", "update", ["", "namespaces", "status", "a", "a"])]
    #[case("GET", "/api/v1/namespaces/a/pods", "list", ["", "pods", "", "a", ""])]
    #[case("GET", "/api/v1/namespaces/a/pods?watch=1", "watch", ["", "pods", "", "a", ""])]
    #[case("GET", "/api/v1/namespaces/a/pods?watch=0", "list", ["", "pods", "", "a", ""])]
    #[case("GET", "/api/v1/namespaces/a/pods?watch=true&fieldSelector=metadata.name%3Db", "watch", ["", "pods", "", "a", "b"])]
    #[case("GET", "/api/v1/namespaces/a/pods/b", "get", ["", "pods", "", "a", "b"])]
    #[case("POST", "/api/v1/namespaces/a/pods/b/exec?command=ls", "create", ["", "pods", "exec", "a", "b"])]
    #[case("DELETE", "/api/v1/namespaces/a/configmaps", "deletecollection", ["", "configmaps", "", "a", ""])]
    #[case("DELETE", "/api/v1/namespaces/a/configmaps/b", "delete", ["", "configmaps", "", "a", "b"])]
    #[case("PATCH", "/apis/apps/v1/namespaces/a/deployments/b", "patch", ["apps", "deployments", "", "a", "b"])]
    #[case("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "create", ["authentication.k8s.io", "selfsubjectreviews", "", "", ""])]
    fn resources(#[case] method: Method, #[case] uri: Uri, #[case] verb: &str, #[case] expected: [&str; 5]) {
        let attributes = Attributes::of(&method, &uri);
        assert_eq!(attributes.verb, verb);
        let Target::Resource(target) = attributes.target else {
            panic!("a resource")
        };
        assert_eq!(
            [
                target.group,
                target.resource,
                target.subresource,
                target.namespace,
                target.name
            ],
            expected
        );
    }

    #[rstest]
    #[case("/")]
    #[case("/version")]
    #[case("/api")]
    #[case("/api/v1")]
    #[case("/apis/apps/v1")]
    #[case("/openapi/v3/api/v1")]
    fn paths(#[case] uri: Uri) {
        let attributes = Attributes::of(&Method::GET, &uri);
        assert_eq!(attributes.verb, "get");
        assert_eq!(attributes.target, Target::Path(uri.path().to_owned()));
    }

    #[test]
    fn queries_are_decoded_in_order() {
        let query = Query::of(&Uri::from_static("/x?command=echo&command=a%20b&command=c+d&tty=false"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["echo", "a b", "c d"]);
        assert!(!query.flag("tty"));
        assert!(!query.flag("stdin"));
    }
}
