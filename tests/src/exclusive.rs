//! A program that holds a cgroup as systemd before 249 does for a unit with IPAccounting= or IPAddressDeny=:
//! attached without flags, so that the kernel lets no other one in, there or below.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use traffic_agent::kernel::attached::{Attached, Hook, Sharing, query};

// `enum bpf_cmd`, include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
const CGROUP_SKB: u32 = 8;
const LICENSE: &CStr = c"GPL";

/// What the program says of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Verdict {
    /// It goes on.
    Pass = 1,
    /// It does not.
    Deny = 0,
}

/// The member of `union bpf_attr` for loading, as far as it is used.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the callers give the command's own part of the union, with its length, and what it points to
    // outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn load(hook: Hook, verdict: Verdict) -> io::Result<OwnedFd> {
    // r0 = verdict; exit.
    let instructions: [u64; 2] = [0xb7 | (verdict as u64) << 32, 0x95];
    let mut prog_name = [0; 16];
    let name = format!("hold_{}", hook.name());
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let mut attributes = Load {
        prog_type: CGROUP_SKB,
        insn_cnt: 2,
        insns: instructions.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: hook as u32,
    };
    let descriptor = call(PROG_LOAD, &mut attributes)?;
    // SAFETY: a descriptor that was just made, and is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

/// Holds a cgroup, in the place of who holds it already: that is how systemd changes its mind. It is held until
/// it is removed.
pub fn hold(cgroup: &Path, verdict: Verdict) -> Result<()> {
    let directory = File::open(cgroup)?;
    for hook in [Hook::Ingress, Hook::Egress] {
        let program = load(hook, verdict).context("cannot load a program of two instructions")?;
        let mut attributes = Attach {
            target_fd: directory.as_raw_fd() as u32,
            attach_bpf_fd: program.as_raw_fd() as u32,
            attach_type: hook as u32,
            attach_flags: 0,
        };
        call(PROG_ATTACH, &mut attributes)
            .with_context(|| format!("cannot hold {} ({})", cgroup.display(), hook.name()))?;
    }
    Ok(())
}

/// How many programs are attached to the packets' hooks of a cgroup itself.
pub fn programs(cgroup: &Path) -> Result<usize> {
    let directory = File::open(cgroup)?;
    let mut programs = 0;
    for hook in [Hook::Ingress, Hook::Egress] {
        programs += query(&directory, hook)?.programs.len();
    }
    Ok(programs)
}

/// Whether nobody but the holder is attached to a cgroup.
pub fn is_held(cgroup: &Path) -> Result<bool> {
    let directory = File::open(cgroup)?;
    for hook in [Hook::Ingress, Hook::Egress] {
        let Attached { sharing, programs } = query(&directory, hook)?;
        if sharing != Sharing::Exclusive || programs.len() != 1 {
            return Ok(false);
        }
    }
    Ok(true)
}
