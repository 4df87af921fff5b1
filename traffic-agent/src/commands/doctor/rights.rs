//! Which capabilities the agent has, and what each of them is for. Root is not needed as such.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::host::Version;
use crate::check::Check;

/// A capability, by its number in include/uapi/linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capability {
    name: &'static str,
    bit: u32,
    purpose: &'static str,
}

const DAC_READ_SEARCH: u32 = 2;
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Without these nothing is counted.
const NEEDED: [Capability; 3] = [
    Capability { name: "CAP_BPF", bit: BPF, purpose: "to load the program" },
    Capability { name: "CAP_PERFMON", bit: PERFMON, purpose: "to let it read packet headers" },
    Capability { name: "CAP_NET_ADMIN", bit: NET_ADMIN, purpose: "to attach it to a cgroup" },
];

/// Without these less is known of what was counted.
const USEFUL: [Capability; 3] = [
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: SYS_PTRACE,
        purpose: "to see which process has which socket, and other users' network namespaces",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: DAC_READ_SEARCH,
        purpose: "to list the open files of other users' processes",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: SYS_ADMIN,
        purpose: "to look into another network namespace: a container's ports and rules",
    },
];

/// What the agent may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    /// `CapEff`; none where it cannot be read.
    effective: Option<u64>,
}

impl Rights {
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { effective: parse_effective(&status) }
    }

    fn has(self, bit: u32) -> bool {
        self.effective.is_some_and(|bits| bits >> bit & 1 != 0)
    }

    /// Whether counting is allowed, as far as capabilities say.
    pub(super) fn suffice(self) -> bool {
        self.missing(&NEEDED).is_empty()
    }

    /// Lists those of a group that are missing, each with its purpose.
    fn missing(self, group: &[Capability]) -> Vec<String> {
        // CAP_SYS_ADMIN contains CAP_BPF and CAP_PERFMON; in older kernels it is not CAP_NET_ADMIN.
        let admin = self.has(SYS_ADMIN);
        let missing = group.iter().filter(|&&capability| {
            let contained = admin && matches!(capability.bit, BPF | PERFMON);
            !(contained || self.has(capability.bit))
        });
        missing.map(|capability| format!("{} ({})", capability.name, capability.purpose)).collect()
    }
}

/// Returns the effective capabilities of a /proc/PID/status.
fn parse_effective(status: &str) -> Option<u64> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
    u64::from_str_radix(bits, 16).ok()
}

/// Checks the rights to count, those to look, and the memory that may be locked.
pub(super) fn look(rights: Rights, kernel: Option<Version>, user_namespace: bool) -> Vec<Check> {
    let mut checks = vec![to_count(rights, kernel, user_namespace), to_look(rights)];
    checks.extend(memlock(kernel));
    checks
}

fn to_count(rights: Rights, kernel: Option<Version>, user_namespace: bool) -> Check {
    const NAME: &str = "capabilities";
    let old = kernel.is_some_and(|kernel| kernel < Version(5, 8));
    if rights.effective.is_none() {
        return Check::warning(
            NAME,
            "cannot tell which capabilities the agent has: /proc/self/status does not say",
            "mount /proc",
        );
    }
    if rights.suffice() && user_namespace {
        return Check::warning(
            NAME,
            "all that are needed, but only inside of this user namespace, where they load no program",
            "run as root of the host",
        );
    }
    if rights.suffice() {
        return Check::ok(NAME, "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: enough to count");
    }
    let remedy = match old {
        true => "run as root: before Linux 5.8 only CAP_SYS_ADMIN allows it",
        false => {
            "run as root, or give these alone: `setcap cap_bpf,cap_perfmon,cap_net_admin+ep \
             /path/to/traffic-agent`"
        }
    };
    Check::error(NAME, format!("missing: {}", rights.missing(&NEEDED).join("; ")), remedy)
}

fn to_look(rights: Rights) -> Check {
    const NAME: &str = "capabilities-optional";
    let missing = rights.missing(&USEFUL);
    if missing.is_empty() {
        return Check::ok(
            NAME,
            "CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN: enough to look into everything",
        );
    }
    Check::warning(
        NAME,
        format!("missing: {}", missing.join("; ")),
        "nothing if the lines below are well; else run as root, or add them",
    )
}

/// Before 5.11 maps count as locked memory. The agent raises the limit when it loads the program, so
/// this is what is left of it then.
fn memlock(kernel: Option<Version>) -> Option<Check> {
    const NAME: &str = "memlock";
    /// Maps of one instance on 64 CPUs, and as much again.
    const ENOUGH_BYTES: u64 = 16 << 20;
    if kernel? >= Version(5, 11) {
        return None;
    }
    Some(match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => Check::ok(NAME, "locked memory is unlimited"),
        Ok((soft, _)) if soft >= ENOUGH_BYTES => {
            Check::ok(NAME, format!("{} KiB may be locked", soft >> 10))
        }
        Ok((soft, _)) => Check::warning(
            NAME,
            format!(
                "only {} KiB may be locked, and before Linux 5.11 maps count as that",
                soft >> 10
            ),
            "`ulimit -l unlimited` before, or LimitMEMLOCK=infinity in the unit",
        ),
        Err(error) => Check::warning(
            NAME,
            format!("cannot read the limit of locked memory: {error}"),
            "`ulimit -l unlimited` before",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    fn rights(bits: &[u32]) -> Rights {
        Rights { effective: Some(bits.iter().map(|bit| 1 << bit).sum()) }
    }

    #[test]
    fn effective_capabilities_are_read_among_the_other_sets() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001fffeffffff\nCapBnd:\t0\n";
        assert_eq!(parse_effective(status), Some(0x1ff_feff_ffff));
        for bad in
            ["", "CapEff:", "CapEff:\t", "CapEff:\txyz", "CapEff:\t1ffffffffffffffff", "capeff: 0"]
        {
            assert_eq!(parse_effective(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn three_capabilities_count_and_root_is_not_needed() {
        assert!(rights(&[NET_ADMIN, PERFMON, BPF]).suffice());
        assert!(rights(&[SYS_ADMIN, NET_ADMIN]).suffice());
        assert!(!rights(&[NET_ADMIN, BPF]).suffice());
        assert!(!Rights::default().suffice());
        let check = to_count(rights(&[NET_ADMIN, BPF]), Some(Version(6, 1)), false);
        assert_eq!(check.status, CheckStatus::Error);
        assert_eq!(check.message, "missing: CAP_PERFMON (to let it read packet headers)");
        assert_eq!(to_look(rights(&[NET_ADMIN, PERFMON, BPF])).status, CheckStatus::Warning);
        assert_eq!(
            to_look(rights(&[SYS_PTRACE, SYS_ADMIN, DAC_READ_SEARCH])).status,
            CheckStatus::Ok
        );
    }

    #[test]
    fn unreadable_rights_are_unknown_and_not_missing() {
        assert_eq!(to_count(Rights::default(), None, false).status, CheckStatus::Warning);
    }

    #[test]
    fn before_5_8_there_is_no_cap_bpf_to_give() {
        let check = to_count(rights(&[]), Some(Version(5, 4)), false);
        assert!(check.remedy.unwrap().contains("CAP_SYS_ADMIN"));
    }
}
