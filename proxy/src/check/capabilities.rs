//! The capabilities that the agent needs, from the effective set that the kernel shows of a process.

use std::{fs, io};

use super::Line;

const STATUS: &str = "/proc/self/status";

const NET_ADMIN: Capability = Capability {
    bit: 12,
    name: "CAP_NET_ADMIN",
    need: "attach programs to cgroups",
};
const SYS_PTRACE: Capability = Capability {
    bit: 19,
    name: "CAP_SYS_PTRACE",
    need: "find the network namespaces of pods that run as other users",
};
const SYS_ADMIN: Capability = Capability {
    bit: 21,
    name: "CAP_SYS_ADMIN",
    need: "enter the pods' network namespaces",
};
const BPF: Capability = Capability {
    bit: 39,
    name: "CAP_BPF",
    need: "load the kernel programs",
};

struct Capability {
    bit: u32,
    name: &'static str,
    need: &'static str,
}

/// Why the capabilities aren't known.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// procfs can't be read.
    #[error("{STATUS} cannot be read ({0}): mount procfs")]
    Unreadable(#[from] io::Error),
    /// procfs doesn't say.
    #[error("{STATUS} names no effective capabilities: mount procfs of this kernel")]
    Unnamed,
}

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// This process's effective ones.
    ///
    /// # Errors
    /// If procfs doesn't say.
    pub fn effective() -> Result<Self, CapabilityError> {
        Self::parse(&fs::read_to_string(STATUS)?)
    }

    fn parse(status: &str) -> Result<Self, CapabilityError> {
        let set = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .map(str::trim);
        set.and_then(|set| u64::from_str_radix(set, 16).ok())
            .map(Self)
            .ok_or(CapabilityError::Unnamed)
    }

    fn has(self, capability: &Capability) -> bool {
        self.0 & (1 << capability.bit) != 0
    }

    /// A line for each capability that the agent uses.
    #[must_use]
    pub fn lines(self) -> Vec<Line> {
        let grant = |name: &str| format!("add {name} to the container's securityContext.capabilities, or run as root");
        let judge = |capability: &Capability, instead: Option<&Capability>, missing: fn(String, String) -> Line| {
            let Capability { name, need, .. } = capability;
            match instead {
                _ if self.has(capability) => Line::ok(format!("{name}: to {need}")),
                Some(instead) if self.has(instead) => {
                    Line::ok(format!("{name}: {} stands in, to {need}", instead.name))
                }
                _ => missing(format!("{name} is missing: it is needed to {need}"), grant(name)),
            }
        };
        vec![
            judge(&BPF, Some(&SYS_ADMIN), Line::fail),
            judge(&NET_ADMIN, Some(&SYS_ADMIN), Line::fail),
            judge(&SYS_ADMIN, None, Line::fail),
            judge(&SYS_PTRACE, None, Line::warn),
        ]
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{super::Outcome, *};

    #[rstest]
    #[case::root("000001ffffffffff", [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Ok])]
    #[case::nobody("0000000000000000", [Outcome::Fail, Outcome::Fail, Outcome::Fail, Outcome::Warn])]
    #[case::container_default("00000000a80425fb", [Outcome::Fail, Outcome::Fail, Outcome::Fail, Outcome::Warn])]
    #[case::before_cap_bpf("0000000000201000", [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Warn])]
    #[case::just_enough("0000008000281000", [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Ok])]
    #[case::no_sys_admin("0000008000081000", [Outcome::Ok, Outcome::Ok, Outcome::Fail, Outcome::Ok])]
    fn bits(#[case] set: &str, #[case] outcomes: [Outcome; 4]) {
        let status = format!("Name:\tx\nCapPrm:\tffff\nCapEff:\t{set}\nCapBnd:\tffff\n");
        let lines = Capabilities::parse(&status).unwrap().lines();
        let found: Vec<Outcome> = lines.iter().map(|line| line.outcome).collect();
        assert_eq!(found, outcomes);
        for line in lines.iter().filter(|line| line.outcome != Outcome::Ok) {
            assert!(line.what.contains("CAP_") && line.remedy.as_deref().is_some_and(|todo| todo.contains("CAP_")));
        }
    }

    #[rstest]
    #[case("")]
    #[case("CapEff:\n")]
    #[case("CapEff:\tzz\n")]
    fn no_set(#[case] status: &str) {
        assert!(Capabilities::parse(status).is_err());
    }

    #[test]
    fn this_process_has_a_set() {
        Capabilities::effective().unwrap();
    }
}
