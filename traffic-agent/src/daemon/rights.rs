//! Which of its rights the daemon keeps, and dropping the others.
//!
//! A unit gives it no more than it needs; root's shell gives it everything. What is not needed to count, to
//! attach again and to look is dropped before anything is opened, so that what the daemon cannot do without
//! it, it cannot do at its start either. What is dropped does not come back: programs that it runs get no
//! more, whatever their files say.
//!
//! Rights belong to threads: this must run before there is a second one. Memory stays readable for those
//! that may trace the process (no PR_SET_DUMPABLE): the kernel asks them for all of its rights, and there is
//! no secret in it, but a core dump may be wanted.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use log::{debug, warn};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::config::{LookInto, Target};
use crate::netns::NetNs;
use crate::target::{Host, Value, processes, resolve};

/// What it takes to count is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not permitted to count: {0} missing; run as root, or as the unit that `traffic-agent install` makes"
)]
pub struct Missing(String);

/// Refuses to start without what it takes to count.
pub fn require() -> Result<(), Missing> {
    // Where they cannot be read the kernel has the last word.
    let Ok(effective) = caps::read(None, CapSet::Effective) else { return Ok(()) };
    require_of(&effective)
}

fn require_of(effective: &CapsHashSet) -> Result<(), Missing> {
    use Capability::*;
    let has = |capability| effective.contains(&capability);
    let missing = [CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN].into_iter().filter(|&capability| {
        // CAP_SYS_ADMIN contains them, and before Linux 5.8 was all that there was.
        let contained = capability != CAP_NET_ADMIN && has(CAP_SYS_ADMIN);
        !has(capability) && !contained
    });
    let missing: Vec<String> = missing.map(|capability| capability.to_string()).collect();
    match missing.as_slice() {
        [] => Ok(()),
        [only] => Err(Missing(format!("{only} is"))),
        several => Err(Missing(format!("{} are", several.join(", ")))),
    }
}

/// Drops what is not needed. What cannot be dropped is kept, and said: counting matters more.
pub fn drop_others(look_into: LookInto, host: &Host, targets: &[Target]) {
    // Before Linux 5.11 maps count against it, and it takes CAP_SYS_RESOURCE to raise it. Where that is
    // missing the limit may still suffice.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let dropped = Rights::read().and_then(|rights| {
        let look_into = match look_into {
            LookInto::Auto if !rights.are_for_this() => needed(host, targets),
            other => other,
        };
        rights.keep(&kept(&rights.permitted, look_into))
    });
    if let Err(error) = dropped {
        warn!("cannot drop the rights that are not needed, and keeps them: {error}");
    }
    if let Err(error) = set_no_new_privs() {
        warn!("programs that the agent runs may get more rights than it has: {error}");
    }
}

/// What the calling thread may do.
struct Rights {
    permitted: CapsHashSet,
    bounding: CapsHashSet,
}

impl Rights {
    fn read() -> Result<Self, CapsError> {
        let [permitted, bounding] =
            [CapSet::Permitted, CapSet::Bounding].map(|set| caps::read(None, set));
        Ok(Self { permitted: permitted?, bounding: bounding? })
    }

    /// Whether they were granted on purpose: there are none that the daemon has no use for.
    fn are_for_this(&self) -> bool {
        self.permitted.is_subset(&kept(&self.permitted, LookInto::Namespaces))
    }

    /// Drops all others, from every set. A sandbox may refuse the calls, so none is made in vain.
    fn keep(&self, kept: &CapsHashSet) -> Result<(), CapsError> {
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            let now = caps::read(None, set)?;
            if !now.is_subset(kept) {
                caps::set(None, set, &(&now & kept))?;
            }
        }
        // Without the right to, it is dropped with the others: nobody here gets more from a program's file.
        if self.permitted.contains(&Capability::CAP_SETPCAP) {
            for &capability in self.bounding.difference(kept) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        if !self.permitted.is_subset(kept) {
            caps::set(None, CapSet::Effective, kept)?;
            caps::set(None, CapSet::Permitted, kept)?;
        }
        debug!("keeps {kept:?}");
        Ok(())
    }
}

