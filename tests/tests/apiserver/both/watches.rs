//! Watches, from each of the points where one may begin.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Box, JSON};

const MAPS: &str = "/api/v1/namespaces/prod/configmaps";

fn kinds(events: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .map(|event| (text(&event["type"]), text(&event["object"]["metadata"]["name"])))
        .collect()
}

fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(kind, name): &(&str, &str)| ((*kind).to_owned(), (*name).to_owned());
    pairs.iter().map(own).collect()
}

#[tokio::test]
async fn a_watch_begins_where_it_is_told() -> Result<()> {
    let it = Box::new().await?;
    let map =
        |labels: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "labels": labels}});
    let created = it.post(MAPS, &map(json!({"tag": "a"}))).await?.object();
    let start = created["metadata"]["resourceVersion"].as_str().unwrap();
    let one = format!("{MAPS}/one");
    it.merge(&one, &json!({"data": {"k": "v"}})).await?.object();
    it.merge(&one, &json!({"metadata": {"labels": {"tag": null}}}))
        .await?
        .object();
    it.merge(&one, &json!({"metadata": {"labels": {"tag": "b"}}}))
        .await?
        .object();
    it.delete(&one).await?.object();

    let watch = |more: &str| format!("{MAPS}?watch=true&timeoutSeconds=1{more}");
    let since = format!("&resourceVersion={start}");
    let all = it.get(&watch(&since)).await?.events();
    let changes = [
        ("MODIFIED", "one"),
        ("MODIFIED", "one"),
        ("MODIFIED", "one"),
        ("DELETED", "one"),
    ];
    assert_eq!(kinds(&all), expected(&changes));
    let tagged = it.get(&watch(&format!("{since}&labelSelector=tag"))).await?.events();
    let seen = [
        ("MODIFIED", "one"),
        ("DELETED", "one"),
        ("ADDED", "one"),
        ("DELETED", "one"),
    ];
    assert_eq!(
        kinds(&tagged),
        expected(&seen),
        "an object comes and goes with its label"
    );
    let named = it
        .get(&watch(&format!("{since}&fieldSelector=metadata.name%3Dother")))
        .await?
        .events();
    assert_eq!(kinds(&named), []);

    // From everything there is, in both ways of asking.
    it.post(MAPS, &map(json!({"tag": "a"}))).await?.object();
    for from in ["", "&resourceVersion=0"] {
        let found = it.get(&watch(&format!("&labelSelector=tag{from}"))).await?.events();
        assert_eq!(kinds(&found), expected(&[("ADDED", "one")]), "{from:?}");
    }
    let streamed =
        "&labelSelector=tag&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let found = it.get(&watch(streamed)).await?.events();
    assert_eq!(kinds(&found)[..2], expected(&[("ADDED", "one"), ("BOOKMARK", "")]));
    let end = &found[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!(end, "true");

    // A collection is deleted by its selector.
    let gone = it
        .ask("DELETE", &format!("{MAPS}?labelSelector=tag"), JSON, None)
        .await?
        .object();
    assert_eq!(gone["items"].as_array().map(Vec::len), Some(1));
    Ok(())
}
