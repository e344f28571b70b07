//! The objects of the cluster that the agent has to do with: the API server's own addresses, accounts, secrets,
//! leases, events in both their groups, and the reviews.

use anyhow::Result;
use serde_json::{Value, json};
use understudy_tests::node::network::{ENDPOINT_V4, ENDPOINT_V6, SERVICE_V4, SERVICE_V6};

use super::Box;

#[tokio::test]
async fn the_scene_tells_where_the_api_server_is() -> Result<()> {
    let it = Box::new().await?;
    let service = it.api.read("services", "default", "kubernetes").await?.unwrap();
    assert_eq!(service["spec"]["clusterIPs"], json!([SERVICE_V4.ip(), SERVICE_V6.ip()]));
    assert_eq!(service["spec"]["ports"][0]["port"], 443);
    let slices = it
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes")
        .await?
        .object();
    let mut addresses: Vec<_> = slices["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slice| slice["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned())
        .collect();
    addresses.sort();
    assert_eq!(addresses, [ENDPOINT_V4.ip().to_string(), ENDPOINT_V6.ip().to_string()]);
    assert!(it.api.read("nodes", "", "box").await?.is_some());
    assert!(it.api.read("serviceaccounts", "understudy", "agent").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn the_agents_account_may_what_its_roles_say() -> Result<()> {
    let it = Box::with_sessions().await?;
    let token = it.node.accounts().agent.token.clone();
    for (method, path, expected) in [
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dbox", 200),
        ("GET", "/apis/understudy.dev/v1alpha1/sessions", 200),
        (
            "GET",
            "/api/v1/namespaces/default/services?fieldSelector=metadata.name%3Dkubernetes",
            200,
        ),
        ("GET", "/api/v1/namespaces/default/services", 403),
        ("GET", "/api/v1/namespaces/prod/services", 403),
        ("GET", "/api/v1/nodes", 403),
        ("DELETE", "/api/v1/namespaces/prod/pods/web-0", 403),
    ] {
        let answer = it.ask_as(&token, method, path, super::JSON, None).await?;
        assert_eq!(answer.code, expected, "{method} {path}: {answer:?}");
    }
    let review = json!({"spec": {
        "user": it.node.accounts().viewer.username(), "groups": ["system:serviceaccounts:prod"],
        "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "prod"},
    }});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let allowed = it
        .ask_as(&token, "POST", path, super::JSON, Some(&review))
        .await?
        .object();
    assert_eq!(allowed["status"]["allowed"], true);
    let review = json!({"spec": {"token": it.node.accounts().viewer.token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    // The administrator asks this: deploy grants it to nobody.
    let known = it.post(path, &review).await?.object();
    assert_eq!(
        known["status"]["user"]["username"],
        it.node.accounts().viewer.username()
    );
    Ok(())
}

#[tokio::test]
async fn secrets_and_leases_are_taken_by_whoever_is_first() -> Result<()> {
    let it = Box::new().await?;
    let secrets = "/api/v1/namespaces/understudy/secrets";
    let secret = |text: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca"}, "stringData": {"key": text}});
    let stored = it.post(secrets, &secret("one")).await?.object();
    assert_eq!(
        (&stored["type"], &stored["data"]["key"]),
        (&json!("Opaque"), &json!("b25l"))
    );
    assert!(stored["stringData"].is_null());
    it.post(secrets, &secret("two"))
        .await?
        .refused(409, "AlreadyExists", "secrets \"ca\" already exists");
    let mut renewed = stored.clone();
    renewed["data"]["key"] = json!("dHdv");
    it.put(&format!("{secrets}/ca"), &renewed).await?.object();
    it.put(&format!("{secrets}/ca"), &renewed).await?.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on secrets \"ca\": the object has been modified; please apply your changes to \
         the latest version and try again",
    );
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    let refused = it
        .ask("DELETE", &format!("{secrets}/ca"), super::JSON, Some(&wrong))
        .await?;
    assert_eq!((refused.code, &refused.json()["reason"]), (409, &json!("Conflict")));
    let gone = it.delete(&format!("{secrets}/ca")).await?.object();
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));

    let leases = "/apis/coordination.k8s.io/v1/namespaces/understudy/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}});
    it.post(leases, &lease).await?.object();
    it.put(&format!("{leases}/l"), &lease).await?.refused(
        422,
        "Invalid",
        "leases.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
    );
    Ok(())
}

#[tokio::test]
async fn an_event_is_the_same_in_both_groups() -> Result<()> {
    let it = Box::new().await?;
    // As kube's recorder posts them.
    let event = |note: &str| {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"generateName": "pod-"},
            "eventTime": "2026-11-22T01:00:00.000000Z", "action": "Enrol", "reason": "Enrolled", "type": "Normal",
            "note": note, "reportingController": "understudy", "reportingInstance": "agent-box",
            "regarding": {"kind": "Pod", "namespace": "prod", "name": "web-0", "uid": "u"},
        })
    };
    let posted = it
        .post("/apis/events.k8s.io/v1/namespaces/prod/events", &event("hello"))
        .await?
        .object();
    assert_eq!(
        (&posted["note"], &posted["regarding"]["name"]),
        (&json!("hello"), &json!("web-0"))
    );
    let name = posted["metadata"]["name"].as_str().unwrap();
    let core = it
        .get(&format!("/api/v1/namespaces/prod/events/{name}"))
        .await?
        .object();
    assert_eq!(
        (
            &core["message"],
            &core["involvedObject"]["name"],
            &core["reportingComponent"]
        ),
        (&json!("hello"), &json!("web-0"), &json!("understudy"))
    );
    let selected = "/api/v1/namespaces/prod/events?fieldSelector=involvedObject.name%3Dweb-0,reason%3DEnrolled";
    assert_eq!(
        it.get(selected).await?.object()["items"].as_array().map(Vec::len),
        Some(1)
    );

    let mut again = event("hello");
    again["series"] = json!({"count": 2, "lastObservedTime": "2026-11-22T01:00:01.000000Z"});
    let path = format!("/apis/events.k8s.io/v1/namespaces/prod/events/{name}");
    let merged = it.merge(&path, &json!({"series": again["series"]})).await?.object();
    assert_eq!(merged["series"]["count"], 2);
    let watched = it
        .get("/apis/events.k8s.io/v1/namespaces/prod/events?watch=1&timeoutSeconds=1")
        .await?
        .events();
    let notes: Vec<&Value> = watched.iter().map(|event| &event["object"]["note"]).collect();
    assert_eq!(notes, ["hello"]);
    let printed = it.api.admin(["events", "-n", "prod"])?.stdout().await?;
    assert!(printed.contains("Enrolled"), "{printed}");
    Ok(())
}
