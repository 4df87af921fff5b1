//! xray: `traffic-agent compare` beside the far ends' captures and real rules, per protocol.

use anyhow::Result;
use traffic_lab::proxy::{Program, Protocol};
use traffic_tests::proxies;

#[test]
fn vless_tcp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VlessTcp)
}

#[test]
fn vless_tls_vision_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VlessTlsVision)
}

#[test]
fn vmess_ws_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VmessWs)
}

#[test]
fn shadowsocks_2022_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::Shadowsocks2022)
}
