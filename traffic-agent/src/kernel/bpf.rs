//! The `bpf()` calls that aya keeps to itself: links that outlive the agent, and what is attached to them.
//!
//! A link is held by its descriptor and by its pins, whichever goes last; with both gone it detaches.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `enum bpf_cmd`, include/uapi/linux/bpf.h.
#[derive(Clone, Copy)]
#[repr(i64)]
pub(super) enum Command {
    MapLookupElem = 1,
    ObjPin = 6,
    ObjGet = 7,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    RawTracepointOpen = 17,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Calls `bpf()` with the part of `union bpf_attr` that belongs to the command. The kernel takes what lies
/// behind it for zero.
pub(super) fn call<T>(command: Command, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the callers give the command's own part of the union, and its length goes with it; pointers
    // in it are to what outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as i64, &raw mut *attributes, size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: i64) -> OwnedFd {
    // SAFETY: the commands that give a descriptor give one that is ours alone.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Reads one element of an array.
///
/// # Safety
///
/// `value` must have room for what the kernel writes: the map's value, rounded up to eight bytes, for every CPU
/// that there can be if the map is one that each CPU has for itself. Any bytes must be valid in it.
pub unsafe fn look_up<T>(map: BorrowedFd<'_>, index: u32, value: &mut [T]) -> io::Result<()> {
    #[repr(C)]
    struct LookUp {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attributes = LookUp {
        map_fd: number(map),
        padding: 0,
        key: (&raw const index).expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    call(Command::MapLookupElem, &mut attributes).map(drop)
}

/// Pins a program, map or link. `path` must be new, on a bpf filesystem, and its name without a dot.
pub fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let pathname = c_path(path)?;
    let mut attributes = Object {
        pathname: pathname.as_ptr().expose_provenance() as u64,
        bpf_fd: number(object.as_fd()),
        file_flags: 0,
    };
    call(Command::ObjPin, &mut attributes).map(drop)
}

/// Opens what is pinned.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let pathname = c_path(path)?;
    let mut attributes =
        Object { pathname: pathname.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    call(Command::ObjGet, &mut attributes).map(descriptor)
}

/// Attaches a program to a hook of a cgroup, beside what is attached there. Since 5.7.
pub fn attach_to_cgroup(
    program: impl AsFd,
    cgroup: impl AsFd,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes = Create {
        prog_fd: number(program.as_fd()),
        target_fd: number(cgroup.as_fd()),
        attach_type,
        flags: 0,
    };
    call(Command::LinkCreate, &mut attributes).map(descriptor)
}

/// Attaches a program of the type `tp_btf`, which knows its tracepoint since it was loaded.
pub fn attach_to_tracepoint(program: impl AsFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Open {
        name: u64,
        prog_fd: u32,
        padding: u32,
    }
    let mut attributes = Open { name: 0, prog_fd: number(program.as_fd()), padding: 0 };
    call(Command::RawTracepointOpen, &mut attributes).map(descriptor)
}

/// Puts another program in the place of a cgroup link's: each packet passes the one or the other, and
/// exactly one of them. Fails with ENOLINK where the cgroup is gone. Since 5.7.
///
/// Source: `replace_effective_prog()`, kernel/bpf/cgroup.c: one pointer per cgroup is exchanged.
pub fn replace_program(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Update {
        link_fd: number(link.as_fd()),
        new_prog_fd: number(program.as_fd()),
        flags: 0,
        old_prog_fd: 0,
    };
    call(Command::LinkUpdate, &mut attributes).map(drop)
}

/// Returns the id of the cgroup that a link hangs on; 0 when that is gone, and with it the last socket that
/// was made in it. aya's `LinkInfo` leaves it out.
pub fn cgroup_of(link: impl AsFd) -> io::Result<u64> {
    /// The beginning of `struct bpf_link_info`.
    #[repr(C)]
    struct Link {
        kind: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        cgroup_id: u64,
        attach_type: u32,
        more: u32,
    }
    #[repr(C)]
    struct Info {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // SAFETY: integers, for which zero is a value.
    let mut found: Link = unsafe { zeroed() };
    let mut attributes = Info {
        bpf_fd: number(link.as_fd()),
        info_len: size_of::<Link>() as u32,
        info: (&raw mut found).expose_provenance() as u64,
    };
    call(Command::ObjGetInfoByFd, &mut attributes)?;
    Ok(found.cgroup_id)
}
