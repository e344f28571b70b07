//! Copies the kernel programs' object to where the crate embeds it from, and says which compiler builds it.

use std::{env, error::Error, fs, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = env::var("CARGO_MANIFEST_DIR")? + "/..";
    let object = Path::new(&workspace).join("target/ebpf/understudy-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!("cargo::error={} is absent: run `cargo xtask ebpf`", object.display());
        return Ok(());
    }
    let version = Command::new(env::var("RUSTC")?).arg("--version").output()?;
    let version = String::from_utf8(version.stdout)?;
    let number = version
        .split_whitespace()
        .nth(1)
        .ok_or("rustc doesn't say its version")?;
    println!("cargo::rustc-env=UNDERSTUDY_RUSTC={number}");
    fs::copy(&object, Path::new(&env::var("OUT_DIR")?).join("understudy-ebpf.o"))?;
    Ok(())
}
