//! The agent as a container image, made without a container engine: built, looked at, and written as a tar.

mod archive;
mod executable;
mod reference;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub(crate) use reference::Reference;

use crate::command::progress;
use crate::{build, setup};

/// What `cargo xtask image` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// The image's name.
    pub(crate) tag: Reference,
    /// Where the tar goes.
    pub(crate) output: PathBuf,
    /// Whether the agent sends traces.
    pub(crate) traces: bool,
}

/// Builds the agent as the image holds it and leaves it at `output`.
///
/// # Errors
/// Where it doesn't build, or needs anything of the system that it would run on.
pub(crate) fn executable(output: &Path, traces: bool) -> Result<()> {
    let built = static_agent(traces)?;
    make_parent(output)?;
    fs::copy(&built, output).with_context(|| format!("could not write {}", output.display()))?;
    progress(format!("{} is static", output.display()));
    Ok(())
}

/// Builds the agent and writes it as an image.
///
/// # Errors
/// Where it doesn't build, isn't static, or the tar can't be written.
pub(crate) fn image(options: &Options) -> Result<()> {
    let built = static_agent(options.traces)?;
    let executable = fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    let image = archive::Image {
        reference: &options.tag,
        executable: &executable,
        platform: archive::Platform::of(env::consts::ARCH)?,
        created: source_date()?,
        labels: labels(&options.tag),
    };
    let output = &options.output;
    make_parent(output)?;
    // Whole or not at all: what has the name of an image is one.
    let partial = output.with_extension("partial");
    let written = File::create(&partial)
        .map_err(anyhow::Error::from)
        .and_then(|file| archive::write(&image, BufWriter::new(file)))
        .and_then(|digest| Ok(fs::rename(&partial, output).map(|()| digest)?))
        .with_context(|| format!("could not write {}", output.display()))?;
    let name = output.display();
    progress(format!(
        "{name} is {} as {written}. Any of these takes it:\n\n    docker load --input {name}\n    ctr --namespace k8s.io images import {name}\n    kind load image-archive {name}\n",
        options.tag
    ));
    Ok(())
}

/// Builds the agent, linked statically, and makes sure that it is.
///
/// # Errors
/// Where it doesn't build, or needs anything of the system that it would run on.
pub(crate) fn static_agent(traces: bool) -> Result<PathBuf> {
    build::ebpf(&setup::ebpf()?, false)?;
    let built = build::static_agent(traces)?;
    let executable = fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    let needs = executable::needs(&executable).with_context(|| format!("{} is no program", built.display()))?;
    ensure!(
        needs.is_empty(),
        "{} isn't static, so that an image of it alone wouldn't start; it needs {}",
        built.display(),
        needs.join(", ")
    );
    Ok(built)
}

/// The time that everything in the image bears, seconds since 1970: `SOURCE_DATE_EPOCH`, as reproducible builds have
/// it (<https://reproducible-builds.org/specs/source-date-epoch/>), else 0.
fn source_date() -> Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => epoch
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is `{epoch}`: make it a number of seconds, or unset it")),
        Err(_) => Ok(0),
    }
}

/// What the image says of itself, under the names of the OCI image specification's annotations.
fn labels(tag: &Reference) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([
        ("org.opencontainers.image.title", "understudy".to_owned()),
        (
            "org.opencontainers.image.description",
            "A transparent proxy for the Kubernetes API server that lends a pod an identity for a session".to_owned(),
        ),
        ("org.opencontainers.image.licenses", "Apache-2.0 OR MIT".to_owned()),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("org.opencontainers.image.ref.name", tag.tag().to_owned()),
    ]);
    if let Some(revision) = build::revision() {
        labels.insert("org.opencontainers.image.revision", revision);
    }
    labels
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display())),
        None => Ok(()),
    }
}
