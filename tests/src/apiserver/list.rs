//! Lists: whole or page by page, as of now or of a version, with the options and refusals of kube-apiserver.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    body::Body,
    cause::Cause,
    gzip,
    request::{Query, ResourceTarget},
    resources::Resource,
    selector::Selector,
    serve::Call,
    sized,
    status::{Status, json_response},
    table, translation,
};

/// Where the next page begins, and of which version the pages are.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    version: u64,
    /// Namespace and name of the last object of the page before.
    after: (String, String),
}

impl Continue {
    fn parse(text: &str) -> Result<Self, Status> {
        let bad = |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = STANDARD_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|error| bad(&error.to_string()))?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        let start = token["start"].as_str().unwrap_or_default();
        let (namespace, name) = start
            .trim_start_matches('/')
            .trim_end_matches('\0')
            .split_once('/')
            .ok_or_else(|| bad("encoded start key empty (version meta.k8s.io/v1)"))?;
        Ok(Self {
            version: token["rv"]
                .as_u64()
                .ok_or_else(|| bad("incorrect encoded start resourceVersion"))?,
            after: (namespace.to_owned(), name.to_owned()),
        })
    }

    fn to_text(&self) -> String {
        let start = format!("/{}/{}\0", self.after.0, self.after.1);
        STANDARD_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": self.version, "start": start}).to_string())
    }
}

/// Answers a list.
pub(crate) fn serve(
    call: &Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let size = sized::asked(&call.query)?.or(call.shared.list_size(resource));
    let accepts_gzip = gzip::accepted(&call.parts.headers);
    if let Some(size) = size {
        return sized::list(resource, &target.namespace, size, accepts_gzip);
    }
    let query = &call.query;
    check_options(query, false)?;
    let selector = Selector::of(resource, query)?;
    let store = &call.shared.store;
    let stored = resource.stored();
    let token = given(query, "continue").map(Continue::parse).transpose()?;
    let (objects, version) = match &token {
        Some(token) => {
            let objects = store
                .list_at(stored, &target.namespace, token.version)
                .ok_or_else(Status::continue_expired)?;
            (objects, token.version)
        }
        None => match exact_version(query, store.version())? {
            Some(version) => {
                let objects = store
                    .list_at(stored, &target.namespace, version)
                    .ok_or_else(Status::version_expired)?;
                (objects, version)
            }
            None => store.list(stored, &target.namespace),
        },
    };
    let key = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    };
    let shown: Vec<_> = objects
        .iter()
        .filter(|object| token.as_ref().is_none_or(|token| key(object) > token.after))
        .map(|object| translation::shown(resource, object))
        .filter(|object| selector.matches(object))
        .collect();
    let limit = given(query, "limit")
        .and_then(|limit| limit.parse::<usize>().ok())
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let page: Vec<&Value> = shown.iter().take(limit).map(AsRef::as_ref).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(last) = page.last().filter(|_| page.len() < shown.len()) {
        let next = Continue {
            version,
            after: key(last),
        };
        metadata["continue"] = json!(next.to_text());
        if selector.is_empty() {
            metadata["remainingItemCount"] = json!(shown.len() - page.len());
        }
    }
    let value = if table::wanted(call.accept()) {
        table::table(resource, &page, &metadata)
    } else {
        json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": metadata,
            "items": page,
        })
    };
    let text = value.to_string();
    if accepts_gzip && text.len() > gzip::THRESHOLD {
        return Ok(gzip::response(gzip::whole(text.as_bytes())));
    }
    Ok(json_response(StatusCode::OK, &value))
}

/// The version that exactly is asked for; `None` where the newest will do.
fn exact_version(query: &Query, current: u64) -> Result<Option<u64>, Status> {
    let Some(text) = given(query, "resourceVersion").filter(|text| *text != "0") else {
        return Ok(None);
    };
    let asked = version(text)?;
    if asked > current {
        return Err(Status::version_too_large(asked, current));
    }
    Ok((given(query, "resourceVersionMatch") == Some("Exact")).then_some(asked))
}

/// Reads a resource version.
pub(crate) fn version(text: &str) -> Result<u64, Status> {
    text.parse()
        .map_err(|_| Status::bad_request(format!("Invalid value: {text:?}: resourceVersion")))
}

fn given<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.first(name).filter(|value| !value.is_empty())
}

/// Refuses options that contradict each other.
pub(crate) fn check_options(query: &Query, watch: bool) -> Result<(), Status> {
    let matching = given(query, "resourceVersionMatch");
    let version = given(query, "resourceVersion");
    let initial = query.first("sendInitialEvents").is_some();
    let forbidden = Cause::forbidden;
    let mut causes = Vec::new();
    if watch {
        match (matching, initial) {
            (Some(_), false) => causes.push(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            (None, true) => causes.push(forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            _ => {}
        }
        if let Some(other) = matching.filter(|matching| *matching != "NotOlderThan") {
            let allowed = [json!("NotOlderThan")];
            causes.push(Cause::not_supported("resourceVersionMatch", &json!(other), &allowed));
        }
    } else {
        if initial {
            causes.push(forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        match matching {
            Some(_) if version.is_none() => causes.push(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            Some(_) if given(query, "continue").is_some() => causes.push(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            )),
            Some("Exact") if version == Some("0") => causes.push(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )),
            Some("Exact" | "NotOlderThan") | None => {}
            Some(other) => {
                let allowed = ["Exact", "NotOlderThan", ""].map(|value| json!(value));
                causes.push(Cause::not_supported("resourceVersionMatch", &json!(other), &allowed));
            }
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Status::invalid_object("meta.k8s.io", "ListOptions", "", &causes))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let token = Continue {
            version: 7,
            after: ("a".to_owned(), "one".to_owned()),
        };
        assert_eq!(Continue::parse(&token.to_text()).unwrap(), token);
    }

    #[rstest]
    #[case("abc")]
    #[case("e30")]
    fn a_bad_token_is_refused(#[case] text: &str) {
        let refused = Continue::parse(text).unwrap_err();
        assert_eq!(refused.code(), 400);
        assert!(refused.message().starts_with("invalid continue token: "), "{refused}");
    }
}
