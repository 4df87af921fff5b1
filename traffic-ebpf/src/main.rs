//! The eBPF object of traffic-agent. Built for the bpf target by `cargo xtask ebpf`; the compiled
//! object is committed in `prebuilt/`, so nobody else has to.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod answered;
#[cfg(target_arch = "bpf")]
mod handshake;
#[cfg(target_arch = "bpf")]
mod headers;
#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod program;
#[cfg(target_arch = "bpf")]
mod retransmission;
#[cfg(target_arch = "bpf")]
mod selected;
#[cfg(target_arch = "bpf")]
mod structures;
#[cfg(target_arch = "bpf")]
mod whose;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is an eBPF object; build it with `cargo xtask ebpf`");
    std::process::exit(1);
}
