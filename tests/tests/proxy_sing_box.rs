//! sing-box: `traffic-agent compare` beside the far ends' captures and real rules, per protocol.

use anyhow::Result;
use traffic_lab::proxy::{Program, Protocol};
use traffic_tests::proxies;

#[test]
fn vless_tcp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::SingBox, Protocol::VlessTcp)
}

#[test]
fn shadowsocks_2022_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::SingBox, Protocol::Shadowsocks2022)
}

#[test]
fn hysteria2_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::SingBox, Protocol::Hysteria2)
}
