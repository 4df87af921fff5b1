//! How much of the demo's four workloads through a real proxy passes no hook: the table in
//! `docs/accounting.md`, printed by `cargo xtask test --e2e unseen`.

use anyhow::Result;
use traffic_lab::proxy::{Program, Protocol};
use traffic_tests::proxies;

#[test]
fn unseen_in_the_four_workloads_of_vless_are_only_whole_packets_of_the_classes() -> Result<()> {
    proxies::tell_unseen(Program::Xray, Protocol::VlessTcp)
}

#[test]
fn unseen_in_the_four_workloads_of_vmess_are_only_whole_packets_of_the_classes() -> Result<()> {
    proxies::tell_unseen(Program::Xray, Protocol::VmessWs)
}
