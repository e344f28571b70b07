//! What is answered, whatever the version of HTTP: decided by method and target alone.

use std::sync::LazyLock;

use bytes::Bytes;
use http::Uri;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That it is well. No identity is needed.
    Health,
    /// One small object.
    Small,
    /// A list of so many bytes.
    List {
        /// How many.
        bytes: u64,
        /// Over HTTP/1.1, without saying how many beforehand.
        chunked: bool,
    },
    /// Events, as they come.
    Watch,
    /// An exec or attach.
    Switch,
}

/// An object of about a kilobyte, as an API server would write it.
pub(crate) static SMALL: LazyLock<Bytes> = LazyLock::new(|| {
    let mut object = serde_json::json!({
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {
            "name": "bench",
            "namespace": "bench",
            "uid": "6a1f0c52-8c5e-4d6e-9d2a-0f6c1b7a3e11",
            "resourceVersion": "4711",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": "bench", "app.kubernetes.io/part-of": "understudy"},
        },
        "data": {"text": ""},
    });
    let short = 1024_usize.saturating_sub(object.to_string().len());
    object["data"]["text"] = "x".repeat(short).into();
    Bytes::from(object.to_string())
});

/// What stands in every refusal.
pub(crate) const REFUSAL: &[u8] = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the identity is not the one that was to be put on","reason":"Forbidden","code":403}"#;

impl Wanted {
    /// Reads it off the target.
    pub(crate) fn of(target: &str) -> Self {
        let Some((path, query)) = target.split_once('?') else {
            return if target.ends_with("/healthz") {
                Self::Health
            } else {
                Self::of_path(target)
            };
        };
        let value = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        let says = |name: &str| value(name).is_some_and(|value| value == "true" || value == "1");
        if says("watch") {
            Self::Watch
        } else if let Some(bytes) = value("bytes").and_then(|bytes| bytes.parse().ok()) {
            Self::List {
                bytes,
                chunked: says("chunked"),
            }
        } else {
            Self::of_path(path)
        }
    }

    fn of_path(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("exec" | "attach") if path.contains("/pods/") => Self::Switch,
            _ => Self::Small,
        }
    }
}

/// A request's target in the form that the absolute one has as well.
pub(crate) fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/healthz", Wanted::Health)]
    #[case("/api/v1/namespaces/a/configmaps/b", Wanted::Small)]
    #[case("/api/v1/namespaces/a/configmaps/b?resourceVersion=0", Wanted::Small)]
    #[case("/api/v1/configmaps?bytes=100", Wanted::List { bytes: 100, chunked: false })]
    #[case("/api/v1/configmaps?chunked=true&bytes=100", Wanted::List { bytes: 100, chunked: true })]
    #[case("/api/v1/configmaps?watch=true&resourceVersion=1", Wanted::Watch)]
    #[case("/api/v1/configmaps?watch=0", Wanted::Small)]
    #[case("/api/v1/namespaces/a/pods/b/exec?command=cat&stdin=true", Wanted::Switch)]
    #[case("/api/v1/namespaces/a/pods/b/attach", Wanted::Switch)]
    fn targets(#[case] target: &str, #[case] wanted: Wanted) {
        assert_eq!(Wanted::of(target), wanted);
    }

    #[test]
    fn the_small_object_is_a_kilobyte_of_json() {
        assert!(serde_json::from_slice::<serde_json::Value>(&SMALL).is_ok());
        assert_eq!(SMALL.len(), 1024);
    }
}
