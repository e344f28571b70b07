//! What operators ask with, on a terminal.

use anyhow::Result;
use understudy_tests::node::{Node, Terminal, eventually};

#[tokio::test]
async fn a_terminal_shows_what_is_typed_and_goes_with_its_guard() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 60, 10).await?;
    let echo = node.command("printf")?.args(["%s-%s\n", "it's", "seen"]);
    terminal.run(&echo).await?;
    terminal
        .until("what was printed", |screen| screen.contains("\nit's-seen"))
        .await?;
    terminal.text("stty size").await?;
    terminal.resize(80, 24).await?;
    terminal.keys(&["Enter"]).await?;
    let screen = terminal
        .until("the new size", |screen| screen.contains("\n24 80"))
        .await?;
    assert_eq!(screen.lines().count(), 24, "{screen}");
    assert_eq!(terminal.says("#{alternate_on} #{cursor_flag}").await?, "0 1");

    let server = terminal.says("#{pid}").await?;
    let running = std::path::Path::new("/proc").join(server);
    assert!(running.exists());
    drop(terminal);
    eventually("tmux is gone", async || Ok((!running.exists()).then_some(()))).await
}
