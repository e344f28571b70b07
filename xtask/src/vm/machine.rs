//! QEMU: started, listened to, and ended in time.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::ramdisk::{self, EXIT, UP};
use crate::command::progress;
use crate::workspace;

/// How long a machine may take to boot, on the processor itself or emulated.
const BOOT: [(Accelerator, Duration); 2] = [
    (Accelerator::Kvm, Duration::from_secs(30)),
    (Accelerator::Emulation, Duration::from_mins(3)),
];
/// How long the tests may take from then on.
const TESTS: Duration = Duration::from_mins(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accelerator {
    /// The processor itself runs the machine.
    Kvm,
    /// QEMU does, many times slower.
    Emulation,
}

/// How a machine that didn't come up ended.
enum Start {
    /// It is up, and its exit code.
    Ended(i32),
    /// It never came up.
    Dead(String),
}

/// Boots the kernel, runs the script in it, shows what it says, and returns its exit code.
///
/// # Errors
/// Where the machine can't be made, doesn't boot, or doesn't end in time.
pub(crate) fn run(kernel: &Kernel, script: &str) -> Result<i32> {
    let work = workspace::target().join("kernels/machine");
    fs::create_dir_all(&work).with_context(|| format!("could not make {}", work.display()))?;
    let ramdisk = ramdisk::make(kernel, script, &work)?;
    let mut reasons = Vec::new();
    for (accelerator, patience) in BOOT {
        if accelerator == Accelerator::Kvm && !Path::new("/dev/kvm").exists() {
            reasons.push("there is no /dev/kvm".to_owned());
            continue;
        }
        match attempt(kernel, &ramdisk, accelerator, patience)? {
            Start::Ended(code) => return Ok(code),
            Start::Dead(why) => {
                progress(format!(
                    "with {accelerator:?}, Linux {} didn't come up: {why}",
                    kernel.release
                ));
                reasons.push(why);
            }
        }
    }
    bail!("Linux {} can't be booted here: {}", kernel.release, reasons.join("; "))
}

fn attempt(kernel: &Kernel, ramdisk: &Path, accelerator: Accelerator, patience: Duration) -> Result<Start> {
    progress(format!("booting Linux {} with {accelerator:?} ...", kernel.release));
    let mut machine = Machine(
        qemu(kernel, ramdisk, accelerator)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start QEMU")?,
    );
    let output = machine.0.stdout.take().context("QEMU has no standard output")?;
    listen(&lines(output), patience, TESTS)
}

/// Shows what the machine says until it has said its exit code.
fn listen(lines: &Receiver<String>, boot: Duration, tests: Duration) -> Result<Start> {
    let mut deadline = Instant::now() + boot;
    let mut is_up = false;
    // Of a boot that comes to nothing, what it said last tells why.
    let mut last = String::new();
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(_) if !is_up && last.is_empty() => return Ok(Start::Dead("it said nothing".to_owned())),
            Err(_) if !is_up => return Ok(Start::Dead(format!("its last words were `{last}`"))),
            Err(RecvTimeoutError::Timeout) => bail!("the tests didn't end within {} seconds", tests.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine ended amid the tests: `{last}`"),
        };
        if line.starts_with(UP) {
            is_up = true;
            deadline = Instant::now() + tests;
        }
        if let Some(code) = line.strip_prefix(EXIT) {
            let code = code.parse().context("the machine's exit code isn't a number")?;
            return Ok(Start::Ended(code));
        }
        if is_up {
            show(&line);
        }
        if !line.is_empty() {
            last = line;
        }
    }
}

fn qemu(kernel: &Kernel, ramdisk: &Path, accelerator: Accelerator) -> Result<Command> {
    let (program, console) = match env::consts::ARCH {
        "x86_64" => ("qemu-system-x86_64", "ttyS0"),
        "aarch64" => ("qemu-system-aarch64", "ttyAMA0"),
        other => bail!("there is no virtual machine for {other} here"),
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut qemu = Command::new(program);
    match (accelerator, env::consts::ARCH) {
        (Accelerator::Kvm, _) => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        (Accelerator::Emulation, _) => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
    };
    if env::consts::ARCH == "aarch64" {
        qemu.args(["-machine", "virt"]);
    }
    qemu.args(["-smp", &processors.to_string(), "-m", "4096"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"])
        .args(["-serial", "stdio"])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=system,security_model=none,readonly=on,multidevs=remap",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(ramdisk)
        .args(["-append", &format!("console={console} quiet panic=-1 rdinit=/init")]);
    Ok(qemu)
}

/// The lines of the machine's console, as they come, without what only a terminal wants.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    receiver
}

#[expect(clippy::print_stdout, reason = "what tests say belongs on standard output")]
fn show(line: &str) {
    println!("{line}");
}

/// A running machine, ended when nobody holds it any more.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(said: &[&str], tests: Duration) -> Result<Start> {
        let (sender, receiver) = mpsc::channel();
        for line in said {
            sender.send((*line).to_owned()).unwrap();
        }
        // Held on to: the machine still runs.
        let heard = listen(&receiver, Duration::from_millis(50), tests);
        drop(sender);
        heard
    }

    #[test]
    fn the_exit_code_is_heard() {
        let said = [
            "boot",
            &format!("{UP} on Linux 6.1"),
            "test a ... ok",
            &format!("{EXIT}1"),
        ];
        assert!(matches!(hear(&said, TESTS), Ok(Start::Ended(1))));
    }

    #[test]
    fn a_machine_that_never_comes_up_is_told_from_tests_that_hang() {
        assert!(matches!(hear(&["boot", "panic"], TESTS), Ok(Start::Dead(why)) if why.contains("panic")));
        assert!(hear(&[UP, "test a ..."], Duration::from_millis(50)).is_err());
    }
}
