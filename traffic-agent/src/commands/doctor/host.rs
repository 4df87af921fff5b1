//! The machine, whatever the target: its kernel, the list of sockets, the firewall's programs, the clock.

use std::fmt;
use std::fs;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

use jiff::Timestamp;

use super::failed;
use crate::check::Check;
use crate::commands::subject::own_cgroup;
use crate::method::firewall::Firewall;
use crate::target::Host;
use crate::target::sockets::{self, Which};

/// Major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The oldest kernel that counting was proven on.
const OLDEST: Version = Version(5, 10);
/// The last one seen whose hook misses the SYN-ACK of an inbound IPv6 connection.
const WITHOUT_IPV6_SYN_ACK: Version = Version(6, 1);
/// 2024-01-01T00:00:00Z: the agent is younger.
const PAST_SECONDS: i64 = 1_704_067_200;

impl Version {
    /// The running kernel's; none where it does not say.
    pub(super) fn read() -> Option<Self> {
        Self::parse(&release())
    }

    /// Reads the beginning of a release such as `6.1.0-18-amd64`.
    fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some(Self(major, minor[..digits].parse().ok()?))
    }
}

fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Checks the kernel's version. What it really can do is another line.
pub(super) fn kernel(version: Option<Version>, counting_works: bool) -> Check {
    judge_kernel(&release(), version, counting_works)
}

fn judge_kernel(release: &str, version: Option<Version>, counting_works: bool) -> Check {
    const NAME: &str = "kernel";
    let Some(version) = version else {
        return Check::warning(
            NAME,
            format!("cannot read a version from the kernel's release {release:?}"),
            format!("make sure that it is {OLDEST} or later"),
        );
    };
    if version < OLDEST {
        let remedy = format!("use Linux {OLDEST} or later");
        return match counting_works {
            true => Check::warning(
                NAME,
                format!(
                    "Linux {release}: the program loads, but nothing older than {OLDEST} was proven exact"
                ),
                remedy,
            ),
            false => Check::error(NAME, format!("Linux {release} is older than {OLDEST}"), remedy),
        };
    }
    if version <= WITHOUT_IPV6_SYN_ACK {
        return Check::warning(
            NAME,
            format!(
                "Linux {release} does not show the program one packet of each inbound IPv6 connection, \
                 the SYN-ACK: 80 bytes a connection are not counted"
            ),
            "nothing if that is little; else a kernel newer than 6.1",
        );
    }
    Check::ok(NAME, format!("Linux {release}"))
}

/// Checks that the kernel lists sockets with the cgroup that owns each: ports and ownership depend on
/// it. Two sockets of our own are the proof.
pub(super) fn sockets(host: Option<&Host>) -> Check {
    const NAME: &str = "sock_diag";
    // Where loopback is down they cannot be bound; then the list alone has to do.
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok();
    let list = match sockets::dump(Which::Bound) {
        Ok(list) => list,
        Err(error) => return failed(NAME, &error, "run as root, outside of a container"),
    };
    let own = host.and_then(|host| own_cgroup(host).ok()).map(|cgroup| cgroup.id);
    let inodes =
        [("tcp", tcp.map(|socket| inode(&socket))), ("udp", udp.map(|socket| inode(&socket)))];
    for (protocol, inode) in inodes {
        let Some(Some(inode)) = inode else { continue };
        let Some(found) = list.iter().find(|socket| socket.inode == inode) else {
            return Check::error(
                NAME,
                format!("the kernel's list lacks a {protocol} socket that the agent has open"),
                "run outside of a sandbox that intercepts system calls (gVisor, for one)",
            );
        };
        match (found.cgroup_id, own) {
            (None, _) => {
                return Check::error(
                    NAME,
                    format!("the kernel's list of {protocol} sockets has no cgroup ids"),
                    "use Linux 5.8 or later with CONFIG_SOCK_CGROUP_DATA=y",
                );
            }
            (Some(id), Some(own)) if id != own => {
                return Check::error(
                    NAME,
                    format!(
                        "a {protocol} socket made by the agent, in cgroup id {own}, belongs to cgroup id \
                         {id}: the kernel has stopped to note the cgroup of new sockets"
                    ),
                    "before Linux 5.15 a mounted net_cls or net_prio controller (cgroup v1) does that: \
                     reboot without it (cgroup_no_v1=net_cls,net_prio)",
                );
            }
            _ => {}
        }
    }
    Check::ok(
        NAME,
        format!(
            "tcp and udp sockets are listed with their cgroup ({} waiting or bound here)",
            list.len()
        ),
    )
}

