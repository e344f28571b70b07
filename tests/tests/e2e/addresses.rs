//! What is turned and what isn't, and what a socket says about it.

use anyhow::Result;
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, PodSpec, Session, binaries,
    network::{API_SERVER, ENDPOINT_V4, SERVICE_V4, mapped},
};

use crate::world::{World, dial, whoami};

/// Every address of the API server, the IPv4 ones also as dual-stack programs dial them.
fn every_form() -> Vec<String> {
    let forms = API_SERVER
        .iter()
        .copied()
        .chain([mapped(SERVICE_V4), mapped(ENDPOINT_V4)]);
    forms.map(|address| address.to_string()).collect()
}

/// Invariant 1, in part: whichever address is dialled, in whichever form, the request is rewritten.
#[tokio::test]
async fn every_address_of_the_api_server_is_turned_and_getpeername_says_the_original() -> Result<()> {
    let world = World::with_test_server().await?;
    for seen in dial(&world.pod, every_form()).await? {
        assert_eq!(seen["peer"], seen["dialled"], "{seen}");
    }
    for address in every_form() {
        let mark = world.api.mark().await?;
        let (host, port) = address.rsplit_once(':').expect("host:port");
        let host = host.trim_matches(['[', ']']);
        let request = world
            .pod
            .command(binaries::probe()?)
            .args(["read", "/api/v1/namespaces/prod/pods"]);
        // Verified against the address itself, or for the mapped form against the IPv4 address in it.
        let printed = request
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT_HTTPS", port);
        let name = host.trim_start_matches("::ffff:");
        let printed = printed.args(["--name", name]).stdout().await?;
        assert!(printed.contains("status 200"), "{address}: {printed}");
        let seen = world.api.seen_since(mark).await?;
        assert!(!seen.is_empty(), "{address}");
        for request in seen {
            assert_eq!(request.user, world.viewer(), "{address}: {request:?}");
            assert!(!request.holds(world.pod.token()), "{address}: {request:?}");
        }
    }
    Ok(())
}

/// Invariant 4.
#[tokio::test]
async fn an_untagged_process_sees_the_same_peer_errno_and_data_with_the_agent_as_without() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let (tagged, untagged) = (
        node.pod(PodSpec::named("tagged"))?,
        node.pod(PodSpec::named("untagged"))?,
    );
    node.sessions().write(
        &Session::named("support", "alice")
            .acting_as(&node.accounts().viewer)
            .for_pod(&tagged),
    )?;
    let mut addresses = every_form();
    // A port where nobody listens, and an address that there is no way to.
    addresses.extend(["10.96.0.1:444".to_owned(), "192.0.2.1:443".to_owned()]);
    let without = dial(&untagged, addresses.clone()).await?;
    let who_without = whoami(&untagged).await?;

    let _agent = Agent::start(&node, AgentOptions::default()).await?;
    let mark = api.mark().await?;
    assert_eq!(dial(&untagged, addresses).await?, without);
    assert_eq!(whoami(&untagged).await?, who_without);
    for seen in api.seen_since(mark).await? {
        assert_eq!((&seen.user, &seen.impersonator), (&who_without, &None), "{seen:?}");
        if seen.headers.is_some() {
            assert_eq!(seen.bearer(), Some(untagged.token()), "its own token arrives untouched");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_tagged_pods_other_connections_are_not_touched() -> Result<()> {
    let world = World::new().await?;
    let others = ["10.96.0.1:444".to_owned(), "172.30.0.2:9".to_owned()];
    assert_eq!(
        dial(&world.pod, others.clone()).await?,
        dial(&world.untagged, others).await?
    );
    Ok(())
}

/// They share one network namespace, so no address can tell them apart.
#[tokio::test]
async fn host_network_pods_are_told_apart() -> Result<()> {
    let node = Node::new()?;
    let _api = ApiServer::start(&node).await?;
    let pod = |name: &str| node.pod(PodSpec::named(name).host_network());
    let (first, second, untagged) = (pod("first")?, pod("second")?, pod("untagged")?);
    let accounts = node.accounts();
    node.sessions().write(
        &Session::named("support", "alice")
            .acting_as(&accounts.viewer)
            .for_pod(&first),
    )?;
    node.sessions().write(
        &Session::named("support", "bob")
            .with_token_of(&accounts.agent)
            .for_pod(&second),
    )?;
    let _agent = Agent::start(&node, AgentOptions::default()).await?;
    assert_eq!(whoami(&first).await?, accounts.viewer.username());
    assert_eq!(whoami(&second).await?, accounts.agent.username());
    assert_eq!(whoami(&untagged).await?, accounts.powerless.username());
    Ok(())
}
