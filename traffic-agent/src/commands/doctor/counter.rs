//! The honest probe: the program itself is loaded and attached, to an empty cgroup made for it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::failed;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::check::{Check, CheckStatus};
use crate::child::FreshCgroup;
use crate::commands::subject::own_cgroup;
use crate::kernel::probe::{self, Support};
use crate::kernel::{Counter, Options};
use crate::target::Host;

/// What came of it.
pub(super) struct Counted {
    pub(super) checks: Vec<Check>,
    /// Whether a cgroup can be counted.
    pub(super) works: bool,
    /// Whether loading the program was not permitted.
    pub(super) refused: bool,
}

/// Loads the program, attaches it, and asks for the features that it is made of.
pub(super) fn look(host: Option<&Host>) -> Counted {
    const NAME: &str = "program";
    // Ctrl-C waits until the cgroup is gone again.
    let _held = HeldSignals::hold();
    let (scratch, made) = match host {
        Some(host) => scratch(host),
        None => (None, None),
    };
    let mut refused = false;
    let started = Instant::now();
    let options = Options { answered: true, retransmissions: true, ..Options::default() };
    let mut answered = None;
    let (program, compiled) = match (Counter::load(&options), &scratch) {
        (Ok(mut counter), Some(place)) => match counter.attach(place.directory()) {
            Ok(()) => {
                let took = started.elapsed().as_millis();
                answered = Some(without_socket(&mut counter));
                let text = format!("loaded and attached in {took} ms, by links that others share");
                (Check::ok(NAME, text), counter.compiled_bytes())
            }
            Err(error) => {
                let remedy = "see the lines around this one";
                (failed(NAME, &error, remedy), counter.compiled_bytes())
            }
        },
        (Ok(mut counter), None) => {
            let check = Check::error(
                NAME,
                "loads, but there is no cgroup v2 to attach it to",
                "see the line `cgroup2`",
            );
            (check, counter.compiled_bytes())
        }
        (Err(error), _) => {
            refused = matches!(error.errno(), Some(libc::EPERM | libc::EACCES));
            (failed(NAME, &error, "see the line `features`"), None)
        }
    };
    // Here all of it is gone again, the program first.
    drop(scratch);
    let works = program.status == CheckStatus::Ok;
    let mut checks = vec![program, features(), jit(compiled)];
    checks.extend(answered);
    checks.extend(made);
    Counted { checks, works, refused }
}

/// Whether packets count that the kernel exchanges without the target's socket.
fn without_socket(counter: &mut Counter) -> Check {
    const NAME: &str = "no-socket";
    match counter.answered().unavailable() {
        None => Check::ok(NAME, "packets that the kernel exchanges without a socket count, too"),
        Some(reason) => Check::warning(
            NAME,
            format!(
                "packets that the kernel exchanges without a socket, as late ones of connections that are \
                 over, do not count: {}",
                reason.with_causes()
            ),
            "nothing; up to 0.04 % of short connections was measured, and nothing of bulk traffic",
        ),
    }
}

/// The signals that end a process, held back until this is dropped.
struct HeldSignals(SigSet);

