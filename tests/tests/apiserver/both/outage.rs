//! The API server away, and back with what it held.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time::timeout;

use super::Box;

#[tokio::test]
async fn it_comes_back_with_what_it_held() -> Result<()> {
    let mut it = Box::with_sessions().await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": "prod"}});
    let stored = it.api.create(&map).await?;
    // What is written is on its way to the disk.
    tokio::time::sleep(Duration::from_millis(300)).await;
    it.api.kill9().await?;
    assert!(it.get("/readyz").await.is_err(), "a server that is dead answers");
    it.api.start_again().await?;
    let again = it.api.read("configmaps", "prod", "kept").await?.unwrap();
    assert_eq!(again["metadata"], stored["metadata"]);
    let defined = it.get("/apis/understudy.dev/v1alpha1").await?;
    assert_eq!(defined.code, 200, "{defined:?}");

    // A version is never given out twice.
    let version = |object: &serde_json::Value| -> u64 {
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    let changed = it
        .api
        .patch("configmaps", "prod", "kept", None, &json!({"data": {"a": "b"}}))
        .await?;
    assert!(version(&changed) > version(&stored));

    it.api.stop().await?;
    it.api.start_again().await?;
    let again = it.api.read("configmaps", "prod", "kept").await?.unwrap();
    assert_eq!(again["data"]["a"], "b");

    it.api.freeze()?;
    let asked = timeout(Duration::from_secs(2), it.get("/readyz")).await;
    assert!(asked.is_err(), "a server that is stopped answers");
    it.api.thaw()?;
    assert_eq!(it.get("/readyz").await?.code, 200);
    Ok(())
}
