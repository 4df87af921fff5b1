//! v2ray: `traffic-agent compare` beside the far ends' captures and real rules, per protocol.

use anyhow::Result;
use traffic_lab::proxy::{Program, Protocol};
use traffic_tests::proxies;

#[test]
fn vmess_tcp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::V2ray, Protocol::VmessTcp)
}

#[test]
fn vmess_ws_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::V2ray, Protocol::VmessWs)
}

#[test]
fn vless_tcp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::V2ray, Protocol::VlessTcp)
}

#[test]
fn shadowsocks_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::V2ray, Protocol::Shadowsocks)
}
