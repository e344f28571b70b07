//! The half of an agent that works with the kernel, in a process of its own that can be killed, or made to die at a
//! system call: at that very place of its work, every time.

use std::{
    io::{self, BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
};

use nix::libc;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use understudy::{
    enrol::Leftovers,
    handover::{Incumbent, Predecessor},
    kernel::{Kernel, Options, cgroup::CgroupRoot},
};

use super::{Agent, Node, api_servers, patiently, wanted};

const MARK: &str = "UNDERSTUDY_TEST_AGENT";

/// A system call whose maker dies of it: its number, and which argument has which value, where that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Death {
    call: u32,
    argument: Option<(u8, u32)>,
}

impl Death {
    pub(crate) fn at(call: libc::c_long) -> Self {
        Self {
            call: u32::try_from(call).unwrap(),
            argument: None,
        }
    }

    pub(crate) fn with(self, argument: u8, value: u32) -> Self {
        Self {
            argument: Some((argument, value)),
            ..self
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    name: String,
    root: std::path::PathBuf,
    pin_dir: std::path::PathBuf,
    run_dir: std::path::PathBuf,
    pods: Vec<String>,
    death: Option<Death>,
}

#[test]
#[ignore = "not a test: an agent that the tests start"]
fn agent_process() {
    let Ok(settings) = std::env::var(MARK) else { return };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    if let Some(death) = settings.death {
        die_at(death);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(live(settings));
}

/// As an agent does: in the place of another, where one runs; and until it is told to end, which it hears of by the end
/// of its input.
#[expect(clippy::print_stdout, reason = "the test that started it hears of it so")]
async fn live(settings: Settings) {
    let predecessor = Predecessor::ask(&settings.run_dir, &settings.pin_dir).await.unwrap();
    let root = || CgroupRoot::open(&settings.root).unwrap();
    let options = Options {
        whole_hierarchy: false,
        ..Options::new(&settings.pin_dir)
    };
    let kernel = if predecessor.is_some() {
        Kernel::succeed(&root(), &options).unwrap()
    } else {
        Kernel::install(&root(), &options).unwrap()
    };
    kernel.set_api_servers(&api_servers()).unwrap();
    let pods: Vec<_> = settings.pods.iter().map(|pod| wanted(pod, "a/b")).collect();
    let mut agent = Agent::on(root(), Arc::new(kernel), &pods, Leftovers::Untag);
    patiently(agent.enrolment.pods.changed()).await.unwrap();
    if let Some(predecessor) = predecessor {
        predecessor.done().await.unwrap();
    }
    let incumbent = Incumbent::bind(&settings.run_dir, &settings.pin_dir).unwrap();
    let incumbent = incumbent.publish(&settings.pin_dir).unwrap();
    tokio::spawn(incumbent.serve(agent.enrolment.steward.clone(), agent.shutdown.clone()));
    println!("{}ready", super::dialler::ANSWER);
    let mut ended = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    loop {
        tokio::select! {
            Some(mut inbound) = agent.inbound.recv() => {
                let _told = inbound.stream.write_all(settings.name.as_bytes()).await;
                let _closed = inbound.stream.shutdown().await;
            }
            _ = &mut ended => break,
        }
    }
    agent.stop().await;
}

/// From now on this thread, and those that it makes, take the process with them at such a call.
fn die_at(death: Death) {
    let load = u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap();
    let equal = u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap();
    let end = u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap();
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // `struct seccomp_data`: the call's number, then at 16 its arguments, of which the lower half is looked at.
    let mut filter = vec![instruction(load, 0, 0, 0)];
    match death.argument {
        None => filter.push(instruction(equal, 0, 1, death.call)),
        Some((number, value)) => filter.extend([
            instruction(equal, 0, 3, death.call),
            instruction(load, 0, 0, 16 + 8 * u32::from(number)),
            instruction(equal, 0, 1, value),
        ]),
    }
    filter.push(instruction(end, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    filter.push(instruction(end, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is whole, and is copied before the call returns.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
}

/// Such an agent, as the test has it.
pub(crate) struct Mortal {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Mortal {
    pub(crate) fn start(node: &Node, name: &str, pods: &[&str], death: Option<Death>) -> Self {
        let settings = Settings {
            name: name.to_owned(),
            root: node.root().path().to_owned(),
            pin_dir: node.pin_dir(),
            run_dir: node.run_dir(),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            death,
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["node::mortal::agent_process", "--exact", "--ignored", "--nocapture"])
            .env(MARK, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Waits until it has looked at its pods, and the agent before it knows.
    pub(crate) fn until_ready(&mut self) {
        let mut line = String::new();
        while !line.contains(super::dialler::ANSWER) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the agent died");
        }
    }

    /// Waits until it has died where it was to.
    pub(crate) fn until_dead(&mut self) {
        let status: ExitStatus = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{status:?}");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
