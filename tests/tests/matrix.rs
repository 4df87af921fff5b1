//! The truth matrix: {TCP, UDP} x {IPv4, IPv6} x {offloads on, off} x every way to send x {one CPU, all
//! CPUs} x {client leg, upstream leg}. In each cell all five figures equal what the captures, the
//! firewall's rules and both applications say; a line per cell is printed.

use anyhow::Result;
use traffic_lab::Stack;
use traffic_tests::matrix::{ESSENCE, Setting, TCP, UDP, Variant, check};
use traffic_tests::processors::Processors;

/// An ordinary bench.
fn ordinary(stack: Stack, processors: Processors) -> Setting {
    Setting { stack, processors, variant: Variant::Ordinary }
}

/// The essence of the matrix, with and without offloads, with something not as always.
fn check_variant(variant: Variant) -> Result<()> {
    [Stack::GsoGro, Stack::Plain].into_iter().try_for_each(|stack| {
        check(Setting { stack, processors: Processors::All, variant }, ESSENCE)
    })
}

#[test]
fn tcp_with_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::GsoGro, Processors::One), &TCP)
}

#[test]
fn tcp_with_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::GsoGro, Processors::All), &TCP)
}

#[test]
fn tcp_without_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::Plain, Processors::One), &TCP)
}

#[test]
fn tcp_without_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::Plain, Processors::All), &TCP)
}

#[test]
fn udp_with_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::GsoGro, Processors::One), &UDP)
}

#[test]
fn udp_with_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::GsoGro, Processors::All), &UDP)
}

#[test]
fn udp_without_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::Plain, Processors::One), &UDP)
}

#[test]
fn udp_without_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(ordinary(Stack::Plain, Processors::All), &UDP)
}

#[test]
fn every_mtu_is_exact_in_every_cell() -> Result<()> {
    [1280, 9000].into_iter().try_for_each(|bytes| check_variant(Variant::Mtu(bytes)))
}

#[test]
fn tcp_without_timestamps_is_exact_in_every_cell() -> Result<()> {
    check_variant(Variant::NoTimestamps)
}

#[test]
fn ipv4_options_are_exact_in_every_cell() -> Result<()> {
    check_variant(Variant::Ipv4Options)
}

#[test]
fn ipv6_extension_headers_are_exact_in_every_cell() -> Result<()> {
    check_variant(Variant::Ipv6Headers)
}

#[test]
fn sockets_with_v4_mapped_addresses_are_exact_in_every_cell() -> Result<()> {
    check_variant(Variant::Mapped)
}

#[test]
fn a_proxy_in_a_sub_cgroup_is_exact_in_every_cell() -> Result<()> {
    check_variant(Variant::SubCgroup)
}

#[test]
fn super_packets_above_64_kib_are_exact_in_every_cell() -> Result<()> {
    let (stack, processors) = (Stack::GsoGro, Processors::All);
    // Without offloads there are none. Down, up, and both at once.
    check(Setting { stack, processors, variant: Variant::BigTcp }, &TCP[..3])
}
