//! The truth matrix: {TCP, UDP} x {IPv4, IPv6} x {offloads on, off} x every way to send x {one CPU, all
//! CPUs} x {client leg, upstream leg}. In each cell all five figures equal what the captures, the
//! firewall's rules and both applications say; a line per cell is printed.

use anyhow::Result;
use traffic_lab::Stack;
use traffic_tests::matrix::{TCP, UDP, check};
use traffic_tests::processors::Processors;

#[test]
fn tcp_with_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(Stack::GsoGro, Processors::One, &TCP)
}

#[test]
fn tcp_with_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(Stack::GsoGro, Processors::All, &TCP)
}

#[test]
fn tcp_without_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(Stack::Plain, Processors::One, &TCP)
}

#[test]
fn tcp_without_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(Stack::Plain, Processors::All, &TCP)
}

#[test]
fn udp_with_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(Stack::GsoGro, Processors::One, &UDP)
}

#[test]
fn udp_with_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(Stack::GsoGro, Processors::All, &UDP)
}

#[test]
fn udp_without_offloads_on_one_cpu_is_exact_in_every_cell() -> Result<()> {
    check(Stack::Plain, Processors::One, &UDP)
}

#[test]
fn udp_without_offloads_on_all_cpus_is_exact_in_every_cell() -> Result<()> {
    check(Stack::Plain, Processors::All, &UDP)
}
