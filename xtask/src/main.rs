//! The project's own chores: `cargo xtask --help` lists them.
//!
//! Arguments only; each chore lives in its module.

mod bench;
mod boundaries;
mod build;
mod chores;
mod ci;
mod command;
mod fuzz;
mod image;
mod instructions;
mod invariants;
mod manifests;
mod refused;
mod screens;
mod setup;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::chores::Selection;
use crate::image::Reference;
use crate::instructions::Kept;
use crate::refused::Page;

/// Understudy's own chores. Each sets up by itself what it needs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Find or bring everything that the other commands need
    Setup,
    /// Build the kernel programs into target/ebpf/understudy-ebpf.o
    Ebpf {
        /// Let the kernel programs log each decision to the agent
        #[arg(long)]
        debug: bool,
    },
    /// Show the whole on this machine: kubectl in three pods, and what the API server saw of each
    Demo {
        /// Stay in the tagged pod with a shell
        #[arg(long)]
        shell: bool,
    },
    /// Run the unit, property and end-to-end tests
    Test {
        /// Run only tests whose names contain this
        filter: Option<String>,
        /// Run only this package's tests
        #[arg(long, short)]
        package: Option<String>,
        /// Boot Debian's kernel of this version, and run the tests in it that have to do with the kernel
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
        /// Write docs/refused.md and docs/screens as the tests saw them, rather than fail where they differ
        #[arg(long, conflicts_with_all = ["filter", "package", "kernel", "harness"])]
        accept: bool,
        /// Handed to the test programs: `-- --nocapture`
        #[arg(last = true)]
        harness: Vec<OsString>,
    },
    /// Measure Understudy beside what people would run instead, which is brought where it is missing
    #[command(disable_help_flag = true)]
    Bench {
        /// `--quick`, `--only MEASURE,...`, `--peers PEER,...` and whatever else `--help` lists
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build the agent as the image has it: linked statically, in the profile `dist`
    Static {
        /// Where to leave it
        #[arg(long, value_name = "PATH", default_value = "target/image/understudy")]
        output: PathBuf,
        /// With traces by OpenTelemetry
        #[arg(long)]
        traces: bool,
    },
    /// Make a container image of the agent, as a tar in the OCI layout that Docker reads as well
    Image {
        /// The image's name
        #[arg(long, value_name = "NAME:TAG", default_value = concat!("understudy:", env!("CARGO_PKG_VERSION")))]
        tag: Reference,
        /// Where to leave the tar
        #[arg(long, value_name = "PATH", default_value = "target/image/understudy.tar")]
        output: PathBuf,
        /// With traces by OpenTelemetry
        #[arg(long)]
        traces: bool,
    },
    /// Write the CRDs into deploy/ from the types
    Manifests {
        /// Write nothing; fail where they differ, or where kustomize and the chart do
        #[arg(long)]
        check: bool,
    },
    /// Hold what the agent reads against arbitrary bytes: each target for ten million executions or ten minutes
    Fuzz {
        /// Run this target only; they are in `proxy/fuzz/fuzz_targets`
        target: Option<String>,
        /// Execute each this many times
        #[arg(long, value_name = "N")]
        runs: Option<u64>,
        /// Run each for this long
        #[arg(long, value_name = "S")]
        seconds: Option<u64>,
        /// Put what covers more into the kept corpora
        #[arg(long)]
        keep: bool,
    },
    /// Count the instructions that the agent takes for a request, and fail where they are over 10 % more than is kept
    Instructions {
        /// Keep what is counted now
        #[arg(long)]
        accept: bool,
    },
    /// Run what must hold before a change lands: format, lints, dependencies' terms, fuzz targets' corpora, tests
    Ci,
    /// Become a program as root, through sudo where need be; cargo test starts the tests with it
    #[command(hide = true)]
    AsRoot {
        /// What to become
        program: OsString,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match chore(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes and nothing else: a backtrace of this program would bury the line that says what to do.
            for (depth, cause) in error.chain().enumerate() {
                command::progress(if depth == 0 {
                    format!("error: {cause}")
                } else {
                    format!("because {cause}")
                });
            }
            ExitCode::FAILURE
        }
    }
}

fn chore(chore: Chore) -> Result<()> {
    match chore {
        Chore::Setup => setup::all(),
        Chore::Ebpf { debug } => build::ebpf(&setup::ebpf()?, debug),
        Chore::Demo { shell } => chores::demo(shell),
        Chore::Test {
            filter,
            package,
            kernel,
            accept,
            harness,
        } => {
            let page = if accept { Page::Accept } else { Page::Check };
            let selection = Selection {
                filter,
                package,
                harness,
            };
            match kernel {
                Some(kernel) => vm::test(&kernel, &selection),
                None => chores::test(&selection, page),
            }
        }
        Chore::Bench { arguments } => bench::bench(&arguments),
        Chore::Static { output, traces } => image::executable(&output, traces),
        Chore::Image { tag, output, traces } => image::image(&image::Options { tag, output, traces }),
        Chore::Manifests { check: false } => manifests::write(),
        Chore::Manifests { check: true } => manifests::check(),
        Chore::Fuzz {
            target,
            runs,
            seconds,
            keep,
        } => fuzz::fuzz(&fuzz::Options {
            target,
            runs,
            seconds,
            keep,
        }),
        Chore::Instructions { accept } => instructions::instructions(if accept { Kept::Accept } else { Kept::Check }),
        Chore::Ci => ci::ci(),
        Chore::AsRoot { program, arguments } => chores::as_root(&program, &arguments),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Below the root: what tells people to type commands of ours.
    const PAGES: [&str; 3] = ["README.md", "ARCHITECTURE.md", "SECURITY.md"];

    #[test]
    fn every_chore_in_the_pages_is_understood() {
        let root = workspace::root();
        let mut pages: Vec<PathBuf> = PAGES.iter().map(|page| root.join(page)).collect();
        let below_docs = fs::read_dir(root.join("docs")).unwrap();
        pages.extend(
            below_docs
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file()),
        );
        let mut commands = 0;
        for page in pages {
            for line in fs::read_to_string(&page).unwrap().lines() {
                // In a block of either form; what stands behind `#` is for the reader.
                let Some(typed) = line.strip_prefix("    ").or_else(|| line.strip_prefix("$ ")) else {
                    continue;
                };
                let typed = typed.split(" #").next().unwrap_or(typed);
                let Some(words) = typed.strip_prefix("cargo xtask ") else {
                    continue;
                };
                let parsed = Arguments::try_parse_from(std::iter::once("xtask").chain(words.split_whitespace()));
                assert!(parsed.is_ok(), "{}: `{typed}`: {parsed:?}", page.display());
                commands += 1;
            }
        }
        assert!(commands >= 5, "the pages have lost their commands");
    }
}
