//! Custom resources: defined, then served, with their status apart from their spec.

use anyhow::Result;
use serde_json::json;

use super::{Box, JSON, SESSIONS, definition, session};

#[tokio::test]
async fn a_definition_is_served_once_it_is_there() -> Result<()> {
    let it = Box::new().await?;
    assert_eq!(it.get(SESSIONS).await?.code, 404);
    let misnamed = {
        let mut misnamed = definition();
        misnamed["metadata"]["name"] = json!("other.understudy.dev");
        misnamed
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let refused = it.post(definitions, &misnamed).await?;
    assert_eq!((refused.code, &refused.json()["reason"]), (422, &json!("Invalid")));

    it.api.define(&definition().to_string()).await?;
    let stored = it
        .get(&format!("{definitions}/sessions.understudy.dev"))
        .await?
        .object();
    assert_eq!(stored["status"]["storedVersions"], json!(["v1alpha1"]));
    assert_eq!(stored["status"]["acceptedNames"]["listKind"], "SessionList");
    let group = it.get("/apis/understudy.dev/v1alpha1").await?.object();
    let names: Vec<_> = group["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|own| &own["name"])
        .collect();
    assert_eq!(names, ["sessions", "sessions/status"]);

    it.post(SESSIONS, &session("one", &json!({"spec": {"authMethod": "a"}})))
        .await?
        .object();
    it.merge(
        &format!("{SESSIONS}/one/status"),
        &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    )
    .await?
    .object();
    let table = it.api.admin(["get", "sessions"])?.stdout().await?;
    let words: Vec<_> = table.split_whitespace().take(6).collect();
    assert_eq!(words, ["NAME", "METHOD", "READY", "one", "a", "True"], "{table}");

    it.delete(&format!("{definitions}/sessions.understudy.dev"))
        .await?
        .object();
    understudy_tests::node::eventually("the resource is gone with its definition", async || {
        Ok((it.get(SESSIONS).await?.code == 404).then_some(()))
    })
    .await
}

#[tokio::test]
async fn spec_and_status_change_apart() -> Result<()> {
    let it = Box::with_sessions().await?;
    let one = format!("{SESSIONS}/one");
    let status = format!("{one}/status");
    let sent = session(
        "one",
        &json!({"spec": {"authMethod": "a", "junk": 1}, "status": {"nodes": [{"node": "n"}]}}),
    );
    let created = it.post(SESSIONS, &sent).await?.object();
    assert_eq!(created["spec"], json!({"authMethod": "a", "idleTimeout": "1h"}));
    assert!(created["status"].is_null(), "{created}");
    assert_eq!(created["metadata"]["generation"], 1);

    let reported = it
        .merge(
            &status,
            &json!({"spec": {"authMethod": "b"}, "status": {"nodes": [{"node": "n", "pods": 2}]}}),
        )
        .await?
        .object();
    assert_eq!(reported["spec"]["authMethod"], "a");
    assert_eq!(reported["status"]["nodes"][0]["pods"], 2);
    assert_eq!(reported["metadata"]["generation"], 1);

    let changed = it
        .merge(&one, &json!({"spec": {"authMethod": "b"}, "status": {"nodes": []}}))
        .await?
        .object();
    assert_eq!(changed["spec"]["authMethod"], "b");
    assert_eq!(changed["status"], reported["status"]);
    assert_eq!(changed["metadata"]["generation"], 2);
    let labelled = it
        .merge(&one, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await?
        .object();
    assert_eq!(labelled["metadata"]["generation"], 2);
    let again = it
        .merge(&one, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await?
        .object();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        labelled["metadata"]["resourceVersion"]
    );

    it.merge(&one, &json!({"spec": {"authMethod": "z"}})).await?.refused(
        422,
        "Invalid",
        "Session.understudy.dev \"one\" is invalid: spec.authMethod: Unsupported value: \"z\": supported values: \"a\", \"b\"",
    );
    it.post(SESSIONS, &session("two", &json!({"spec": {}}))).await?.refused(
        422,
        "Invalid",
        "Session.understudy.dev \"two\" is invalid: spec.authMethod: Required value",
    );
    Ok(())
}

#[tokio::test]
async fn only_the_object_that_was_read_is_written() -> Result<()> {
    let it = Box::with_sessions().await?;
    let one = format!("{SESSIONS}/one");
    let spec = json!({"spec": {"authMethod": "a"}});
    let first = it.post(SESSIONS, &session("one", &spec)).await?.object();
    it.post(SESSIONS, &session("one", &spec)).await?.refused(
        409,
        "AlreadyExists",
        "sessions.understudy.dev \"one\" already exists",
    );
    let generated = session(
        "",
        &json!({"metadata": {"generateName": "made-"}, "spec": {"authMethod": "a"}}),
    );
    let generated = it.post(SESSIONS, &generated).await?.object();
    let name = generated["metadata"]["name"].as_str().unwrap();
    assert_eq!((&name[..5], name.len()), ("made-", 10));

    it.put(&one, &session("one", &spec)).await?.refused(
        422,
        "Invalid",
        "sessions.understudy.dev \"one\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
    );
    let mut second = first.clone();
    second["spec"]["authMethod"] = json!("b");
    it.put(&one, &second).await?.object();
    let stale = "Operation cannot be fulfilled on sessions.understudy.dev \"one\": the object has been modified; \
                 please apply your changes to the latest version and try again";
    it.put(&one, &first).await?.refused(409, "Conflict", stale);
    let version = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}});
    it.merge(&one, &version).await?.refused(409, "Conflict", stale);
    it.merge(&format!("{one}/status"), &version)
        .await?
        .refused(409, "Conflict", stale);
    let mut other = session("two", &spec);
    other["metadata"]["resourceVersion"] = json!("1");
    it.put(&one, &other).await?.refused(
        400,
        "BadRequest",
        "the name of the object (two) does not match the name on the URL (one)",
    );
    let mut another = second.clone();
    another["metadata"]["uid"] = json!("x");
    let refused = it.put(&one, &another).await?;
    assert_eq!((refused.code, &refused.json()["reason"]), (409, &json!("Conflict")));
    it.merge(&one, &json!({"metadata": {"uid": "x"}})).await?.refused(
        422,
        "Invalid",
        "Session.understudy.dev \"one\" is invalid: metadata.uid: Invalid value: \"x\": field is immutable",
    );

    let wrong = json!({"preconditions": {"uid": "x"}});
    let refused = it.ask("DELETE", &one, JSON, Some(&wrong)).await?;
    assert_eq!((refused.code, &refused.json()["reason"]), (409, &json!("Conflict")));
    it.merge(&one, &json!({"metadata": {"finalizers": ["example.com/held"]}}))
        .await?
        .object();
    let held = it.delete(&one).await?.object();
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    it.get(&one).await?.object();
    it.merge(&one, &json!({"metadata": {"finalizers": null}}))
        .await?
        .object();
    it.get(&one)
        .await?
        .refused(404, "NotFound", "sessions.understudy.dev \"one\" not found");
    Ok(())
}
