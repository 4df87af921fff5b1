//! Configurations of sing-box.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Certificate, Configurations, KEY, PASSWORD, PORT, Program, Protocol, SERVER_NAME, SOCKS, USER,
    tag,
};
use crate::topology::addresses;

/// Makes the configurations of both instances.
pub(super) fn configure(
    protocol: Protocol,
    certificate: Option<&Certificate>,
) -> Result<Configurations> {
    let log = json!({ "level": "warn" });
    let mut inbound = server_settings(protocol, certificate)?;
    merge(&mut inbound, json!({ "tag": "in", "listen": "::", "listen_port": PORT }));
    let server = json!({
        "log": log,
        "inbounds": [inbound],
        "outbounds": [{ "type": "direct", "tag": "direct" }],
    });
    let inbounds = SOCKS.map(|(family, port)| {
        json!({
            "type": "socks",
            "tag": tag(family),
            "listen": "127.0.0.1",
            "listen_port": port,
        })
    });
    let mut outbounds = Vec::new();
    for (family, _) in SOCKS {
        let mut outbound = client_settings(protocol, certificate)?;
        let address = addresses(family).proxy_client;
        let tag = format!("to-{}", tag(family));
        merge(&mut outbound, json!({ "tag": tag, "server": address, "server_port": PORT }));
        outbounds.push(outbound);
    }
    let rules = SOCKS.map(|(family, _)| {
        json!({ "inbound": [tag(family)], "outbound": format!("to-{}", tag(family)) })
    });
    let client = json!({
        "log": log,
        "inbounds": inbounds,
        "outbounds": outbounds,
        "route": { "rules": rules },
    });
    Ok(Configurations { server, client })
}

/// Adds the keys of one object to another.
fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

fn server_settings(protocol: Protocol, certificate: Option<&Certificate>) -> Result<Value> {
    Ok(match protocol {
        Protocol::VlessTcp => json!({ "type": "vless", "users": [{ "uuid": USER }] }),
        Protocol::Shadowsocks2022 => json!({
            "type": "shadowsocks",
            "network": "tcp",
            "method": "2022-blake3-aes-128-gcm",
            "password": KEY,
        }),
        Protocol::Hysteria2 => {
            let Certificate { certificate, key } =
                certificate.context("a certificate is needed")?;
            json!({
                "type": "hysteria2",
                "users": [{ "password": PASSWORD }],
                "tls": { "enabled": true, "certificate": certificate, "key": key },
            })
        }
        other => bail!("{} is not asked to speak {other}", Program::SingBox),
    })
}

fn client_settings(protocol: Protocol, certificate: Option<&Certificate>) -> Result<Value> {
    Ok(match protocol {
        Protocol::VlessTcp => json!({ "type": "vless", "uuid": USER }),
        Protocol::Shadowsocks2022 => json!({
            "type": "shadowsocks",
            "network": "tcp",
            "method": "2022-blake3-aes-128-gcm",
            "password": KEY,
        }),
        Protocol::Hysteria2 => {
            let Certificate { certificate, .. } = certificate.context("a certificate is needed")?;
            json!({
                "type": "hysteria2",
                "password": PASSWORD,
                "tls": { "enabled": true, "server_name": SERVER_NAME, "certificate": certificate },
            })
        }
        other => bail!("{} is not asked to speak {other}", Program::SingBox),
    })
}
