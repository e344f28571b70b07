//! Copies the kernel programs' object to where the crate embeds it from.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = env::var("CARGO_MANIFEST_DIR")? + "/..";
    let object = Path::new(&workspace).join("target/ebpf/understudy-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!("cargo::error={} is absent: run `cargo xtask ebpf`", object.display());
        return Ok(());
    }
    fs::copy(&object, Path::new(&env::var("OUT_DIR")?).join("understudy-ebpf.o"))?;
    Ok(())
}
