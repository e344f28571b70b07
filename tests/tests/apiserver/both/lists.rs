//! Lists by page and as of a version, and what they are selected by.

use anyhow::Result;
use serde_json::{Value, json};

use super::Box;

const MAPS: &str = "/api/v1/namespaces/prod/configmaps";

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn map(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}})
}

#[tokio::test]
async fn pages_are_of_one_version() -> Result<()> {
    let it = Box::new().await?;
    for (name, rank) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")] {
        it.post(MAPS, &map(name, &json!({"rank": rank, "set": "letters"})))
            .await?
            .object();
    }
    let selected = format!("{MAPS}?labelSelector=set%3Dletters");
    let whole = it.get(&selected).await?.object();
    assert_eq!(names(&whole), ["a", "b", "c", "d"]);

    let first = it.get(&format!("{selected}&limit=2")).await?.object();
    assert_eq!(names(&first), ["a", "b"]);
    let then = first["metadata"]["resourceVersion"].as_str().unwrap();
    let next = first["metadata"]["continue"].as_str().unwrap();
    it.delete(&format!("{MAPS}/c")).await?.object();
    it.post(MAPS, &map("e", &json!({"set": "letters"}))).await?.object();
    let mut next = next.to_owned();
    let mut rest = Vec::new();
    while !next.is_empty() {
        let page = it.get(&format!("{selected}&limit=2&continue={next}")).await?.object();
        assert_eq!(page["metadata"]["resourceVersion"], then);
        rest.extend(names(&page));
        // A server may only find out on a further page that nothing more is selected.
        page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut next);
    }
    assert_eq!(rest, ["c", "d"], "all pages are of the first's version");

    let exact = format!("{selected}&resourceVersion={then}&resourceVersionMatch=Exact");
    assert_eq!(names(&it.get(&exact).await?.object()), ["a", "b", "c", "d"]);
    let since = format!("{selected}&resourceVersion={then}&resourceVersionMatch=NotOlderThan");
    assert_eq!(names(&it.get(&since).await?.object()), ["a", "b", "d", "e"]);

    let counted = it.get(&format!("{MAPS}?limit=1")).await?.object();
    assert!(
        counted["metadata"]["remainingItemCount"].as_u64() >= Some(4),
        "{counted}"
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_listed_is_refused_in_the_same_words() -> Result<()> {
    let it = Box::new().await?;
    let cases = [
        (
            "/api/v1/pods?fieldSelector=spec.other%3Dx",
            400,
            "BadRequest",
            "field label not supported: spec.other",
        ),
        (
            "/api/v1/configmaps?fieldSelector=data.x%3Dy",
            400,
            "BadRequest",
            "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (
            "/api/v1/configmaps?resourceVersionMatch=Exact",
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden \
             unless resourceVersion is provided",
        ),
        (
            "/api/v1/configmaps?sendInitialEvents=true",
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        ),
        (
            "/api/v1/configmaps?watch=1&sendInitialEvents=true",
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
             resourceVersionMatch to NotOlderThan",
        ),
        (
            "/api/v1/configmaps?watch=1&resourceVersionMatch=Exact&resourceVersion=1",
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden \
             for watch unless sendInitialEvents is provided, resourceVersionMatch: Unsupported value: \"Exact\": supported \
             values: \"NotOlderThan\"]",
        ),
    ];
    for (path, code, reason, message) in cases {
        it.get(path).await?.refused(code, reason, message);
    }
    let future = it.get("/api/v1/configmaps?resourceVersion=99999999").await?;
    assert_eq!((future.code, &future.json()["reason"]), (504, &json!("Timeout")));
    let message = future.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.starts_with("Timeout: Too large resource version: 99999999, current: "),
        "{message}"
    );
    let token = it.get("/api/v1/configmaps?limit=1&continue=abc").await?;
    assert_eq!((token.code, &token.json()["reason"]), (400, &json!("BadRequest")));
    Ok(())
}

#[tokio::test]
async fn selectors_select_alike() -> Result<()> {
    let it = Box::new().await?;
    for (name, labels) in [
        ("web", json!({"app": "web", "rank": "2"})),
        ("db", json!({"app": "db", "rank": "10"})),
        ("bare", json!({})),
    ] {
        it.post(MAPS, &map(name, &labels)).await?.object();
    }
    for (selector, expected) in [
        ("labelSelector=app", &["db", "web"][..]),
        ("labelSelector=app%3D%3Dweb", &["web"]),
        ("labelSelector=app%20in%20(web,db),rank%20notin%20(2)", &["db"]),
        ("labelSelector=app!%3Dweb", &["bare", "db", "settings"]),
        ("labelSelector=!app", &["bare", "settings"]),
        ("labelSelector=rank%3E2", &["db"]),
        ("labelSelector=rank%3C10", &["web"]),
        ("fieldSelector=metadata.name%3Ddb", &["db"]),
        (
            "fieldSelector=metadata.name!%3Ddb,metadata.namespace%3Dprod&labelSelector=app",
            &["web"],
        ),
    ] {
        let list = it.get(&format!("{MAPS}?{selector}")).await?.object();
        let found: Vec<_> = names(&list)
            .into_iter()
            .filter(|name| name != "kube-root-ca.crt")
            .collect();
        assert_eq!(found, expected, "{selector}");
    }
    Ok(())
}
