//! The system's own programs that the box is made with, run to their end. What is missing is named with its package.

use std::{
    io::{ErrorKind, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A program and the Debian package that has it.
const NEEDED: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("readlink", "coreutils"),
    ("sh", "dash"),
];

/// Says everything that keeps a box from being made here, at once.
pub(crate) fn preflight() -> Result<()> {
    let mut missing: Vec<String> = NEEDED
        .iter()
        .filter(|(program, _)| super::binaries::on_path(program).is_none())
        .map(|(program, package)| format!("`{program}` is not on PATH: apt-get install {package}"))
        .collect();
    if !nix::unistd::geteuid().is_root() {
        missing.insert(
            0,
            "namespaces and cgroups need root: run it as root or through sudo".to_owned(),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("a node in a box cannot be made here:\n  {}", missing.join("\n  "))
}

/// Runs `program` and returns its standard output; a failure says what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// As [`run`], with `input` on its standard input.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown()))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended early; its exit code and message say more than a broken pipe would.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.with_context(|| format!("writing to `{}`", shown()))?,
        }
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for `{}`", shown()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let given = if input.is_empty() {
            String::new()
        } else {
            format!("\ngiven:\n{input}")
        };
        bail!("`{}` failed ({}): {}{given}", shown(), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
