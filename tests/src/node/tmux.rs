//! A terminal with a shell in it, inside the box, kept by tmux: what is typed goes to the programs that run there, and what
//! they draw is read back as a person would see it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};

use super::{Command, Node, Patience, binaries};

/// The prompt of the shell.
const PROMPT: &str = "box$ ";
/// tmux in the box, by nobody's configuration: no line of its own, and an escape that is one at once.
const CONFIGURATION: &str = "set -g status off\nset -g default-terminal tmux-256color\nset -s escape-time 0\n";

/// A terminal on the node. It goes, with what runs in it, where this is dropped.
#[derive(Debug)]
pub struct Terminal {
    node: Node,
    tmux: PathBuf,
    socket: PathBuf,
}

impl Terminal {
    /// Opens one of that size, in characters, with a shell at its prompt.
    ///
    /// # Errors
    /// There is no tmux, or it can't be started.
    pub async fn open(node: &Node, columns: u16, rows: u16) -> Result<Self> {
        let tmux = binaries::on_path("tmux").context("tmux is not on PATH: apt-get install tmux")?;
        let directory = tempfile::Builder::new()
            .prefix("terminal-")
            .tempdir_in(node.directory())?
            .keep();
        let configuration = directory.join("tmux.conf");
        std::fs::write(&configuration, CONFIGURATION)?;
        // A shell of root's has a prompt of its own, whatever its environment says of PS1.
        let profile = directory.join("profile");
        std::fs::write(&profile, format!("PS1='{PROMPT}'\n"))?;
        let terminal = Self {
            node: node.clone(),
            tmux,
            socket: directory.join("socket"),
        };
        terminal
            .tmux(&["-f", &configuration.display().to_string(), "new-session", "-d"])?
            .args(["-x", &columns.to_string(), "-y", &rows.to_string()])
            .args(["-e", &format!("ENV={}", profile.display()), "sh"])
            .stdout()
            .await
            .context("tmux doesn't start")?;
        terminal
            .until("the shell's prompt", |screen| screen.contains(PROMPT.trim_end()))
            .await?;
        Ok(terminal)
    }

    /// Has the shell run a command.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn run(&self, command: &Command) -> Result<()> {
        self.text(&command.line()).await?;
        self.keys(&["Enter"]).await
    }

    /// Types text, letter by letter.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn text(&self, text: &str) -> Result<()> {
        self.ask(&["send-keys", "-l", "--", text]).await.map(drop)
    }

    /// Presses keys by tmux' names for them: `Enter`, `Escape`, `Down`, `C-c`, or a letter.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn keys(&self, keys: &[&str]) -> Result<()> {
        let words = [&["send-keys"], keys].concat();
        self.ask(&words).await.map(drop)
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.ask(&["resize-window", "-x", &columns, "-y", &rows])
            .await
            .map(drop)
    }

    /// What it shows, without colours.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn screen(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p"]).await
    }

    /// What it shows, with the escapes of its colours and styles.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn coloured(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p", "-e"]).await
    }

    /// What tmux says of it, such as `#{alternate_on}` or `#{cursor_flag}`.
    ///
    /// # Errors
    /// tmux is gone.
    pub async fn says(&self, format: &str) -> Result<String> {
        let said = self.ask(&["display-message", "-p", format]).await?;
        Ok(said.trim().to_owned())
    }

    /// Waits until what it shows is `wanted`, and returns that.
    ///
    /// # Errors
    /// It never was; the error says `what` was awaited, and holds what was shown last.
    pub async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = Patience::default().until(what, async || {
            let screen = self.screen().await?;
            Ok(wanted(&screen).then_some(screen))
        });
        match found.await {
            Ok(screen) => Ok(screen),
            Err(error) => Err(error.context(format!("the terminal shows:\n{}", self.screen().await?))),
        }
    }

    /// Waits until the shell has it again: its screen, with a cursor and with lines that go on in the next, and settings by which
    /// it reads lines.
    ///
    /// # Errors
    /// It isn't so.
    pub async fn given_back(&self) -> Result<()> {
        let given_back = Patience::default().until("the terminal is given back", async || {
            let says = self.says("#{alternate_on} #{cursor_flag} #{wrap_flag}").await?;
            Ok((says == "0 1 1").then_some(()))
        });
        given_back.await?;
        self.text("clear; stty -a; echo the-end\n").await?;
        let screen = self
            .until("the terminal's settings", |screen| screen.contains("\nthe-end"))
            .await?;
        for setting in ["icanon", "echo", "isig", "opost"] {
            let is_set = screen.split_whitespace().any(|word| word == setting);
            ensure!(is_set, "{setting} isn't set: {screen}");
        }
        Ok(())
    }

    async fn ask(&self, words: &[&str]) -> Result<String> {
        self.tmux(words)?.stdout().await
    }

    fn tmux(&self, words: &[&str]) -> Result<Command> {
        Ok(self
            .node
            .command(&self.tmux)?
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm-256color")
            .arg("-u")
            .arg("-S")
            .arg(&self.socket)
            .args(words))
    }

    /// Where tmux answers.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A server that is gone already has nothing left to end.
        let _gone = std::process::Command::new(&self.tmux)
            .arg("-S")
            .arg(&self.socket)
            .arg("kill-server")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
