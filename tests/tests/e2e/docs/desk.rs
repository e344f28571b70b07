//! The desk of an administrator, to run the pages' commands at: a node, whose root they are, a cluster around it, and a
//! shell in the repository with the programs that the pages use.
//!
//! kubectl is the real one. What the API server would have asked a kubelet is answered by the node here: `exec` into the
//! session's pod runs there, `logs` are what the agent wrote, and `port-forward` says the agent's port on the node itself.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use understudy_tests::node::{
    AgentOptions, ApiServer, Command, Node, Output, Patience, Pod, TestServerOptions, binaries, eventually,
};

use super::{
    kubelet::{AGENT_POD, Kubelet},
    page::{End, Mark, Place, Typed, root},
    prints,
};
use crate::world::{becomes, curl};

/// Of age's, made for tests. The pages call the file ~/key.txt.
const IDENTITY: &str = "AGE-SECRET-KEY-14TY9V30FVZJGF36DQUTX9L7CW9U2HJNARVL3HS4S6JHVG6DTXM2SK3444S";
const RECIPIENT: &str = "age14vqqauf09tdf2p0ykj8z3czwglqw4svrm5c7qzv5026kxfdw34hqgx6u65";

/// In a mount namespace of its own: the agent's directories where they are on a node, and what is installed below
/// /usr/local/bin on no machine. $1 is the desk, $2 the agent's --run-dir, $3 its --recordings.
const NODE_VIEW: &str = r#"
set -eu
mkdir -p "$1/netns"
mount --rbind /run/netns "$1/netns"
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/understudy /run/upper /run/work
mount --rbind "$1/netns" /run/netns
if [ -d "$2" ]; then mount --bind "$2" /run/understudy; fi
mkdir -p /run/kept "$1/local-bin" "$1/local-work"
mount -t overlay overlay -o "lowerdir=/usr/local/bin,upperdir=$1/local-bin,workdir=$1/local-work" /usr/local/bin
mount -t tmpfs tmpfs /var/lib
if [ -d "$3" ]; then mkdir -p /var/lib/understudy/recordings; mount --bind "$3" /var/lib/understudy/recordings; fi
cd "$1/work"
shift 3
exec "$@"
"#;

