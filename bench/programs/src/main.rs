//! What others do per packet, to be measured beside traffic-agent's program. Built for the bpf target by
//! `cargo xtask bench`; never shipped.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod program;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these are eBPF programs; `cargo xtask bench` builds and runs them");
    std::process::exit(1);
}
