//! Bits of a process's capability sets. Source: include/uapi/linux/capability.h.

#![expect(missing_docs, reason = "the capabilities' own names")]

pub const DAC_READ_SEARCH: u64 = 1 << 2;
pub const NET_ADMIN: u64 = 1 << 12;
pub const NET_RAW: u64 = 1 << 13;
pub const SYS_PTRACE: u64 = 1 << 19;
pub const SYS_ADMIN: u64 = 1 << 21;
pub const PERFMON: u64 = 1 << 38;
pub const BPF: u64 = 1 << 39;
