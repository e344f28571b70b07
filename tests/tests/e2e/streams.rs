//! Upgrades, as bytes.

use anyhow::Result;
use rstest::rstest;
use understudy_tests::node::binaries;

use crate::world::World;

/// The bytes that come right behind the request aren't lost, nor sent twice; the client's end gets through, and what the
/// server says after it comes back.
#[rstest]
#[case::plain("Upgrade", "some bytes")]
#[case::with_keep_alive("keep-alive, Upgrade", "some bytes")]
#[case::nothing_glued("Upgrade", "")]
#[tokio::test]
async fn an_upgrade_carries_every_byte_once_and_half_closes(
    #[case] connection: &str,
    #[case] glued: &str,
) -> Result<()> {
    let world = World::with_test_server().await?;
    let upgrade = world
        .pod
        .command(binaries::probe()?)
        .args(["upgrade", "/understudy/upgrade"]);
    let printed = upgrade
        .args(["--connection", connection, "--glued", glued])
        .stdout()
        .await?;
    assert_eq!(printed, format!("status 101\n{glued}bye\n"));
    Ok(())
}
