//! Server-side apply: who owns what, and what goes when its owner says it no longer.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Box, SESSIONS, session};

fn status(nodes: &Value) -> Value {
    session("one", &json!({"status": {"nodes": nodes}}))
}

#[tokio::test]
async fn agents_write_their_own_entries_and_no_others() -> Result<()> {
    let it = Box::with_sessions().await?;
    let spec = json!({"spec": {"authMethod": "a"}});
    it.post(SESSIONS, &session("one", &spec)).await?.object();
    let path = |manager: &str, more: &str| format!("{SESSIONS}/one/status?fieldManager={manager}{more}");
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();

    let first = status(&json!([{"node": "n1", "pods": 1, "last": "x"}]));
    let once = it.apply(&path("n1", ""), &first).await?.object();
    let entry = once["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["manager"] == "n1")
        .unwrap();
    assert_eq!(
        (&entry["operation"], &entry["subresource"]),
        (&json!("Apply"), &json!("status"))
    );
    let fields = json!({"f:status": {"f:nodes": {
        "k:{\"node\":\"n1\"}": {".": {}, "f:last": {}, "f:node": {}, "f:pods": {}},
    }}});
    assert_eq!(entry["fieldsV1"], fields);
    let twice = it.apply(&path("n1", ""), &first).await?.object();
    assert_eq!(version(&twice), version(&once), "an apply of the same is no change");

    let second = status(&json!([{"node": "n2", "pods": 5}]));
    let both = it.apply(&path("n2", ""), &second).await?.object();
    assert_eq!(both["status"]["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(both["spec"]["authMethod"], "a");

    let contested = status(&json!([{"node": "n2", "pods": 5}, {"node": "n1", "pods": 7}]));
    it.apply(&path("n2", ""), &contested).await?.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"n1\" with subresource \"status\": .status.nodes[node=\"n1\"].pods",
    );
    let forced = it.apply(&path("n2", "&force=true"), &contested).await?.object();
    let node = |object: &Value, name: &str| {
        let nodes = object["status"]["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|node| node["node"] == name)
    };
    assert_eq!(
        node(&forced, "n1").unwrap(),
        json!({"node": "n1", "pods": 7, "last": "x"})
    );

    // A field that is no longer applied goes, and an entry does once nobody has it.
    let less = it
        .apply(&path("n1", ""), &status(&json!([{"node": "n1"}])))
        .await?
        .object();
    assert_eq!(node(&less, "n1").unwrap(), json!({"node": "n1", "pods": 7}));
    let without = it
        .apply(&path("n2", ""), &status(&json!([{"node": "n2", "pods": 5}])))
        .await?
        .object();
    assert_eq!(node(&without, "n1").unwrap(), json!({"node": "n1"}));
    let gone = it.apply(&path("n1", ""), &session("one", &json!({}))).await?.object();
    assert_eq!(node(&gone, "n1"), None);
    assert_eq!(node(&gone, "n2").unwrap()["pods"], 5);
    assert!(!gone["metadata"]["managedFields"].to_string().contains("n1"));
    Ok(())
}

#[tokio::test]
async fn what_is_written_otherwise_is_owned_as_well() -> Result<()> {
    let it = Box::with_sessions().await?;
    let path = format!("{SESSIONS}/one?fieldManager=gitops");
    let want = |method: &str| {
        session(
            "one",
            &json!({"spec": {"authMethod": method}, "status": {"nodes": [{"node": "x"}]}}),
        )
    };
    let created = it.apply(&path, &want("a")).await?;
    assert_eq!(created.code, 201);
    let created = created.object();
    assert!(created["status"].is_null(), "{created}");

    it.merge(
        &format!("{SESSIONS}/one?fieldManager=hand"),
        &json!({"spec": {"authMethod": "b"}}),
    )
    .await?
    .object();
    it.apply(&path, &want("a")).await?.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"hand\" using understudy.dev/v1alpha1: .spec.authMethod",
    );
    let forced = it.apply(&format!("{path}&force=true"), &want("a")).await?.object();
    assert_eq!(
        (&forced["spec"]["authMethod"], &forced["metadata"]["generation"]),
        (&json!("a"), &json!(3))
    );
    it.apply(&format!("{SESSIONS}/one"), &want("a")).await?.refused(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    let unknown = session("one", &json!({"spec": {"authMethod": "a", "junk": 1}}));
    let refused = it.apply(&path, &unknown).await?;
    assert_eq!(refused.code, 500);
    assert!(
        refused.body.contains(".spec.junk: field not declared in schema"),
        "{refused:?}"
    );
    it.apply(
        &format!("{SESSIONS}/none/status?fieldManager=n1"),
        &session("none", &json!({"status": {}})),
    )
    .await?
    .refused(404, "NotFound", "sessions.understudy.dev \"none\" not found");

    // As the agents publish their CA: a map of which each key has its owner.
    let maps = "/api/v1/namespaces/default/configmaps/ca";
    let data = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": data});
    it.apply(&format!("{maps}?fieldManager=one"), &data(json!({"a": "1", "b": "1"})))
        .await?
        .object();
    it.apply(&format!("{maps}?fieldManager=two"), &data(json!({"c": "1"})))
        .await?
        .object();
    let left = it
        .apply(&format!("{maps}?fieldManager=one"), &data(json!({"b": "2"})))
        .await?
        .object();
    assert_eq!(left["data"], json!({"b": "2", "c": "1"}));
    Ok(())
}
