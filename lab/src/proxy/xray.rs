//! Configurations of xray and v2ray, which share their format.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    Certificate, Configurations, KEY, PASSWORD, PORT, Program, Protocol, SERVER_NAME, SOCKS, USER,
    tag,
};
use crate::packet::Family;
use crate::topology::addresses;

/// Makes the configurations of both instances.
pub(super) fn configure(
    program: Program,
    protocol: Protocol,
    certificate: Option<&Certificate>,
) -> Result<Configurations> {
    let name = match protocol {
        Protocol::VlessTcp
        | Protocol::VlessTlsVision
        | Protocol::VlessGrpc
        | Protocol::VlessXhttp
        | Protocol::VlessHttpUpgrade => "vless",
        Protocol::VmessTcp | Protocol::VmessWs => "vmess",
        Protocol::TrojanTls => "trojan",
        Protocol::Shadowsocks | Protocol::Shadowsocks2022 => "shadowsocks",
        Protocol::Socks => "socks",
        Protocol::Http => "http",
        Protocol::Hysteria2 => bail!("{program} has no {protocol}"),
    };
    let log = json!({ "loglevel": "warning" });
    let server = json!({
        "log": log,
        "inbounds": [{
            "listen": "::",
            "port": PORT,
            "protocol": name,
            "settings": server_settings(name, protocol),
            "streamSettings": stream(protocol, certificate, true),
        }],
        "outbounds": [{ "protocol": "freedom" }],
    });
    let inbounds = SOCKS.map(|(family, port)| {
        json!({
            "tag": tag(family),
            "listen": "127.0.0.1",
            "port": port,
            "protocol": "socks",
            "settings": { "auth": "noauth", "udp": false },
        })
    });
    let outbounds = SOCKS.map(|(family, _)| {
        json!({
            "tag": format!("to-{}", tag(family)),
            "protocol": name,
            "settings": client_settings(name, protocol, family),
            "streamSettings": stream(protocol, certificate, false),
        })
    });
    let rules = SOCKS.map(|(family, _)| {
        json!({
            "type": "field",
            "inboundTag": [tag(family)],
            "outboundTag": format!("to-{}", tag(family)),
        })
    });
    let client = json!({
        "log": log,
        "inbounds": inbounds,
        "outbounds": outbounds,
        "routing": { "domainStrategy": "AsIs", "rules": rules },
    });
    Ok(Configurations { server, client })
}

/// The flow of a VLESS user; the empty one is "none".
fn flow(protocol: Protocol) -> &'static str {
    if protocol == Protocol::VlessTlsVision { "xtls-rprx-vision" } else { "" }
}

/// Method and password of Shadowsocks.
fn cipher(protocol: Protocol) -> (&'static str, &'static str) {
    match protocol {
        Protocol::Shadowsocks2022 => ("2022-blake3-aes-128-gcm", KEY),
        _ => ("aes-128-gcm", PASSWORD),
    }
}

fn server_settings(name: &str, protocol: Protocol) -> Value {
    match name {
        "vless" => json!({
            "clients": [{ "id": USER, "flow": flow(protocol) }],
            "decryption": "none",
        }),
        "vmess" => json!({ "clients": [{ "id": USER, "alterId": 0 }] }),
        "trojan" => json!({ "clients": [{ "password": PASSWORD }] }),
        "socks" => json!({ "auth": "noauth", "udp": false }),
        "http" => json!({}),
        _ => {
            let (method, password) = cipher(protocol);
            json!({ "method": method, "password": password, "network": "tcp" })
        }
    }
}

fn client_settings(name: &str, protocol: Protocol, family: Family) -> Value {
    let address = addresses(family).proxy_client;
    match name {
        "vless" => {
            let user = json!({ "id": USER, "flow": flow(protocol), "encryption": "none" });
            json!({ "vnext": [{ "address": address, "port": PORT, "users": [user] }] })
        }
        "vmess" => {
            let user = json!({ "id": USER, "alterId": 0, "security": "aes-128-gcm" });
            json!({ "vnext": [{ "address": address, "port": PORT, "users": [user] }] })
        }
        "trojan" => {
            json!({ "servers": [{ "address": address, "port": PORT, "password": PASSWORD }] })
        }
        "socks" | "http" => json!({ "servers": [{ "address": address, "port": PORT }] }),
        _ => {
            let (method, password) = cipher(protocol);
            let server = json!({
                "address": address, "port": PORT, "method": method, "password": password,
            });
            json!({ "servers": [server] })
        }
    }
}

fn stream(protocol: Protocol, certificate: Option<&Certificate>, server: bool) -> Value {
    let at_path = json!({ "path": "/lab" });
    match protocol {
        Protocol::VmessWs => return json!({ "network": "ws", "wsSettings": at_path }),
        Protocol::VlessXhttp => return json!({ "network": "xhttp", "xhttpSettings": at_path }),
        Protocol::VlessHttpUpgrade => {
            return json!({ "network": "httpupgrade", "httpupgradeSettings": at_path });
        }
        Protocol::VlessGrpc => {
            return json!({ "network": "grpc", "grpcSettings": { "serviceName": "lab" } });
        }
        _ => {}
    }
    let Some(Certificate { certificate, key }) = certificate else {
        return json!({ "network": "tcp" });
    };
    let tls = if server {
        json!({ "certificates": [{ "certificate": certificate, "key": key }] })
    } else {
        // "verify": to be trusted, instead of not looking at certificates at all, which newer
        // versions refuse.
        json!({
            "serverName": SERVER_NAME,
            "disableSystemRoot": true,
            "certificates": [{ "usage": "verify", "certificate": certificate }],
        })
    };
    json!({ "network": "tcp", "security": "tls", "tlsSettings": tls })
}
