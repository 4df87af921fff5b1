//! How much of the demo's four workloads through a real proxy passes no hook, and is counted all the
//! same: the table in `docs/accounting.md`, printed by `cargo xtask test --e2e unseen`.

use anyhow::Result;
use traffic_lab::proxy::{Program, Protocol};
use traffic_tests::proxies;

#[test]
fn the_four_workloads_of_vless_are_counted_with_what_is_unseen_at_the_hook() -> Result<()> {
    proxies::check_demo(Program::Xray, Protocol::VlessTcp)
}

#[test]
fn the_four_workloads_of_vmess_are_counted_with_what_is_unseen_at_the_hook() -> Result<()> {
    proxies::check_demo(Program::Xray, Protocol::VmessWs)
}
