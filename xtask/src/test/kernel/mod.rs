//! `cargo xtask test --kernel 6.1`: the same agent and the same tests on another kernel, in qemu.
//!
//! The processor is emulated, so that it works on any machine and takes its time: the programs are
//! loaded, the self-test and the tests of the core run, one after the other, from an initramfs that holds
//! nothing else.

mod guest;
mod initramfs;
mod package;
mod version;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub use self::version::Version;
use self::{guest::Guest, package::Kernel};
use super::tally::Tally;
use crate::{command, command::announce, debian, workspace::Workspace};

/// The test targets of the core: they need no firewall, and no more time than an emulated processor
/// has.
pub const TARGETS: [&str; 5] = ["wire_tcp", "wire_udp", "leg", "without_port", "host"];

/// Tests of those targets that a guest does not run, with the reason, and the first kernel that does.
///
/// Each measurement loads the programs, and an emulated processor takes five seconds to verify them.
const EXCEPTIONS: [(&str, &str, (u32, u32)); 3] = [
    ("without_any_offload", "the self-test has the same", NEVER),
    ("five_hundred_ephemeral", "it takes half a minute, and asks nothing of the kernel", NEVER),
    ("an_mptcp_listener_is_found", "Debian's kernel has no MPTCP", (5, 11)),
];
/// A version that no kernel reaches.
const NEVER: (u32, u32) = (u32::MAX, 0);

/// What is built for the guest.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// Prints what the kernel's verifier says of the programs.
    pub verifier: PathBuf,
    /// The helper of the tests.
    pub helper: PathBuf,
    /// The test programs, with the names of their targets.
    pub tests: Vec<(String, PathBuf)>,
}

/// Makes sure that qemu and what fills the guest are there.
pub fn tools() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("other kernels are booted on x86-64 only");
    }
    let wanted = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("xz", "xz-utils"),
    ];
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| command::find(program, &[]).is_none())
        .map(|&(_, package)| package)
        .collect();
    debian::install(&missing, "to boot other kernels")
}

/// Boots the newest kernel of a version, and runs the self-test and the core's tests in it.
pub fn run(
    workspace: &Workspace,
    version: Version,
    programs: &Programs,
    filter: Option<&str>,
) -> Result<Tally> {
    let kernel = Kernel::find_or_fetch(workspace, version)
        .with_context(|| format!("cannot test on Linux {version}"))?;
    announce(&format!("booting Linux {} (the processor is emulated)", kernel.release));
    let mut skipped = Vec::new();
    for (test, reason, (major, minor)) in EXCEPTIONS {
        if version.is_before(major, minor) {
            announce(&format!("not on Linux {version}: {test}, because {reason}"));
            skipped.push(test);
        }
    }
    Guest { version, kernel, programs, filter, skipped }.run(workspace)
}
