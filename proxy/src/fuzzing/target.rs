//! Request targets: the first line is the method, the second the target.

use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use crate::{
    request_info::{RequestInfo, ResourceRequest},
    sessions::refuse::RequestRules,
};

/// Everything but what separates segments.
const ALL_BUT_SLASHES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/');

/// A target is read as its plain form is, or doubted; and however it is written, what makes a token is refused by a
/// session that says nothing of it.
pub(super) fn holds(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (method, target) = text.split_once('\n').unwrap_or(("GET", text));
    let (Ok(method), Ok(target)) = (method.parse::<Method>(), target.trim_end().parse::<Uri>()) else {
        return;
    };
    let read = RequestInfo::parse(&method, &target);
    if let Ok(info) = &read {
        if let RequestInfo::Resource(request) = info {
            is_of_names(request);
        }
        assert_eq!(
            escaped(&target).map(|target| RequestInfo::parse(&method, &target)),
            Some(Ok(info.clone()))
        );
    }
    let rules = RequestRules::default();
    // What follows a proxy is another server's path.
    let is_proxied = matches!(&read, Ok(RequestInfo::Resource(request)) if request.subresource == "proxy");
    if method == Method::POST && !is_proxied && makes_a_token(target.path()) {
        assert!(rules.refuse(&read, false), "{target} is let through");
    }
    if read.is_err() {
        assert!(rules.refuse(&read, false), "{target} is doubtful and let through");
    }
}

/// What is compared with rules can't be read otherwise by another.
fn is_of_names(request: &ResourceRequest) {
    let ResourceRequest {
        api_group,
        namespace,
        resource,
        subresource,
        ..
    } = request;
    for name in [api_group, namespace, resource, subresource] {
        assert!(
            !name.contains(['%', '/', '\\'])
                && !matches!(name.as_str(), "." | "..")
                && !name.chars().any(char::is_control),
            "{name:?} is taken for a name"
        );
    }
}

/// The same target with its path escaped wherever it may be.
fn escaped(target: &Uri) -> Option<Uri> {
    let path = percent_decode(target.path().as_bytes()).decode_utf8().ok()?;
    let path = utf8_percent_encode(&path, ALL_BUT_SLASHES);
    match target.query() {
        Some(query) => format!("{path}?{query}").parse().ok(),
        None => path.to_string().parse().ok(),
    }
}

/// Whether somebody may read it as `create serviceaccounts/token`: escapes undone as often as there are any, empty and
/// dot segments left out.
fn makes_a_token(path: &str) -> bool {
    let mut path = path.as_bytes().to_vec();
    loop {
        let plain: Vec<u8> = percent_decode(&path).collect();
        if plain == path {
            break;
        }
        path = plain;
    }
    let path = String::from_utf8_lossy(&path).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    matches!(segments[..], ["api", _, "namespaces", _, "serviceaccounts", _, "token"])
}
