//! Many pods at small cost: each a process that sleeps, in a network namespace of its own with its loopback up.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::Node;

/// The processes, which end with it.
pub(crate) struct Crowd(Vec<Child>);

impl Crowd {
    /// Gathers them outside the pods.
    pub(crate) fn gather(node: &Node, number: usize) -> Self {
        // As the agent does: two listeners go with every pod.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let aside = node.path("untagged/cgroup.procs");
        let gathering = thread::spawn(move || (0..number).map(|_| sleeper(&aside)).collect());
        Self(gathering.join().unwrap())
    }

    /// Puts each into the pod of its number, all of which appear now.
    pub(crate) fn enter(&self, pods: impl Iterator<Item = PathBuf>) {
        for (child, pod) in self.0.iter().zip(pods) {
            fs::create_dir_all(&pod).unwrap();
            fs::write(pod.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
    }
}

/// For a thread of its own, which goes from one new namespace to the next.
fn sleeper(aside: &PathBuf) -> Child {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success(), "ip link set lo up");
    let child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
    fs::write(aside, child.id().to_string()).unwrap();
    child
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended = child.kill();
        }
        for child in &mut self.0 {
            let _status = child.wait();
        }
    }
}
