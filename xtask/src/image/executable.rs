//! Whether a program runs with nothing beside it.

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::{DT_NEEDED, PT_INTERP};
use elf::endian::AnyEndian;

/// What the ELF program needs of the system it runs on: its interpreter and its libraries. A static one needs none,
/// whether it is bound to its address or not (`static-pie`).
///
/// # Errors
/// Where it isn't an ELF program.
pub(crate) fn needs(program: &[u8]) -> Result<Vec<String>> {
    let elf = ElfBytes::<AnyEndian>::minimal_parse(program).context("it isn't in the ELF format")?;
    let Some(segments) = elf.segments() else {
        bail!("it has no segments to run");
    };
    let mut needs = Vec::new();
    for interpreter in segments.iter().filter(|segment| segment.p_type == PT_INTERP) {
        let path = elf.segment_data(&interpreter)?;
        needs.push(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned());
    }
    let libraries = elf.dynamic()?.map_or(0, |dynamic| {
        dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED).count()
    });
    if libraries > 0 {
        needs.push(format!("{libraries} shared libraries"));
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;

    use super::*;

    #[test]
    fn a_program_with_libraries_is_told() {
        // This very program: cargo's default on the targets that CI has is to link dynamically.
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        let needs = needs(&this).unwrap();
        assert!(needs[0].contains("/ld-"), "{needs:?}");
        assert!(needs[1].ends_with("shared libraries"), "{needs:?}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(needs(b"#!/bin/sh\n").is_err());
        assert!(needs(b"").is_err());
    }
}