/// The number by which the kernel lists a socket of ours.
fn inode(socket: &impl AsRawFd) -> Option<u64> {
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Says which programs of the firewall can be read; which rules count the target's ports is asked per
/// target.
pub(super) fn firewall() -> Check {
    const NAME: &str = "firewall";
    let reading = Firewall::read(None, &[]);
    if !reading.problems.is_empty() {
        return Check::warning(
            NAME,
            format!("not all rules can be read: {}", reading.problems.join("; ")),
            RULES_REMEDY,
        );
    }
    match reading.programs.is_empty() {
        true => Check::ok(
            NAME,
            "neither iptables nor nft is installed: the estimate is made of hook-port, which needs no rule",
        ),
        false => Check::ok(NAME, format!("read by {}", reading.programs.join(", "))),
    }
}

/// What to do about rules that cannot be read.
pub(super) const RULES_REMEDY: &str = "run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN; without rules hook-port gives the same figure";

/// Checks the clock that reports are dated by.
pub(super) fn clock() -> Check {
    let now = Timestamp::now();
    judge_clock(now, unsynchronised())
}

/// Whether the kernel's clock follows no time server; none where it does not say.
fn unsynchronised() -> Option<bool> {
    let mut timex = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: `modes` 0 only reads, and needs no right; the whole structure is ours to be written.
    let state = unsafe { libc::adjtimex(timex.as_mut_ptr()) };
    if state < 0 {
        return None;
    }
    // SAFETY: the call has filled it; integers all, of which zero is a value anyway.
    let timex = unsafe { timex.assume_init() };
    Some(timex.status & libc::STA_UNSYNC != 0)
}

fn judge_clock(now: Timestamp, unsynchronised: Option<bool>) -> Check {
    const NAME: &str = "clock";
    let date = Timestamp::from_second(now.as_second()).unwrap_or(now);
    if now.as_second() < PAST_SECONDS {
        return Check::error(
            NAME,
            format!("it is {date}, says the clock: reports would be dated so"),
            "set it: `timedatectl set-ntp true`, or `date -s`",
        );
    }
    match unsynchronised {
        Some(true) => Check::warning(
            NAME,
            format!("{date}, not synchronised with a time server: days and months may begin late"),
            "`timedatectl set-ntp true`, or install chrony",
        ),
        Some(false) => Check::ok(NAME, format!("{date}, synchronised")),
        None => {
            Check::ok(NAME, format!("{date}; whether it is synchronised cannot be seen from here"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    #[test]
    fn version_is_the_beginning_of_the_release() {
        for (release, version) in [
            ("6.1.0-18-amd64", Some(Version(6, 1))),
            ("5.10.262", Some(Version(5, 10))),
            ("6.18-rc1", Some(Version(6, 18))),
            ("6.18+", Some(Version(6, 18))),
            ("6", None),
            ("6.", None),
            ("6.x", None),
            ("", None),
            ("Linux 6.1", None),
            ("99999999999.1", None),
            ("6.99999999999", None),
        ] {
            assert_eq!(Version::parse(release), version, "{release:?}");
        }
        assert!(Version(5, 9) < OLDEST && Version(6, 0) > OLDEST);
    }

    #[test]
    fn old_kernel_that_counts_nevertheless_is_only_a_warning() {
        let judge = |release, works| judge_kernel(release, Version::parse(release), works).status;
        assert_eq!(judge("5.4.0", false), CheckStatus::Error);
        assert_eq!(judge("5.4.0", true), CheckStatus::Warning);
        assert_eq!(judge("6.1.0", true), CheckStatus::Warning);
        assert_eq!(judge("6.12.0", true), CheckStatus::Ok);
        assert_eq!(judge("custom", true), CheckStatus::Warning);
    }

    #[test]
    fn clock_before_the_agent_was_written_is_wrong() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let status = |now, unsynchronised| judge_clock(at(now), unsynchronised).status;
        assert_eq!(status("1970-01-01T00:05:00Z", Some(false)), CheckStatus::Error);
        assert_eq!(status("2026-11-24T00:05:00Z", Some(true)), CheckStatus::Warning);
        assert_eq!(status("2026-11-24T00:05:00Z", Some(false)), CheckStatus::Ok);
        assert_eq!(status("2026-11-24T00:05:00Z", None), CheckStatus::Ok);
    }
}
