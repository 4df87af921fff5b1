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

#[test]
fn vless_grpc_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VlessGrpc)
}

#[test]
fn vless_xhttp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VlessXhttp)
}

#[test]
fn vless_http_upgrade_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VlessHttpUpgrade)
}

#[test]
fn vmess_tcp_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::VmessTcp)
}

#[test]
fn trojan_tls_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::TrojanTls)
}

#[test]
fn shadowsocks_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::Shadowsocks)
}

#[test]
fn socks_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::Socks)
}

#[test]
fn http_is_counted_to_the_byte() -> Result<()> {
    proxies::check(Program::Xray, Protocol::Http)
}
