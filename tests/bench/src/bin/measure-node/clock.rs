//! What the kernel's counting costs by itself: the clock is read before and after each run of a program. A program that
//! does nothing, attached where the agent's are, shows how much of their time is that.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd},
};

/// What the program and its function are called.
const NAME: &str = "nothing";
/// `r0 = 1`, and `exit`.
const INSTRUCTIONS: [u8; 16] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The program that does nothing, in force for as long as it is held.
pub(crate) struct Nothing {
    object: Ebpf,
}

impl Nothing {
    /// Puts it in force for every IPv4 connect below that cgroup.
    pub(crate) fn attach(cgroup: &Path) -> Result<Self> {
        let mut object = Ebpf::load(&object()).context("loading a program that does nothing")?;
        let program: &mut CgroupSockAddr = object.program_mut(NAME).context("the program")?.try_into()?;
        program.load()?;
        // A link is one among others whatever the mode, and the kernel takes no other mode for one.
        program.attach(File::open(cgroup)?, CgroupAttachMode::Single)?;
        Ok(Self { object })
    }

    /// Its id, and the descriptor by which the kernel tells of it.
    pub(crate) fn program(&self) -> Result<(u32, ProgramFd)> {
        let program: &CgroupSockAddr = self.object.program(NAME).context("the program")?.try_into()?;
        let info = program.info()?;
        Ok((info.id(), info.fd()?))
    }
}

/// An ELF object with that one program: elf(5) has the fields in this order.
fn object() -> Vec<u8> {
    const HEADER: u64 = 64;
    const SYMBOL: u64 = 24;
    let names = b"\0.strtab\0cgroup/connect4\0.symtab\0nothing\0";
    let [strings, code, symbols, name] = [1_u32, 9, 25, 33];
    let code_at = HEADER;
    let symbols_at = code_at + INSTRUCTIONS.len() as u64;
    let names_at = symbols_at + 2 * SYMBOL;
    // Sections are looked for at multiples of eight.
    let padding = (8 - (names.len() % 8)) % 8;
    let sections_at = names_at + (names.len() + padding) as u64;

    let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| object.extend_from_slice(bytes);
    // A relocatable object of eBPF.
    put(&1_u16.to_le_bytes());
    put(&247_u16.to_le_bytes());
    put(&1_u32.to_le_bytes());
    put(&[0; 16]);
    put(&sections_at.to_le_bytes());
    put(&[0; 4]);
    // Sizes of headers and their numbers; the names are in section 1.
    for field in [64_u16, 0, 0, 64, 4, 1] {
        put(&field.to_le_bytes());
    }
    put(&INSTRUCTIONS);
    // No symbol, and the function, global, in section 2.
    put(&[0; 24]);
    put(&name.to_le_bytes());
    put(&[0x12, 0]);
    put(&2_u16.to_le_bytes());
    put(&0_u64.to_le_bytes());
    put(&(INSTRUCTIONS.len() as u64).to_le_bytes());
    put(names);
    put(&vec![0; padding]);
    put(&[0; 64]);
    // By section: its name, kind, flags, place, length, the section it refers to, a number of its own, the size of an entry.
    for (name, kind, flags, at, length, link, info, entry) in [
        (strings, 3_u32, 0_u64, names_at, names.len() as u64, 0_u32, 0_u32, 0_u64),
        (code, 1, 6, code_at, INSTRUCTIONS.len() as u64, 0, 0, 0),
        (symbols, 2, 0, symbols_at, 2 * SYMBOL, 1, 1, SYMBOL),
    ] {
        put(&name.to_le_bytes());
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        put(&0_u64.to_le_bytes());
        put(&at.to_le_bytes());
        put(&length.to_le_bytes());
        put(&link.to_le_bytes());
        put(&info.to_le_bytes());
        put(&8_u64.to_le_bytes());
        put(&entry.to_le_bytes());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_one() {
        let object = Ebpf::load(&object()).unwrap();
        let names: Vec<&str> = object.programs().map(|(name, _)| name).collect();
        assert_eq!(names, [NAME]);
    }
}
