//! What an operator applies: the part that is generated from the types, and that all of it says one thing.

mod monitoring;
mod objects;
mod rights;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use self::objects::Objects;
use crate::command::{describe, progress};
use crate::setup::{self, Clients};
use crate::{build, workspace};

/// The same installation in two forms.
struct Variant {
    /// The kustomization's directory, below `deploy`.
    kustomization: &'static str,
    /// The chart's values, below `deploy`.
    values: &'static str,
}

/// Every way to install or remove, by kustomize and by the chart.
const VARIANTS: [Variant; 10] = [
    Variant {
        kustomization: "overlays/own-ca",
        values: "helm/understudy/ci/own-ca-values.yaml",
    },
    Variant {
        kustomization: "overlays/cluster-signed",
        values: "helm/understudy/ci/cluster-signed-values.yaml",
    },
    Variant {
        kustomization: "overlays/files",
        values: "helm/understudy/ci/files-values.yaml",
    },
    Variant {
        kustomization: "examples/support",
        values: "examples/support/values.yaml",
    },
    Variant {
        kustomization: "examples/audit",
        values: "examples/audit/values.yaml",
    },
    Variant {
        kustomization: "examples/recordings",
        values: "examples/recordings/values.yaml",
    },
    Variant {
        kustomization: "examples/monitoring",
        values: "examples/monitoring/values.yaml",
    },
    Variant {
        kustomization: "examples/traces",
        values: "examples/traces/values.yaml",
    },
    Variant {
        kustomization: "examples/irsa",
        values: "examples/irsa/values.yaml",
    },
    Variant {
        kustomization: "uninstall",
        values: "helm/understudy/ci/uninstall-values.yaml",
    },
];

/// Where the CRDs are kept, below `deploy`: kustomize reads none from another's directory, and a chart has its own.
const CRDS: [&str; 2] = ["base/crd.yaml", "helm/understudy/crds/crd.yaml"];

/// Writes the CRDs from the types that the agent reads them into, and the copies of the alerts and the dashboard.
///
/// # Errors
/// Where the agent doesn't build, or a file can't be written.
pub(crate) fn write() -> Result<()> {
    for (path, made) in monitoring::made()? {
        put(&workspace::root().join(path), &made)?;
    }
    let crds = crds(&understudy()?)?;
    for path in CRDS.map(below_deploy) {
        put(&path, &crds)?;
    }
    Ok(())
}

fn put(path: &Path, content: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("could not write {}", path.display()))?;
    progress(format!("wrote {}", path.display()));
    Ok(())
}

fn kept(path: &Path, made: &str) -> Result<()> {
    let kept = fs::read_to_string(path)
        .with_context(|| format!("could not read {}: run `cargo xtask manifests`", path.display()))?;
    ensure!(
        kept == made,
        "{} isn't what it is made of: run `cargo xtask manifests`",
        path.display()
    );
    Ok(())
}

/// Makes sure that kustomize and the chart say the same of every variant, that no right in them is wider than it has to
/// be, that the agent knows what it is started with, that the CRDs are those of the types, and that alerts and dashboard
/// are in order.
///
/// # Errors
/// At the first of them that doesn't hold; the message says where.
pub(crate) fn check() -> Result<()> {
    let started = compare()?;
    let understudy = understudy()?;
    for arguments in started {
        // Asked for help at the end, it reads what stands before, and does nothing.
        let line = arguments.join(" ");
        output(Command::new(&understudy).args(arguments).arg("--help"))
            .with_context(|| format!("the agent isn't to be started as deploy/ has it: understudy {line}"))?;
    }
    let crds = crds(&understudy)?;
    for path in CRDS.map(below_deploy) {
        kept(&path, &crds)?;
    }
    for (path, made) in monitoring::made()? {
        kept(&workspace::root().join(path), &made)?;
    }
    monitoring::check()
}

/// Renders every variant both ways, looks at what came of it, and returns with what arguments the agent's program is
/// started there.
fn compare() -> Result<BTreeSet<Vec<String>>> {
    let mut started = BTreeSet::from([vec!["gate".to_owned()]]);
    let clients = setup::clients()?;
    setup::helm()?;
    for variant in &VARIANTS {
        let name = variant.kustomization;
        let (kustomized, mut rendered) = (kustomize(&clients, variant)?, render(&clients, variant)?);
        if name == "uninstall" {
            // A chart can't leave its definitions out; Helm neither changes nor deletes what is there of them.
            rendered.leave_out("CustomResourceDefinition");
        }
        let differences = kustomized.differences(&rendered);
        ensure!(
            differences.is_empty(),
            "deploy/{name} and the chart with deploy/{} differ:\n\n    {}\n",
            variant.values,
            differences.join("\n    ")
        );
        let excesses = rights::excesses(&kustomized);
        ensure!(
            excesses.is_empty(),
            "deploy/{name} grants more than it has to:\n\n    {}\n",
            excesses.join("\n    ")
        );
        started.extend(kustomized.started());
        progress(format!("{name}: {} objects, the same in the chart", kustomized.len()));
    }
    Ok(started)
}

/// The agent, built.
fn understudy() -> Result<PathBuf> {
    build::ebpf(&setup::ebpf()?, false)?;
    build::binaries()?.path("understudy").map(Path::to_path_buf)
}

/// The CRDs, as the agent prints them.
fn crds(understudy: &Path) -> Result<String> {
    output(Command::new(understudy).arg("crd"))
}

fn kustomize(clients: &Clients, variant: &Variant) -> Result<Objects> {
    let mut kustomize = Command::new(&clients.kubectl)
        .arg("kustomize")
        .arg(below_deploy(variant.kustomization))
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start kubectl")?;
    let stdout = kustomize.stdout.take().context("kubectl has no standard output")?;
    let objects = output(python(clients).arg("yaml").stdin(stdout));
    ensure!(
        kustomize.wait()?.success(),
        "`kubectl kustomize deploy/{}` failed",
        variant.kustomization
    );
    Objects::parse(&objects?)
}

fn render(clients: &Clients, variant: &Variant) -> Result<Objects> {
    Objects::parse(&output(
        python(clients)
            .arg("chart")
            .arg(below_deploy("helm/understudy"))
            .arg(below_deploy(variant.values))
            // The release is kept elsewhere, so that the chart makes the namespace, as kustomize does.
            .arg("default"),
    )?)
}

fn python(clients: &Clients) -> Command {
    let mut python = Command::new(&clients.python);
    python.arg(workspace::root().join("xtask/python/render.py"));
    python
}

/// Runs a command to its end and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed what isn't text"))
}

fn below_deploy(path: impl AsRef<Path>) -> PathBuf {
    workspace::root().join("deploy").join(path)
}