impl HeldSignals {
    fn hold() -> Self {
        let mut held = SigSet::empty();
        held.extend([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
        // It fails for no set of signals.
        Self(held.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap_or_else(|_| SigSet::empty()))
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}

/// Where the program is attached for a moment.
enum Scratch {
    Fresh(FreshCgroup),
    /// Where none can be made: the agent's own, or the whole tree.
    Existing(PathBuf),
}

impl Scratch {
    fn directory(&self) -> &Path {
        match self {
            Self::Fresh(fresh) => fresh.directory(),
            Self::Existing(directory) => directory,
        }
    }
}

/// Makes a cgroup, as `exec` does, and says whether that is possible.
fn scratch(host: &Host) -> (Option<Scratch>, Option<Check>) {
    const NAME: &str = "exec";
    const REMEDY: &str = "run as root, on a cgroup v2 mount that is writable; `compare --target` needs \
                          no cgroup of its own";
    let own = match own_cgroup(host) {
        Ok(own) => own,
        Err(error) => {
            let (message, remedy) = super::explain(&*error);
            let remedy = remedy.unwrap_or_else(|| REMEDY.to_owned());
            let place = Scratch::Existing(host.cgroups.mount().to_owned());
            return (Some(place), Some(Check::warning(NAME, message, remedy)));
        }
    };
    match FreshCgroup::create(&own.dir) {
        Ok(fresh) => {
            let message =
                format!("cgroups can be made below {}, for `exec` and `compare -- CMD`", own.path);
            (Some(Scratch::Fresh(fresh)), Some(Check::ok(NAME, message)))
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
            let message = format!(
                "no cgroup can be made below {}, as `exec` and `compare -- CMD` need it{}",
                own.path,
                cause.unwrap_or_default()
            );
            (Some(Scratch::Existing(own.dir)), Some(Check::warning(NAME, message, REMEDY)))
        }
    }
}

fn features() -> Check {
    const NAME: &str = "features";
    let features = probe::features();
    let names = |wanted: fn(&Support) -> bool| -> Vec<&str> {
        features.iter().filter(|feature| wanted(&feature.support)).map(|f| f.name).collect()
    };
    let missing: Vec<String> = features
        .iter()
        .filter(|feature| matches!(feature.support, Support::No))
        .map(|feature| format!("{} (needs {})", feature.name, feature.needs))
        .collect();
    if !missing.is_empty() {
        return Check::error(
            NAME,
            format!("the kernel lacks {}", missing.join(", ")),
            "use a kernel of your distribution, 5.10 or later",
        );
    }
    let refused = names(|support| matches!(support, Support::NotPermitted));
    if !refused.is_empty() {
        return Check::warning(
            NAME,
            format!("cannot ask the kernel for {}: not permitted", refused.join(", ")),
            "run as root, or with CAP_BPF and CAP_NET_ADMIN",
        );
    }
    for feature in &features {
        if let Support::Unknown(error) = &feature.support {
            let (message, _) = super::explain(&**error);
            return Check::warning(
                NAME,
                format!("cannot ask the kernel for {}: {message}", feature.name),
                "nothing if the line `program` is well",
            );
        }
    }
    Check::ok(NAME, names(|support| matches!(support, Support::Yes)).join(", "))
}

/// Whether programs run as machine code. `compiled` is the loaded program's own word; the setting is
/// only asked without it, since only the first network namespace shows it.
fn jit(compiled: Option<u32>) -> Check {
    let setting = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok();
    judge_jit(compiled, setting.as_deref())
}

fn judge_jit(compiled: Option<u32>, setting: Option<&str>) -> Check {
    const NAME: &str = "jit";
    const ON: &str = "`sysctl net.core.bpf_jit_enable=1`";
    const SLOW: &str = "the kernel interprets programs: each packet costs several times as much";
    match (compiled, setting.map(str::trim)) {
        (Some(0), _) => Check::warning(NAME, SLOW, ON),
        (Some(bytes), _) => Check::ok(
            NAME,
            format!("compiled: the ingress program is {bytes} bytes of machine code"),
        ),
        (None, Some("1" | "2")) => Check::ok(NAME, "net.core.bpf_jit_enable is on"),
        (None, Some("0")) => Check::warning(NAME, SLOW, ON),
        (None, _) => Check::warning(
            NAME,
            "whether the kernel compiles programs cannot be seen without loading one",
            "see the line `program`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_program_knows_better_than_the_setting() {
        assert_eq!(judge_jit(Some(900), Some("0\n")).status, CheckStatus::Ok);
        assert_eq!(judge_jit(Some(0), Some("1\n")).status, CheckStatus::Warning);
        assert_eq!(judge_jit(None, Some("1\n")).status, CheckStatus::Ok);
        assert_eq!(judge_jit(None, Some("0\n")).status, CheckStatus::Warning);
        for unknown in [None, Some(""), Some("x"), Some("-1")] {
            assert_eq!(judge_jit(None, unknown).status, CheckStatus::Warning);
        }
    }
}
