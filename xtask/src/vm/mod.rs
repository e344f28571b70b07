//! The kernel-side tests on another kernel: Debian's own package of it, booted in a virtual machine.
//!
//! The machine has this system's files, read-only below a memory file system, so that the test programs find what
//! they were built with. Nothing of it reaches this system, and it has no network.

mod kernel;
mod machine;
mod ramdisk;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::chores::Selection;
use crate::command::{cargo, progress};
use crate::{build, setup, workspace};

/// The test programs that have to do with the kernel: the package, and the target in it where it isn't its library.
const PROGRAMS: [(&str, Option<&str>); 3] = [
    ("understudy", Some("kernel")),
    ("understudy", Some("enrol")),
    ("understudy-common", None),
];

/// Boots the kernel and runs the selected tests in it.
///
/// # Errors
/// Where the kernel or QEMU can't be had, the machine doesn't boot, or a test fails in it.
pub(crate) fn test(kernel: &str, selection: &Selection) -> Result<()> {
    setup::virtual_machine()?;
    let kernel = kernel::find(kernel)?;
    build::ebpf(&setup::ebpf()?, false)?;
    let programs = test_programs(selection)?;
    ensure!(
        !programs.is_empty(),
        "no test of that package is about the kernel: those of understudy and understudy-common are"
    );
    let script = script(&programs, selection);
    let code = machine::run(&kernel, &script)?;
    ensure!(code == 0, "tests failed on Linux {}", kernel.release);
    progress(format!("the kernel-side tests passed on Linux {}", kernel.release));
    Ok(())
}

/// A test program, and the directory that cargo would start it in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    directory: PathBuf,
}

/// Builds the test programs, and says where they are.
fn test_programs(selection: &Selection) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for (package, target) in PROGRAMS {
        if selection.package.as_ref().is_some_and(|only| only != package) {
            continue;
        }
        let mut command = cargo();
        command
            .current_dir(workspace::root())
            .args(["test", "--no-run", "--locked", "--package", package])
            .arg("--message-format=json-render-diagnostics");
        match target {
            Some(target) => command.args(["--test", target]),
            // It has features of its own for the agent's side, which tests need as well.
            None => command.args(["--lib", "--all-features"]),
        };
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .context("could not start cargo")?;
        if !output.status.success() {
            bail!("the tests of {package} don't build");
        }
        programs.extend(tests_among(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok(programs)
}

/// Picks the test programs out of cargo's messages, one JSON object a line.
fn tests_among(messages: &str) -> Vec<Program> {
    let program = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        if message.get("profile")?.get("test")? != true {
            return None;
        }
        let manifest = PathBuf::from(message.get("manifest_path")?.as_str()?);
        Some(Program {
            path: message.get("executable")?.as_str()?.into(),
            directory: manifest.parent()?.to_owned(),
        })
    };
    messages.lines().filter_map(program).collect()
}

/// What the machine runs: each program, all of them whatever becomes of one; its exit code says whether all passed.
fn script(programs: &[Program], selection: &Selection) -> String {
    let words: Vec<String> = selection
        .filter
        .iter()
        .map(OsString::from)
        .chain(selection.harness.clone())
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    let words = words.join(" ");
    let runs = programs.iter().map(|Program { path, directory }| {
        let (path, directory) = (quote(&path.to_string_lossy()), quote(&directory.to_string_lossy()));
        format!("echo; echo running {path}; (cd {directory} && {path} {words}) || failed=1")
    });
    let lines: Vec<String> = ["failed=0".to_owned()]
        .into_iter()
        .chain(runs)
        .chain(["exit $failed".to_owned()])
        .collect();
    lines.join("\n")
}

/// One word of the shell's, whatever is in it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_test_programs_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/proxy/Cargo.toml","profile":{"test":false},"executable":"/t/understudy"}
{"reason":"compiler-artifact","manifest_path":"/w/proxy/Cargo.toml","profile":{"test":true},"executable":"/t/deps/kernel-1"}
{"reason":"compiler-artifact","manifest_path":"/w/proxy/Cargo.toml","profile":{"test":true},"executable":null}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            tests_among(messages),
            [Program {
                path: "/t/deps/kernel-1".into(),
                directory: "/w/proxy".into(),
            }]
        );
    }

    #[test]
    fn the_script_runs_all_and_tells_of_any_failure() {
        let programs: Vec<Program> = ["/bin/false", "/bin/true"]
            .into_iter()
            .map(|path| Program {
                path: path.into(),
                directory: "/".into(),
            })
            .collect();
        let run = |programs: &[Program]| {
            let selection = Selection {
                filter: Some("it's".to_owned()),
                ..Selection::default()
            };
            Command::new("sh")
                .args(["-c", &script(programs, &selection)])
                .output()
                .unwrap()
        };
        let output = run(&programs);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).contains("running /bin/true"));
        assert_eq!(run(&programs[1..]).status.code(), Some(0));
    }
}
