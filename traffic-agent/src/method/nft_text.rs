//! Prints a statement of nft's JSON as nft would write it, as far as it is common; else the JSON.

use serde_json::Value;

/// One statement, without the figures of its counter.
pub(crate) fn statement(kind: &str, body: &Value) -> String {
    let field = |key: &str| body.get(key).and_then(Value::as_str);
    match kind {
        "match" => {
            let left = body.get("left").map(expression).unwrap_or_default();
            let right = body.get("right").map(expression).unwrap_or_default();
            match field("op") {
                None | Some("==" | "in") => format!("{left} {right}"),
                Some(operator) => format!("{left} {operator} {right}"),
            }
        }
        "counter" => match body {
            Value::String(name) => format!("counter name \"{name}\""),
            body => match body.get("map") {
                Some(map) => format!("counter name {}", map_of(map)),
                None => "counter".to_owned(),
            },
        },
        "vmap" => map_of(body).replacen(" map ", " vmap ", 1),
        "jump" | "goto" => format!("{kind} {}", field("target").unwrap_or("?")),
        "xt" => {
            format!("xt {} \"{}\"", field("type").unwrap_or("match"), field("name").unwrap_or("?"))
        }
        "limit" => {
            let rate = body.get("rate").and_then(Value::as_u64).unwrap_or(0);
            format!("limit rate {rate}/{}", field("per").unwrap_or("second"))
        }
        _ if body.is_null() => kind.to_owned(),
        _ => format!("{kind} {body}"),
    }
}

fn map_of(map: &Value) -> String {
    let part = |key: &str| map.get(key).map(expression).unwrap_or_default();
    format!("{} map {}", part("key"), part("data"))
}

fn expression(value: &Value) -> String {
    let list = |values: &[Value], separator: &str| {
        values.iter().map(expression).collect::<Vec<_>>().join(separator)
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => list(values, ","),
        Value::Object(object) => match object.iter().next() {
            Some((key, body)) if object.len() == 1 => match (key.as_str(), body) {
                ("payload", body) => {
                    let part = |key| body.get(key).and_then(Value::as_str).unwrap_or("?");
                    format!("{} {}", part("protocol"), part("field"))
                }
                ("meta", body) => {
                    body.get("key").map(|key| meta(&expression(key))).unwrap_or_default()
                }
                ("ct", body) => {
                    format!("ct {}", body.get("key").map(expression).unwrap_or_default())
                }
                ("set", Value::Array(values)) => {
                    // The elements of a map are pairs.
                    let element = |value: &Value| match value {
                        Value::Array(pair) => list(pair, " : "),
                        value => expression(value),
                    };
                    let elements: Vec<_> = values.iter().map(element).collect();
                    format!("{{ {} }}", elements.join(", "))
                }
                ("range", Value::Array(values)) => list(values, "-"),
                ("elem", body) => body.get("val").map(expression).unwrap_or_default(),
                ("prefix", body) => {
                    let part = |key| body.get(key).map(expression).unwrap_or_default();
                    format!("{}/{}", part("addr"), part("len"))
                }
                ("jump" | "goto", body) => {
                    format!("{key} {}", body.get("target").map(expression).unwrap_or_default())
                }
                (key, Value::Null) => key.to_owned(),
                _ => value.to_string(),
            },
            _ => value.to_string(),
        },
        value => value.to_string(),
    }
}

/// Some keys are written without the word `meta`.
fn meta(key: &str) -> String {
    match key {
        "iif" | "iifname" | "oif" | "oifname" => key.to_owned(),
        key => format!("meta {key}"),
    }
}
