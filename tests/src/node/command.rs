//! Commands that run inside the box: in a cgroup from before their first instruction, in a network namespace, and for
//! pods behind mounts of their own. util-linux does the entering, so nothing here is unsafe.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::host::Inner;

/// Joins the cgroup first: a socket made before that would belong to another.
const JOIN_CGROUP: &str = r#"set -eu; echo $$ > "$1/cgroup.procs"; shift; exec "$@""#;

/// Gives a pod its own view, in a mount namespace that nobody else shares. /var/run may be a symbolic link, and so may
/// /etc/resolv.conf, into the /run that is covered here; both are followed, then made where they lead.
const POD_VIEW: &str = r#"
set -eu
resolv=$(readlink -m /etc/resolv.conf)
run=$(readlink -f /var/run)
mount -t tmpfs tmpfs "$run"
mkdir -p "$run/secrets/kubernetes.io/serviceaccount"
mount --bind "$1/serviceaccount" "$run/secrets/kubernetes.io/serviceaccount"
mount --bind "$1/hosts" /etc/hosts
case "$resolv" in "$run"/*) mkdir -p "${resolv%/*}"; : > "$resolv" ;; esac
if [ -e "$resolv" ]; then mount --bind "$1/resolv.conf" "$resolv"; fi
shift
exec "$@"
"#;

/// How long a command may take before it counts as hanging.
const LIMIT: Duration = Duration::from_mins(1);

/// Where a command runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Joined before exec.
    pub(crate) cgroup: PathBuf,
    /// Entered by `nsenter`.
    pub(crate) netns: PathBuf,
    /// The directory with a pod's serviceaccount/, hosts and resolv.conf; none for a program of the node itself.
    pub(crate) view: Option<PathBuf>,
    /// The working directory and HOME.
    pub(crate) home: PathBuf,
    /// The whole environment, beside PATH, HOME and TERM.
    pub(crate) env: BTreeMap<String, String>,
    /// The box lives as long as anything may run in it.
    pub(crate) held: Arc<Inner>,
}

/// A command to run inside the box.
#[derive(Debug, Clone)]
pub struct Command {
    place: Place,
    program: PathBuf,
    arguments: Vec<OsString>,
    limit: Duration,
    stdin: Option<Vec<u8>>,
}

impl Command {
    pub(crate) fn new(place: Place, program: impl Into<PathBuf>) -> Self {
        Self {
            place,
            program: program.into(),
            arguments: Vec::new(),
            limit: LIMIT,
            stdin: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.place.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.place.env.remove(name);
        self
    }

    /// What it reads on its standard input, which then ends.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// How long [`Command::output`] lets it run, instead of a minute.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// It couldn't be started, or its time was up.
    pub async fn output(self) -> Result<Output> {
        let limit = self.limit;
        let input = self.stdin.clone();
        let mut running = self.spawn()?;
        if let Some(input) = input
            && let Err(error) = running.write(&input).await
        {
            // It ended early; its exit code and message say more than a broken pipe would.
            tracing::debug!(%error, "the command's input was not read to its end");
        }
        running.close_stdin();
        running.wait(limit).await
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// As [`Command::output`], and where it fails; the error holds what it printed.
    pub async fn stdout(self) -> Result<String> {
        Ok(self.output().await?.success()?.stdout)
    }

    /// Starts it, with its standard input open.
    ///
    /// # Errors
    /// It couldn't be started.
    pub fn spawn(self) -> Result<Running> {
        let mut command = self.build();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = self.shown();
        let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let stdin = child.stdin.take();
        let stdout = Captured::of(child.stdout.take());
        let stderr = Captured::of(child.stderr.take());
        Ok(Running {
            shown,
            child,
            stdin,
            stdout,
            stderr,
            _held: self.place.held,
        })
    }

    /// Runs it on this process's own terminal.
    ///
    /// # Errors
    /// It couldn't be started.
    pub async fn interactive(self) -> Result<ExitStatus> {
        let mut child = self
            .build()
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))?;
        Ok(child.wait().await?)
    }

    /// Starts it with its output appended to the file `log`.
    pub(crate) fn spawn_logging_to(self, log: &Path) -> Result<Child> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = self.build();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))
    }

    /// As a line for a shell that runs where this command would: variables of its own, program and arguments, quoted.
    pub(crate) fn line(&self) -> String {
        let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let variables = self
            .place
            .env
            .iter()
            .map(|(name, value)| format!("{name}={}", quoted(value)));
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        let words = words.map(|word| quoted(&word.to_string_lossy()));
        variables.chain(words).collect::<Vec<_>>().join(" ")
    }

    /// A script that runs it where it would run itself, with the script's own arguments behind its own.
    #[must_use]
    pub fn script(&self) -> String {
        let quoted = |word: &OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        let command = self.build_blocking();
        let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let variables = variables.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(value)));
        let words = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(quoted);
        let line: Vec<String> = variables.chain(words).collect();
        let home = quoted(self.place.home.as_os_str());
        format!("#!/bin/sh\ncd {home} && exec env -i {} \"$@\"\n", line.join(" "))
    }

    fn shown(&self) -> String {
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }

    fn build(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(self.build_blocking());
        command.kill_on_drop(true);
        command
    }

    /// The command for a caller that waits itself.
    pub(crate) fn build_blocking(&self) -> std::process::Command {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", JOIN_CGROUP, "sh"]).arg(&self.place.cgroup);
        let mut net = OsString::from("--net=");
        net.push(&self.place.netns);
        command.arg("nsenter").arg(net).arg("--");
        if let Some(view) = &self.place.view {
            command
                .args([
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "--",
                    "sh",
                    "-c",
                    POD_VIEW,
                    "sh",
                ])
                .arg(view);
        }
        command.arg(&self.program).args(&self.arguments);
        command.env_clear().current_dir(&self.place.home);
        command.env("HOME", &self.place.home);
        for inherited in ["PATH", "TERM", "LANG"] {
            if let Some(value) = std::env::var_os(inherited) {
                command.env(inherited, value);
            }
        }
        command.envs(&self.place.env);
        command
    }
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Itself, where it exited with 0.
    ///
    /// # Errors
    /// It didn't; the error holds what it printed.
    pub fn success(self) -> Result<Self> {
        if self.succeeded() {
            return Ok(self);
        }
        bail!(
            "`{}` exited with {:?}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        )
    }

    /// Both streams, for looking for a word in either.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A command that runs; killed where it is dropped.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    _held: Arc<Inner>,
}

impl Running {
    /// Its process id, which is the program's own: every launcher before it was replaced by exec.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// The input was closed.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("`{}` has no standard input any more", self.shown))?;
        stdin.write_all(bytes).await?;
        stdin.flush().await?;
        Ok(())
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until its standard output satisfies `wanted`, and returns it.
    ///
    /// # Errors
    /// It ended, or 30 seconds passed, without.
    pub async fn stdout_until(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let patience = super::Patience::default().0;
        let found = timeout(patience, self.stdout.until(wanted)).await;
        match found {
            Ok(Some(text)) => Ok(text),
            Ok(None) => bail!("`{}` ended first\n{}", self.shown, self.printed()),
            Err(_) => bail!(
                "`{}` did not print it within {patience:?}\n{}",
                self.shown,
                self.printed()
            ),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `limit` passed; it is killed, and the error holds what it printed until then.
    pub async fn wait(mut self, limit: Duration) -> Result<Output> {
        let Ok(status) = timeout(limit, self.child.wait()).await else {
            bail!("`{}` still ran after {limit:?}\n{}", self.shown, self.printed());
        };
        let code = status?.code();
        // A grandchild may hold the pipes open for longer than the command itself lives.
        let drained = async { tokio::join!(self.stdout.end(), self.stderr.end()) };
        drop(timeout(Duration::from_secs(2), drained).await);
        Ok(Output {
            code,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            command: self.shown,
        })
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Its state can't be read.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// It can't be killed.
    pub async fn kill(mut self) -> Result<Output> {
        self.child.start_kill()?;
        self.wait(Duration::from_secs(10)).await
    }

    fn printed(&self) -> String {
        format!("stdout: {}\nstderr: {}", self.stdout(), self.stderr())
    }
}

/// A stream that a task reads to its end, readable all the while.
#[derive(Debug)]
struct Captured {
    bytes: watch::Receiver<Vec<u8>>,
    reader: JoinHandle<()>,
}

impl Captured {
    fn of(stream: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let (sender, bytes) = watch::channel(Vec::new());
        let reader = tokio::spawn(async move {
            let Some(mut stream) = stream else { return };
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                sender.send_modify(|bytes| bytes.extend_from_slice(&chunk[..read]));
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.borrow()).into_owned()
    }

    /// The text once it is `wanted`; none where the stream ends first.
    async fn until(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let found = self
            .bytes
            .wait_for(|bytes| wanted(&String::from_utf8_lossy(bytes)))
            .await
            .ok()?;
        Some(String::from_utf8_lossy(&found).into_owned())
    }

    async fn end(&mut self) {
        drop((&mut self.reader).await);
    }
}
