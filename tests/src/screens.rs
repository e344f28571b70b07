//! Screens as tests saw them, for `docs/screens`. `cargo xtask test` holds the pictures there to be what a run of all tests
//! saw, and `cargo xtask test --accept` draws them anew.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// The environment variable that names the directory in which screens are kept. Without it they are kept nowhere, as in a
/// run of a few tests.
pub const DIRECTORY: &str = "UNDERSTUDY_SCREENS";

/// Keeps what a terminal shows, with the escapes of its colours and styles, under a name.
///
/// # Errors
/// It can't be written.
pub fn keep(name: &str, coloured: &str) -> Result<()> {
    let Some(directory) = env::var_os(DIRECTORY).filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let path = PathBuf::from(directory).join(format!("{name}.ansi"));
    fs::write(&path, coloured).with_context(|| format!("writing {}", path.display()))
}