/// What clusters have besides: a role of Kubernetes' own, and the Prometheus operator's resource.
const BESIDES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: view}
rules:
  - {apiGroups: [""], resources: [pods, configmaps, services], verbs: [get, list, watch]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {plural: podmonitors, kind: PodMonitor}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

/// The fields fall in this order.
pub(super) struct Desk {
    kubelet: Kubelet,
    directory: PathBuf,
    recordings: PathBuf,
}

impl Desk {
    /// Before anything is installed; the pages' namespaces aren't there.
    pub(super) async fn bare() -> Result<Self> {
        let desk = Self::new().await?;
        for account in ["viewer", "default"] {
            desk.kubelet.api().delete("serviceaccounts", "prod", account).await?;
        }
        desk.kubelet.api().delete("namespaces", "", "prod").await?;
        Ok(desk)
    }

    async fn new() -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
        api.apply_text(BESIDES).await?;
        let directory = node.directory().join("desk");
        let recordings = node.directory().join("recordings");
        let options = AgentOptions::cluster()
            .log_level("info")
            .arg("--operator-address=127.0.0.1:9903")
            .arg(&format!("--recordings={}", recordings.display()))
            .arg(&format!("--recording-recipient={RECIPIENT}"));
        for made in ["bin", "pod-bin", "home", "work"] {
            fs::create_dir_all(directory.join(made))?;
        }
        let desk = Self {
            kubelet: Kubelet::new(node, api, options)?,
            directory,
            recordings,
        };
        desk.lay_out()?;
        Ok(desk)
    }

    /// With what deploy/examples/support installs, the session and the pod of docs/examples/alice.yaml, and in it somebody
    /// who tried to impersonate.
    pub(super) async fn installed() -> Result<Self> {
        let mut desk = Self::new().await?;
        for command in [
            "kubectl create namespace support",
            "kubectl apply -k deploy/examples/support",
            "kubectl apply -f docs/examples/alice.yaml",
        ] {
            desk.sh(Place::Node, command).await?.success()?;
        }
        let pod = desk.kubelet.shell().context("the session's pod")?;
        becomes(pod, "system:serviceaccount:prod:viewer")
            .await
            .with_context(|| desk.kubelet.logs())?;
        impersonate(pod).await?;
        eventually("its status says so", async || {
            let said = desk
                .kubelet
                .api()
                .admin(["get", "sessions", "-n", "support", "--no-headers"])?;
            let said = said.stdout().await?;
            let words: Vec<&str> = said.split_whitespace().collect();
            Ok(words.windows(2).any(|pair| pair == ["Active", "1"]).then_some(()))
        })
        .await?;
        Ok(desk)
    }

    fn lay_out(&self) -> Result<()> {
        let real = binaries::kubectl()?;
        let agent = binaries::understudy()?;
        let (bin, work) = (self.directory.join("bin"), self.directory.join("work"));
        let in_shell = self.directory.join("in-shell");
        let kubectl = format!(
            "#!/bin/sh\ncase \" $* \" in\n\
             *' port-forward '*)\n  port=9903\n  case \"$*\" in *9902) port=9902 ;; esac\n  \
             echo \"Forwarding from 127.0.0.1:$port -> $port\"\n  exec sleep 60 ;;\n\
             *' logs '*) exec cat '{logs}' ;;\n\
             *' exec '*' -- '*)\n  while [ \"$1\" != -- ]; do shift; done\n  shift\n  exec '{shell}' \"$@\" ;;\n\
             esac\nexec '{real}' \"$@\"\n",
            logs = self.directory.join("logs").display(),
            shell = in_shell.display(),
            real = real.display(),
        );
        executable(&bin.join("kubectl"), &kubectl)?;
        executable(
            &self.directory.join("pod-bin/kubectl"),
            &format!("#!/bin/sh\nexec '{}' \"$@\"\n", real.display()),
        )?;
        // No other process of the machine is this node's.
        let pgrep = binaries::on_path("pgrep").context("pgrep is not on PATH: apt-get install procps")?;
        executable(
            &bin.join("pgrep"),
            &format!("#!/bin/sh\nexec '{}' --ns $$ --nslist net \"$@\"\n", pgrep.display()),
        )?;
        symlink(&agent, bin.join("understudy"))?;
        symlink(&agent, bin.join("kubectl-understudy"))?;
        // As somebody has them who has unpacked a release.
        symlink(&agent, work.join("understudy"))?;
        fs::write(self.directory.join("home/key.txt"), format!("{IDENTITY}\n"))?;
        for ours in ["deploy", "docs"] {
            symlink(root().canonicalize()?.join(ours), work.join(ours))?;
        }
        Ok(())
    }

    /// Runs a command of the pages, and holds it to what they say of it.
    pub(super) async fn run(&mut self, typed: &Typed) -> Result<()> {
        let Mark::Run(place, end) = typed.mark else {
            return Ok(());
        };
        let command = typed
            .command
            .replace("--container agent POD", &format!("--container agent {AGENT_POD}"))
            .replace(" POD", " shell")
            .replace(" NODE", " box");
        if end == End::Interrupted {
            return self.interrupted(&command, &typed.prints).await;
        }
        let output = self.sh(place, &command).await?;
        let (is_as_said, printed) = match end {
            End::Fails => (!output.succeeded(), output.text()),
            _ => (output.succeeded(), output.stdout.clone()),
        };
        ensure!(is_as_said, "it exits with {:?}\n{}", output.code, output.text());
        ensure!(
            typed.prints.is_empty() || prints::is_said(&typed.prints, &printed),
            "the page says\n{}\nand it prints\n{printed}",
            typed.prints
        );
        Ok(())
    }

    /// Runs a command that doesn't end, while the session's pod is asking, until it has printed what is said.
    async fn interrupted(&mut self, command: &str, says: &str) -> Result<()> {
        ensure!(!says.is_empty(), "nothing is said that it prints");
        let running = self.shell(Place::Node, &format!("exec {command}"))?.spawn()?;
        let printed = Patience::default().until("what the page says", async || {
            if let Some(pod) = self.kubelet.shell() {
                // Refused by the API server, for it is another namespace's.
                drop(pod.kubectl("get secrets -n default").await?);
                impersonate(pod).await?;
            }
            Ok(prints::begins_with(says, &running.stdout()).then_some(()))
        });
        let printed = printed.await;
        let shown = format!(
            "the page says\n{says}\nand it prints\n{}{}",
            running.stdout(),
            running.stderr()
        );
        let pid = running.pid().context("it has ended")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
        running.wait(Duration::from_secs(10)).await?;
        printed.context(shown)
    }

    /// Runs a command to its end, while the cluster does what there is to do about it.
    async fn sh(&mut self, place: Place, command: &str) -> Result<Output> {
        fs::write(self.directory.join("logs"), self.kubelet.logs())?;
        let shell = self.shell(place, command)?;
        let changes = ["apply", "create", "delete", "rollout", "wait", "patch"];
        if !changes
            .iter()
            .any(|word| command.split_whitespace().any(|typed| typed == *word))
        {
            return shell.output().await;
        }
        let is_over = Cell::new(false);
        let running = async {
            let output = shell.output().await;
            is_over.set(true);
            output
        };
        let kubelet = &mut self.kubelet;
        let looking = async {
            loop {
                let was_over = is_over.get();
                let looked = kubelet.look().await;
                if was_over || looked.is_err() {
                    return looked;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let (output, looked) = tokio::join!(running, looking);
        looked.with_context(|| format!("while `{command}` ran: {:?}", output.as_ref().map(Output::text)))?;
        if let Some(pod) = self.kubelet.shell() {
            let path = format!(
                "{}:{}",
                self.directory.join("pod-bin").display(),
                std::env::var("PATH")?
            );
            executable(
                &self.directory.join("in-shell"),
                &pod.command("env").arg(format!("PATH={path}")).script(),
            )?;
        }
        output
    }

    fn shell(&self, place: Place, command: &str) -> Result<Command> {
        let script = format!("set -euo pipefail\n{command}\n");
        let bash = binaries::on_path("bash").context("bash is not on PATH: apt-get install bash")?;
        if place == Place::Pod {
            let pod = self.kubelet.shell().context("no pod carries the session")?;
            let path = format!(
                "{}:{}",
                self.directory.join("pod-bin").display(),
                std::env::var("PATH")?
            );
            return Ok(pod.command(bash).env("PATH", &path).arg("-c").arg(script));
        }
        let node = self.kubelet.node();
        let path = format!("{}:{}", self.directory.join("bin").display(), std::env::var("PATH")?);
        let view = node
            .command("unshare")?
            .args(["--mount", "--propagation", "private", "--", "sh", "-c"]);
        Ok(view
            .args([NODE_VIEW, "sh"])
            .arg(&self.directory)
            .arg(node.run_dir())
            .arg(&self.recordings)
            .arg(bash)
            .arg("-c")
            .arg(script)
            .env("PATH", &path)
            .env("HOME", &self.directory.join("home").display().to_string())
            .env("KUBECONFIG", &self.kubelet.api().kubeconfig()?.display().to_string()))
    }
}

/// Somebody in the pod tries what no session allows.
async fn impersonate(pod: &Pod) -> Result<()> {
    let answer = curl(
        pod,
        "/api/v1/namespaces/prod/pods",
        &["--header", "Impersonate-User: admin"],
    )
    .await?;
    ensure!(answer.code == 403, "{answer:?}");
    Ok(())
}

fn executable(path: &Path, script: &str) -> Result<()> {
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
