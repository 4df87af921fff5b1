//! Which programs are attached to a cgroup already, asked with `BPF_PROG_QUERY`, for cgroups since 4.15.
//!
//! aya 0.14 asks that for device programs only, hence the raw call. What follows from the answer
//! is judged elsewhere; nothing here changes anything.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::loaded_programs;

use super::bpf::{Command, call};

/// `BPF_F_ALLOW_OVERRIDE`.
const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 2;
/// `BPF_CGROUP_MAX_PROGS`, include/linux/bpf-cgroup.h: as many fit on one hook of one cgroup.
const MOST_PROGRAMS: usize = 64;

/// The hooks that an instance attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[expect(missing_docs, reason = "the hooks' own names")]
pub enum Hook {
    // Their numbers in `enum bpf_attach_type`.
    Ingress = 0,
    Egress = 1,
    Create = 2,
    Bind4 = 8,
    Bind6 = 9,
    Release = 34,
}

impl Hook {
    /// Those that every kernel has which counts.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::Bind4, Self::Bind6];

    /// Those that an instance hangs on, in the order of attaching: the announcers first, so that a port
    /// bound from here on is known before its first packet.
    pub(super) const LINKED: [Self; 6] =
        [Self::Bind4, Self::Bind6, Self::Ingress, Self::Egress, Self::Create, Self::Release];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Create => "create",
            Self::Bind4 => "bind4",
            Self::Bind6 => "bind6",
            Self::Release => "release",
        }
    }
}

/// Whether what is attached lets others in. The same for all programs on one hook of one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No other program here, nor in any cgroup below.
    Exclusive,
    /// No other program here; one below takes its place there.
    Override,
    /// Others beside it, here and below. Every link is so.
    Multi,
}

impl Sharing {
    fn of(attach_flags: u32) -> Self {
        if attach_flags & ALLOW_MULTI != 0 {
            Self::Multi
        } else if attach_flags & ALLOW_OVERRIDE != 0 {
            Self::Override
        } else {
            Self::Exclusive
        }
    }
}

/// What is attached to one hook of one cgroup, not counting what it inherits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Only meaningful where there are programs.
    pub sharing: Sharing,
    /// Ids of the programs.
    pub programs: Vec<u32>,
}

/// The member `query` of `union bpf_attr`, in full: since 6.17 the kernel writes `revision` too, whatever
/// length it was told, so that a shorter one would be written beyond its end.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

// The kernel reads and writes these very bytes.
const _: () = assert!(size_of::<Query>() == 64 && align_of::<Query>() == 8);

/// Asks what is attached to a hook of a cgroup. Needs CAP_NET_ADMIN.
pub fn query(cgroup: impl AsFd, hook: Hook) -> io::Result<Attached> {
    let mut programs = vec![0u32; MOST_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: programs.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: MOST_PROGRAMS as u32,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // `prog_ids` points to as many elements as `prog_cnt` says.
    call(Command::ProgQuery, &mut query)?;
    programs.truncate(query.prog_cnt as usize);
    Ok(Attached { sharing: Sharing::of(query.attach_flags), programs })
}

/// Returns the names of all loaded programs by their id, as far as they may be seen: that needs
/// CAP_SYS_ADMIN.
pub fn program_names() -> BTreeMap<u32, String> {
    // One that was unloaded between two calls is an error in the row, and not the end of it.
    let named = loaded_programs().filter_map(Result::ok);
    named.filter_map(|info| Some((info.id(), info.name_as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_attached_without_flags_is_exclusive() {
        assert_eq!(Sharing::of(0), Sharing::Exclusive);
        assert_eq!(Sharing::of(ALLOW_OVERRIDE), Sharing::Override);
        assert_eq!(Sharing::of(ALLOW_MULTI), Sharing::Multi);
        // BPF_F_PREORDER and whatever comes later.
        assert_eq!(Sharing::of(ALLOW_MULTI | 1 << 6), Sharing::Multi);
    }

    #[test]
    fn what_is_no_cgroup_is_refused_and_not_misread() {
        // EPERM without rights, EBADF with them.
        let file = tempfile::tempfile().unwrap();
        let error = query(&file, Hook::Ingress).unwrap_err();
        assert!(error.raw_os_error().is_some());
    }
}
