//! Invariant 8: only one module calls setns, only named modules are unsafe. The compiler and clippy hold each package
//! to it; this holds the whole tree, so that neither an attribute nor a lint can be taken out unseen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The files that may hold unsafe code. `ARCHITECTURE.md` names those of the agent. The kernel programs aren't looked
/// at: they are unsafe by nature.
const UNSAFE: [&str; 10] = [
    "proxy-common/src/user.rs",
    "proxy/src/enrol/notifier.rs",
    "proxy/src/kernel/sys.rs",
    "proxy/src/limits/heap.rs",
    "proxy/tests/confine.rs",
    "proxy/tests/memory.rs",
    "proxy/tests/node/dialler.rs",
    "proxy/tests/node/foreign.rs",
    "proxy/tests/node/mortal.rs",
    "proxy/tests/node/tricks.rs",
];
/// The file that enters network namespaces.
const SETNS: &str = "proxy/src/enrol/netns.rs";
/// The roots of the agent's crates, which deny unsafe code, and clippy's list of methods that nobody calls.
const HELD_BY: [(&str, &str); 4] = [
    ("proxy/src/lib.rs", "#![deny(unsafe_code)]"),
    ("proxy/src/main.rs", "#![forbid(unsafe_code)]"),
    ("proxy-common/src/lib.rs", "#![deny(unsafe_code)]"),
    ("clippy.toml", "path = \"nix::sched::setns\""),
];
const LOOKED_AT: [&str; 4] = ["proxy", "proxy-common", "tests", "xtask"];

/// Looks at every source file.
///
/// # Errors
/// Names the first file that isn't as it should be.
pub(crate) fn check() -> Result<()> {
    let root = workspace::root();
    for (file, line) in HELD_BY {
        if !read(&root.join(file))?.contains(line) {
            bail!("{file} lacks `{line}` (invariant 8)");
        }
    }
    let architecture = read(&root.join("ARCHITECTURE.md"))?;
    for file in UNSAFE.iter().chain([&SETNS]).filter(|file| file.contains("/src/")) {
        let short = file.trim_start_matches("proxy/src/");
        if !architecture.contains(short) {
            bail!("ARCHITECTURE.md doesn't name {file} where it says what is unsafe (invariant 8)");
        }
    }
    for path in sources(&root)? {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        if let Some(complaint) = judge(&name, &read(&path)?) {
            bail!("{name}: {complaint} (invariant 8)");
        }
    }
    Ok(())
}

/// What is wrong with a file.
fn judge(name: &str, text: &str) -> Option<&'static str> {
    let code: Vec<&str> = text.lines().map(without_comment).collect();
    let says = |word: &str| code.iter().any(|line| has_word(line, word));
    if says("unsafe") && !UNSAFE.contains(&name) {
        return Some("unsafe code outside the modules that may have some");
    }
    if !says("unsafe") && UNSAFE.contains(&name) {
        return Some("no unsafe code any more: take it off the list");
    }
    if says("setns") && name != SETNS {
        return Some("setns outside the module that enters namespaces");
    }
    None
}

/// What is said in comments and in string literals doesn't count.
fn without_comment(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") {
        return "";
    }
    line.split(" //").next().unwrap_or(line)
}

/// Whether the word stands in the line by itself and outside string literals.
fn has_word(line: &str, word: &str) -> bool {
    let line = line.replace("\\\"", "");
    let outside = line.split('"').step_by(2);
    let part_of_one = |character: char| character.is_alphanumeric() || character == '_';
    outside
        .flat_map(|part| part.split(|character| !part_of_one(character)))
        .any(|found| found == word)
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut directories: Vec<PathBuf> = LOOKED_AT.iter().map(|name| root.join(name)).collect();
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("could not list {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 8: only one module calls setns, only named modules are unsafe.
    #[test]
    fn only_named_modules_are_unsafe_and_one_calls_setns() {
        check().unwrap();
        assert!(sources(&workspace::root()).unwrap().len() > 200);
    }

    #[test]
    fn tells_code_from_what_is_said() {
        let judged = |text: &str| judge("proxy/src/app.rs", text);
        let quoted = format!("let a = {0}unsafe setns{0}; // unsafe", '"');
        assert_eq!(judged(&quoted), None);
        assert_eq!(judged("// unsafe\n/// setns\nSYS_setns unsafe_code"), None);
        assert!(judged("    unsafe { f() }").is_some());
        assert!(judged("unsafe impl Send for A {}").is_some());
        assert!(judged("use nix::sched::{CloneFlags, setns};").is_some());
        assert!(judged("nix::sched::setns(file, flags)").is_some());
        assert!(judge("proxy/src/kernel/sys.rs", "fn safe() {}").is_some());
        assert_eq!(judge("proxy/src/enrol/netns.rs", "setns(&file, flags)"), None);
    }
}
