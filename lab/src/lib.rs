//! What the demo and the kernel tests share, and nothing of the product: network namespaces and links
//! ([`topology`]), cgroups, a capture that yields exact sums, a relay to be measured, workloads that
//! drive it, and far ends that are made by hand ([`handmade`]).
//!
//! It needs root and a kernel, and no program beside itself: a minimal Debian has no `ip`, `ethtool`
//! or `tcpdump`. Every guard undoes in `Drop` what it made; what a killed run leaves is either bound
//! to file descriptors (namespaces, links, captures) or removed by the next run (cgroups).

pub mod answered;
pub mod capture;
pub mod cgroup;
pub mod crafted;
pub mod handmade;
pub mod kernel;
pub mod link;
pub mod namespace;
pub mod offload;
pub mod packet;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod role;
pub mod sockets;
pub mod systemd;
pub mod topology;
pub mod trace;
pub mod udp;
pub mod workload;

pub use capture::{Capture, Vantage};
pub use cgroup::CountedCgroup;
pub use namespace::Namespace;
pub use process::Process;
pub use systemd::Systemd;
pub use topology::{Lab, Stack};
pub use trace::{Filter, Sum, Trace};
