//! Which cgroups systemd wants for itself.
//!
//! Before 249 it attaches to a unit that is no slice, and not delegated, as the only one: where the unit has
//! IPAccounting=, IPAddressAllow= or IPAddressDeny=. Where it comes too late it is refused, and goes on without
//! a word: then an IPAddressDeny= is not enforced.

use std::ffi::CString;
use std::fmt;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// From this version on systemd attaches to every unit as one of many (its pull request 19851, and
/// measured on 252: it attaches beside others, and its IPAddressDeny= is enforced).
pub const FIRST_SHARING: u32 = 249;

/// Suffixes of units that have processes in a cgroup which systemd does not share with others.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// Settings for which it attaches.
const SETTINGS: [&str; 3] = ["IPAccounting", "IPAddressAllow", "IPAddressDeny"];

/// It answers in milliseconds, unless it is not well or the machine is very busy.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// That systemd attaches exclusively to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The unit.
    pub unit: String,
    /// systemd's version.
    pub version: u32,
    /// The settings for which it does so. None if it did not say which there are.
    pub settings: Option<String>,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, version, settings } = self;
        match settings {
            Some(settings) => {
                write!(f, "systemd {version} holds {unit} exclusively ({settings})")
            }
            None => write!(
                f,
                "systemd {version} does not say whether it holds {unit} exclusively (for IPAccounting=, \
                 IPAddressAllow= or IPAddressDeny=)"
            ),
        }
    }
}

/// Whether systemd wants a cgroup for itself, attached to it by now or not.
pub fn claim(path: &str, dir: &Path) -> Option<Claim> {
    let version = version_that_claims(path, dir)?;
    let unit = unit_of(path).to_owned();
    match settings(&unit) {
        Some(settings) if settings.is_empty() => None,
        settings => Some(Claim { unit, version, settings }),
    }
}

/// systemd's version, if it is one that would hold this cgroup exclusively, had the unit the settings for it.
pub fn version_that_claims(path: &str, dir: &Path) -> Option<u32> {
    static VERSION: OnceLock<u32> = OnceLock::new();
    if !is_unshared_unit(path) || is_delegated(dir) {
        return None;
    }
    let version = match VERSION.get() {
        Some(version) => *version,
        // Where it does not answer, it is asked again the next time.
        None => {
            let version = parse_version(&systemctl(&["--version"])?)?;
            *VERSION.get_or_init(|| version)
        }
    };
    (version < FIRST_SHARING).then_some(version)
}

/// The unit of a cgroup, by its path. systemd puts `_` in front of names that are a controller's too.
fn unit_of(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.strip_prefix('_').unwrap_or(name)
}

/// Which of the settings a unit has. None if systemd does not say.
fn settings(unit: &str) -> Option<String> {
    let text = systemctl(&["show", "--property", &SETTINGS.join(","), "--", unit])?;
    text.contains("IPAccounting=").then(|| parse_settings(&text))
}

fn parse_settings(text: &str) -> String {
    let is_set = |line: &&str| {
        line.split_once('=').is_some_and(|(name, value)| {
            SETTINGS.contains(&name) && !value.is_empty() && value != "no"
        })
    };
    let set: Vec<&str> = text.lines().filter(is_set).map(str::trim_end).collect();
    set.join(", ")
}

/// Reads `systemd 252 (252.38-1~deb12u1)` and what follows it.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("systemd ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// Runs `systemctl`; returns its stdout, which is short. None where there is none, or where it fails.
fn systemctl(arguments: &[&str]) -> Option<String> {
    let mut child = Command::new("systemctl")
        .args(arguments)
        .env("SYSTEMD_PAGER", "")
        .env("SYSTEMD_COLORS", "0")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + TIME_LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            _ => {
                // It may have ended by itself; either way it must not stay a zombie.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    status.success().then_some(text)
}

/// Whether a cgroup is a unit's own, and not a slice, which systemd shares.
fn is_unshared_unit(path: &str) -> bool {
    UNITS.iter().any(|suffix| path.ends_with(suffix))
}

/// Whether systemd has marked the cgroup as delegated (a container's, for one): it attaches to those as
/// one of many. The mark is `user.delegate` since 251, before that `trusted.delegate` for root alone.
fn is_delegated(dir: &Path) -> bool {
    let Ok(dir) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 1];
        // SAFETY: both names end in 0 and outlive the call, which writes at most one byte to `value`.
        let length = unsafe {
            libc::getxattr(dir.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        length == 1 && value[0] == b'1'
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_shared_and_services_are_not() {
        assert!(is_unshared_unit("/system.slice/xray.service"));
        assert!(is_unshared_unit("/system.slice/docker-1.scope"));
        assert!(!is_unshared_unit("/xray-traffic.slice"));
        assert!(!is_unshared_unit("/proxy"));
        assert!(!is_unshared_unit("/"));
    }

    #[test]
    fn version_of_systemd_is_the_first_number() {
        let text = "systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT\n";
        assert_eq!(parse_version(text), Some(252));
        assert_eq!(parse_version("systemd 258~rc1"), Some(258));
        for bad in ["", "systemd", "systemd ", "systemd x", "elogind 252", "systemd 99999999999"] {
            assert_eq!(parse_version(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_has_no_mark_is_not_delegated() {
        assert!(!is_delegated(Path::new("/")));
        assert!(!is_delegated(Path::new("/does/not/exist")));
    }

    #[test]
    fn only_settings_that_are_set_make_systemd_attach() {
        assert_eq!(parse_settings("IPAccounting=no\nIPAddressAllow=\nIPAddressDeny=\n"), "");
        let text = "IPAccounting=yes\nIPAddressAllow=\nIPAddressDeny=::/0 0.0.0.0/0\n";
        assert_eq!(parse_settings(text), "IPAccounting=yes, IPAddressDeny=::/0 0.0.0.0/0");
        assert_eq!(parse_settings("Other=yes\nIPAccounting\n"), "");
    }

    #[test]
    fn a_units_name_is_without_what_systemd_puts_in_front() {
        assert_eq!(unit_of("/system.slice/xray.service"), "xray.service");
        assert_eq!(unit_of("/_cpu.service"), "cpu.service");
    }
}
