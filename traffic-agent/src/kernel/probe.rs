//! What the running kernel can do of what the programs ask for.
//!
//! Whether a [`super::Counter`] loads and attaches is the real answer; this says which part is missing
//! when it does not.

use std::error::Error;

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::errno;

/// Something that the programs ask of the kernel.
#[derive(Debug)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Where it comes from: the option of the kernel's build, or the version.
    pub needs: &'static str,
    /// What the kernel says.
    pub support: Support,
}

/// What the kernel says to a probe.
#[derive(Debug)]
pub enum Support {
    /// It is there.
    Yes,
    /// It is not.
    No,
    /// The probe itself was refused for lack of rights.
    NotPermitted,
    /// The probe failed otherwise.
    Unknown(Box<dyn Error + Send + Sync>),
}

impl Support {
    fn of<E: Error + Send + Sync + 'static>(answer: Result<bool, E>) -> Self {
        match answer {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(error) => match errno(&error) {
                Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
                // No bpf() at all.
                Some(libc::ENOSYS) => Self::No,
                _ => Self::Unknown(error.into()),
            },
        }
    }
}

/// Whether the programs may read the kernel's memory: not where it is locked down for confidentiality. They
/// count without, but a packet twice that is delivered twice.
pub(super) fn may_read_packets() -> bool {
    is_helper_supported(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_probe_read_kernel)
        .unwrap_or(false)
}

/// Asks the kernel for each feature that the programs depend on, by loading the least that uses it.
/// Nothing stays loaded.
pub fn features() -> Vec<Feature> {
    let feature = |name, needs, support| Feature { name, needs, support };
    vec![
        feature(
            "per-CPU arrays",
            "CONFIG_BPF_SYSCALL=y",
            Support::of(is_map_supported(MapType::PerCpuArray)),
        ),
        feature(
            "cgroup_skb programs",
            "CONFIG_CGROUP_BPF=y",
            Support::of(is_program_supported(ProgramType::CgroupSkb)),
        ),
        feature(
            "cgroup/bind programs",
            "CONFIG_CGROUP_BPF=y and CONFIG_INET=y",
            Support::of(is_program_supported(ProgramType::CgroupSockAddr)),
        ),
        feature(
            "ring buffers",
            "Linux 5.8 or later",
            Support::of(is_map_supported(MapType::RingBuf)),
        ),
        feature(
            "socket storage",
            "Linux 5.2 or later",
            Support::of(is_map_supported(MapType::SkStorage)),
        ),
        feature(
            "socket storage in cgroup_skb",
            "Linux 5.2 or later",
            Support::of(is_helper_supported(
                ProgramType::CgroupSkb,
                BpfHelper::BPF_FUNC_sk_storage_get,
            )),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_refused_probe_says_nothing_about_the_kernel() {
        let answer = |errno| Support::of(Err(io::Error::from_raw_os_error(errno)));
        assert!(matches!(answer(libc::EPERM), Support::NotPermitted));
        assert!(matches!(answer(libc::ENOSYS), Support::No));
        assert!(matches!(answer(libc::ENOMEM), Support::Unknown(_)));
        assert!(matches!(Support::of(Ok::<_, io::Error>(true)), Support::Yes));
        assert!(matches!(Support::of(Ok::<_, io::Error>(false)), Support::No));
    }
}
