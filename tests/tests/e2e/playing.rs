//! `recordings play` on a terminal, as an operator sits before it.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{Context, SHA256};
use understudy_tests::{
    node::{Command, Node, Terminal, binaries},
    screens,
};

/// The one of the pages: nearly 16 seconds of a shell, of which nothing happens in ten.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/shell.cast");

fn play(node: &Node, file: &Path, options: &[&str]) -> Result<Command> {
    let command = node.command(binaries::understudy()?)?.args(["recordings", "play"]);
    Ok(command.args(options).arg(file))
}

#[tokio::test]
async fn a_recording_is_played_sought_and_left_and_the_terminal_is_as_it_was() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 76, 14).await?;
    terminal.run(&play(&node, Path::new(SAMPLE), &[])?).await?;
    terminal.until("it plays", |screen| screen.contains("▶ 0:0")).await?;
    assert_eq!(terminal.says("#{alternate_on}").await?, "1");
    terminal
        .until("what is typed in it", |screen| screen.contains("/srv/web # ls"))
        .await?;
    terminal.keys(&["Space"]).await?;
    terminal.until("it stops", |screen| screen.contains("‖ 0:0")).await?;

    terminal.keys(&["0", "Right", "Right"]).await?;
    let shown = terminal
        .until("ten seconds on", |screen| screen.contains("‖ 0:10.0"))
        .await?;
    assert!(shown.contains("GET /admin 403"), "{shown}");
    assert!(
        terminal.coloured().await?.contains("\u{1b}[38;5;1m403"),
        "colours are shown"
    );
    screens::keep("recordings-play", &terminal.coloured().await?)?;
    terminal.keys(&["Left"]).await?;
    let shown = terminal
        .until("five seconds back", |screen| screen.contains("‖ 0:05.0"))
        .await?;
    assert!(shown.contains("static") && !shown.contains("403"), "{shown}");
    terminal.keys(&["0", ".", ".", "."]).await?;
    let shown = terminal.until("a step on", |screen| screen.contains("0:01.2")).await?;
    assert!(shown.contains("/srv/web # l\n"), "{shown}");
    terminal.keys(&[","]).await?;
    let shown = terminal
        .until("a step back", |screen| screen.contains("0:00.1"))
        .await?;
    assert!(shown.starts_with("/srv/web #\n"), "{shown}");

    terminal.keys(&["+"]).await?;
    terminal
        .until("it is faster", |screen| screen.contains("  2x  "))
        .await?;
    terminal.keys(&["=", "?"]).await?;
    terminal
        .until("the keys", |screen| screen.contains("space pause"))
        .await?;
    terminal.keys(&["?", "h"]).await?;
    terminal
        .until("no status line", |screen| !screen.contains("? keys"))
        .await?;
    terminal.keys(&["h"]).await?;
    terminal.resize(40, 6).await?;
    terminal.keys(&["G"]).await?;
    let shown = terminal
        .until("the end, in a smaller terminal", |screen| screen.contains("■ 0:15.7"))
        .await?;
    assert!(shown.contains("72x12, cut") && shown.contains("# exit"), "{shown}");
    terminal.resize(76, 14).await?;
    terminal.keys(&["q"]).await?;
    terminal.given_back().await
}

#[tokio::test]
async fn pauses_are_passed_over_and_speed_is_chosen() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 76, 14).await?;
    terminal
        .run(&play(&node, Path::new(SAMPLE), &["-i", "1", "-s", "16"])?)
        .await?;
    let shown = terminal
        .until("it is at its end", |screen| screen.contains("■ 0:06.1 / 0:06.1  16x"))
        .await?;
    assert!(shown.contains("# exit"), "{shown}");
    terminal.keys(&["C-c"]).await?;
    terminal.given_back().await
}

#[tokio::test]
async fn what_ends_it_from_outside_gives_the_terminal_back() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 76, 14).await?;
    let command = node
        .command("timeout")?
        .args(["--foreground", "-s", "TERM", "2"])
        .arg(binaries::understudy()?)
        .args(["recordings", "play", SAMPLE]);
    terminal.run(&command).await?;
    terminal.until("it plays", |screen| screen.contains("▶ 0:0")).await?;
    terminal.given_back().await
}

/// Lines with a sum after each but the last, which stands for a write that was changed.
fn proven(lines: &[String]) -> String {
    let mut all = Context::new(&SHA256);
    let mut text = String::new();
    for line in lines {
        let mut sum = String::new();
        all.update(format!("{line}\n").as_bytes());
        for byte in all.clone().finish().as_ref() {
            let _ = write!(sum, "{byte:02x}");
        }
        let summed = format!("[9, \"h\", \"{sum}\"]\n");
        all.update(summed.as_bytes());
        let _ = write!(text, "{line}\n{summed}");
    }
    text
}

/// A workload is hostile to who looks at its recording later.
#[tokio::test]
async fn a_recording_does_nothing_to_the_terminal_but_show_letters() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 76, 14).await?;
    let title = terminal.says("#{pane_title}").await?;
    let hostile =
        "\u{1b}]2;owned\u{7}\u{1b}[c\u{1b}[>c\u{1b}[6n\u{1b}P$q\"p\u{1b}\\\u{1b}[21t\u{1b}]52;c;b3duZWQ=\u{7}\u{5}here";
    let lines = [
        r#"{"version":2,"width":72,"height":12,"timestamp":0,"title":"x","understudy":{"sums":"sha256"}}"#.to_owned(),
        serde_json::json!([0, "o", hostile]).to_string(),
        serde_json::json!([9, "z", "closed"]).to_string(),
    ];
    let file = node.directory().join("hostile.cast");
    fs::write(&file, proven(&lines))?;
    terminal.run(&play(&node, &file, &[])?).await?;
    terminal
        .until("what is left of it", |screen| screen.starts_with("here\n"))
        .await?;
    assert_eq!(terminal.says("#{pane_title}").await?, title);
    terminal.keys(&["q"]).await?;
    // What the terminal would have answered would be typed into the shell now.
    let shown = terminal.until("the prompt", |screen| screen.contains("box$")).await?;
    assert!(shown.trim_end().ends_with("box$"), "{shown}");
    terminal.given_back().await
}

#[tokio::test]
async fn what_was_changed_is_played_up_to_there_and_said() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 76, 14).await?;
    let sample = fs::read_to_string(SAMPLE)?;
    let changed = sample.replacen("index.html", "shadow.txt", 1);
    let line = changed.lines().position(|line| line.contains("shadow.txt"));
    let proven = line.context("the line that was changed")?;
    let file = node.directory().join("changed.cast");
    fs::write(&file, &changed)?;
    terminal.run(&play(&node, &file, &["-s", "64"])?).await?;
    let said = format!("CHANGED AFTER LINE {proven}");
    let shown = terminal.until("its end", |screen| screen.contains(&said)).await?;
    assert!(!shown.contains("shadow"), "{shown}");
    terminal.keys(&["q"]).await?;
    terminal
        .until("the warning", |screen| screen.contains("warning: "))
        .await?;
    terminal.text("echo code=$?").await?;
    terminal.keys(&["Enter"]).await?;
    terminal
        .until("the exit code", |screen| screen.contains("\ncode=4"))
        .await?;

    // Where there is no terminal, nothing is played, and what to do is said.
    let piped = play(&node, &file, &[])?.output().await?;
    assert!(!piped.succeeded() && piped.stderr.contains("--to text"), "{piped:?}");
    Ok(())
}