/// Which of the permitted rights are kept.
fn kept(permitted: &CapsHashSet, look_into: LookInto) -> CapsHashSet {
    use Capability::*;
    // CAP_NET_RAW: iptables-legacy-save asks through a raw socket.
    let mut wanted = vec![CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_NET_RAW];
    if matches!(look_into, LookInto::Auto | LookInto::Processes | LookInto::Namespaces) {
        wanted.extend([CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH]);
    }
    // Before Linux 5.8 it is the only one that allows what CAP_BPF and CAP_PERFMON allow since.
    let stands_for_others = ![CAP_BPF, CAP_PERFMON].iter().all(|it| permitted.contains(it));
    if matches!(look_into, LookInto::Auto | LookInto::Namespaces) || stands_for_others {
        wanted.push(CAP_SYS_ADMIN);
    }
    wanted.into_iter().filter(|capability| permitted.contains(capability)).collect()
}

/// What the targets need, as far as it is known now.
fn needed(host: &Host, targets: &[Target]) -> LookInto {
    let own = NetNs::current().map(|netns| netns.inode()).ok();
    // Of one that is not there yet nobody knows where it will be; and a container may be made again elsewhere.
    let may_be_elsewhere = |target: &Target| {
        if target.spec.selectors.iter().any(|value| matches!(value, Value::Container(_))) {
            return true;
        }
        let Ok(resolved) = resolve(host, &target.spec) else { return true };
        let pids = host.cgroups.pids(&resolved.cgroups).unwrap_or_default();
        let processes = pids.into_iter().filter_map(|pid| processes::read(&host.proc, pid));
        let namespaces: Vec<_> = processes.map(|process| process.netns).collect();
        namespaces.is_empty() || namespaces.iter().any(|netns| *netns != own)
    };
    match targets.iter().any(may_be_elsewhere) {
        true => LookInto::Namespaces,
        false => LookInto::Processes,
    }
}

#[cfg(test)]
mod tests {
    use caps::Capability::*;

    use super::*;

    const COUNTING: [Capability; 3] = [CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN];

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn of_everything_only_what_is_wanted_is_kept() {
        let all = caps::all();
        let nothing = set(&[&COUNTING[..], &[CAP_NET_RAW]].concat());
        assert_eq!(kept(&all, LookInto::Nothing), nothing);
        let processes = &nothing | &set(&[CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH]);
        assert_eq!(kept(&all, LookInto::Processes), processes);
        assert_eq!(kept(&all, LookInto::Namespaces), &processes | &set(&[CAP_SYS_ADMIN]));
    }

    #[test]
    fn what_was_not_given_is_not_taken_and_what_was_granted_stays() {
        let unit = set(&COUNTING);
        for look_into in [LookInto::Auto, LookInto::Nothing, LookInto::Namespaces] {
            assert_eq!(kept(&unit, look_into), unit);
        }
        let opted_in = &unit | &set(&[CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH]);
        assert_eq!(kept(&opted_in, LookInto::Auto), opted_in);
        assert_eq!(kept(&opted_in, LookInto::Nothing), unit);
        assert!(kept(&set(&[]), LookInto::Auto).is_empty());
    }

    #[test]
    fn what_is_missing_to_count_is_named() {
        assert_eq!(require_of(&set(&COUNTING)), Ok(()));
        assert_eq!(require_of(&set(&[CAP_SYS_ADMIN, CAP_NET_ADMIN])), Ok(()));
        let message = |given: &[Capability]| require_of(&set(given)).unwrap_err().to_string();
        let start =
            "not permitted to count: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN are missing; run as root";
        assert!(message(&[]).starts_with(start), "{}", message(&[]));
        assert!(message(&[CAP_SYS_ADMIN]).contains(": CAP_NET_ADMIN is missing;"));
    }

    #[test]
    fn before_linux_5_8_the_administrator_stays_one() {
        let old = &caps::all() - &set(&[CAP_BPF, CAP_PERFMON]);
        assert_eq!(
            kept(&old, LookInto::Nothing),
            set(&[CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW])
        );
    }
}
