//! One rule of `nft -j list ruleset`: its statements in order, what they match and where they lead.

use std::collections::HashMap;

use serde_json::Value;

use super::ports::PortSet;
use super::ruleset::{Counter, Matching, Rule, Verdict, states};

/// What the rules of a table refer to by name.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// Elements of sets and maps.
    pub(crate) sets: HashMap<String, Vec<Value>>,
    /// Packets and bytes.
    pub(crate) counters: HashMap<String, (u64, u64)>,
}

/// Packets and bytes of a counter object; 0 where one is missing.
pub(crate) fn counter_values(counter: &Value) -> (u64, u64) {
    let number = |key| counter.get(key).and_then(Value::as_u64).unwrap_or(0);
    (number("packets"), number("bytes"))
}

/// Reads a rule. A counter counts what the statements *in front of* it let through.
pub(crate) fn parse(rule: &Value, objects: &Objects) -> Rule {
    let mut matching = Matching::everything();
    let mut counters = Vec::new();
    let mut exits = Vec::new();
    let mut text = Vec::new();
    let statements = rule.get("expr").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (kind, body) in
        statements.iter().filter_map(|statement| statement.as_object()?.iter().next())
    {
        text.push(super::nft_text::statement(kind, body));
        match kind.as_str() {
            "match" => {
                if !apply(&mut matching, body, objects) {
                    matching.narrowed.push(super::nft_text::statement(kind, body));
                }
            }
            "counter" => counters.extend(parse_counter(&matching, body, objects)),
            "accept" | "queue" | "tproxy" | "snat" | "dnat" | "masquerade" | "redirect" | "fwd" => {
                exits.push((matching.clone(), Verdict::Accept));
            }
            "drop" | "reject" | "synproxy" => exits.push((matching.clone(), Verdict::Drop)),
            "return" | "jump" | "goto" => {
                exits.extend(verdict(kind, body).map(|v| (matching.clone(), v)))
            }
            "vmap" => exits.extend(verdict_map(&matching, body, objects)),
            // These let every packet through.
            "log" | "mangle" | "notrack" | "continue" | "dup" | "flow" | "ct helper"
            | "ct timeout" | "ct expectation" | "secmark" | "last" => {}
            // limit, quota, `ct count`, a set update, an xtables match: an unknown part goes on.
            _ => matching.narrowed.push(super::nft_text::statement(kind, body)),
        }
    }
    let occurrence = rule.get("handle").and_then(Value::as_u64);
    let occurrence = occurrence.and_then(|handle| usize::try_from(handle).ok()).unwrap_or(0);
    let comment = rule.get("comment").and_then(Value::as_str);
    text.extend(comment.map(|comment| format!("comment \"{comment}\"")));
    Rule { text: text.join(" "), occurrence, counters, exits }
}

fn parse_counter(matching: &Matching, body: &Value, objects: &Objects) -> Vec<Counter> {
    let named = |matching: Matching, name: &str| {
        let &(packets, bytes) = objects.counters.get(name)?;
        Some(Counter { matching, name: Some(name.to_owned()), packets, bytes })
    };
    if let Some(name) = body.as_str() {
        return named(matching.clone(), name).into_iter().collect();
    }
    if let Some(map) = body.get("map") {
        // `counter name tcp dport map { 443 : "https" }`: each element has its own.
        let Some(key) = map.get("key") else { return Vec::new() };
        return elements(map.get("data"), objects)
            .iter()
            .filter_map(|element| {
                let pair = element.as_array()?;
                let mut matching = matching.clone();
                let understood = compare(&mut matching, "==", key, pair.first()?, objects);
                if !understood {
                    matching.narrowed.push("a map".to_owned());
                }
                named(matching, pair.get(1)?.as_str()?)
            })
            .collect();
    }
    let (packets, bytes) = counter_values(body);
    vec![Counter { matching: matching.clone(), name: None, packets, bytes }]
}

fn verdict(kind: &str, body: &Value) -> Option<Verdict> {
    let target = || body.get("target").and_then(Value::as_str).map(str::to_owned);
    match kind {
        "accept" | "queue" => Some(Verdict::Accept),
        "drop" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        _ => None,
    }
}

fn verdict_map(matching: &Matching, body: &Value, objects: &Objects) -> Vec<(Matching, Verdict)> {
    let Some(key) = body.get("key") else { return Vec::new() };
    elements(body.get("data"), objects)
        .iter()
        .filter_map(|element| {
            let pair = element.as_array()?;
            let (kind, target) = pair.get(1)?.as_object()?.iter().next()?;
            let mut matching = matching.clone();
            let value = pair.first()?;
            if !compare(
                &mut matching,
                if key.get("ct").is_some() { "in" } else { "==" },
                key,
                value,
                objects,
            ) {
                matching.narrowed.push("a verdict map".to_owned());
            }
            Some((matching, verdict(kind, target)?))
        })
        .collect()
}

/// The elements of an anonymous set or map, or of the named one that `@name` refers to.
fn elements(value: Option<&Value>, objects: &Objects) -> Vec<Value> {
    match value {
        Some(Value::String(name)) => {
            let known = name.strip_prefix('@').and_then(|name| objects.sets.get(name));
            known.cloned().unwrap_or_default()
        }
        Some(value) => match value.get("set").unwrap_or(value) {
            Value::Array(elements) => elements.clone(),
            single => vec![single.clone()],
        },
        None => Vec::new(),
    }
}

/// Applies a `match`; false if it is not understood.
fn apply(matching: &mut Matching, body: &Value, objects: &Objects) -> bool {
    let operator = body.get("op").and_then(Value::as_str).unwrap_or("==");
    match (body.get("left"), body.get("right")) {
        (Some(left), Some(right)) => compare(matching, operator, left, right, objects),
        _ => false,
    }
}

fn compare(
    matching: &mut Matching,
    operator: &str,
    left: &Value,
    right: &Value,
    objects: &Objects,
) -> bool {
    let key = |kind: &str| left.get(kind)?.get("key")?.as_str();
    let negated = match operator {
        "==" | "in" => false,
        "!=" => true,
        "<" | ">" | "<=" | ">=" if left.get("payload").is_some() => false,
        _ => return false,
    };
    if let Some(payload) = left.get("payload") {
        let part = |key: &str| payload.get(key).and_then(Value::as_str).unwrap_or("");
        return match (part("protocol"), part("field")) {
            (transport @ ("tcp" | "udp" | "th"), field @ ("sport" | "dport")) => {
                let Some(ports) = ports(operator, right, objects) else { return false };
                // The match on the protocol itself is not printed: it is implied.
                match transport {
                    "tcp" => matching.protocol(6, false),
                    "udp" => matching.protocol(17, false),
                    _ => {}
                }
                if field == "dport" {
                    matching.destination = matching.destination.and(&ports);
                } else {
                    matching.source = matching.source.and(&ports);
                }
                true
            }
            ("ip", "protocol") => {
                matching.families.v6 = false;
                protocols(matching, right, negated, objects)
            }
            ("ip6", "nexthdr") => {
                matching.families.v4 = false;
                protocols(matching, right, negated, objects)
            }
            ("ip", _) => {
                matching.families.v6 = false;
                false
            }
            ("ip6", _) => {
                matching.families.v4 = false;
                false
            }
            ("tcp", _) => {
                matching.protocol(6, false);
                false
            }
            ("udp", _) => {
                matching.protocol(17, false);
                false
            }
            _ => false,
        };
    }
    match (key("meta"), key("ct")) {
        (Some("l4proto"), _) => protocols(matching, right, negated, objects),
        (Some("nfproto" | "protocol"), _) => match right.as_str() {
            Some("ipv4" | "ip") => family(matching, !negated),
            Some("ipv6" | "ip6") => family(matching, negated),
            _ => false,
        },
        (Some("iifname" | "iif" | "oifname" | "oif"), _) if matching.interface.is_none() => {
            let Some(name) = right.as_str().filter(|name| !name.starts_with('@')) else {
                return false;
            };
            matching.interface = Some(format!("{}{name}", if negated { "!" } else { "" }));
            true
        }
        (_, Some("state")) => {
            let names = elements_or_single(right, objects);
            let Some(names) = names.iter().map(Value::as_str).collect::<Option<Vec<_>>>() else {
                return false;
            };
            let Some(named) = states(names, negated) else { return false };
            matching.states = Some(match &matching.states {
                Some(before) => before & &named,
                None => named,
            });
            true
        }
        _ => false,
    }
}

fn family(matching: &mut Matching, v4: bool) -> bool {
    if v4 {
        matching.families.v6 = false;
    } else {
        matching.families.v4 = false;
    }
    true
}

/// Keeps the protocols of a list, or all others.
fn protocols(matching: &mut Matching, right: &Value, negated: bool, objects: &Objects) -> bool {
    let named = elements_or_single(right, objects);
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64().and_then(|number| u8::try_from(number).ok()),
        Value::String(name) => match name.as_str() {
            "tcp" => Some(6),
            "udp" => Some(17),
            // Which other protocol it is makes no difference.
            name if !name.starts_with('@') => Some(name.parse().unwrap_or(255)),
            _ => None,
        },
        _ => None,
    };
    let Some(numbers) = named.iter().map(number).collect::<Option<Vec<_>>>() else { return false };
    let has = |wanted: u8| numbers.contains(&wanted) != negated;
    matching.tcp &= has(6);
    matching.udp &= has(17);
    matching.other &= negated || numbers.iter().any(|number| !matches!(number, 6 | 17));
    true
}

fn elements_or_single(value: &Value, objects: &Objects) -> Vec<Value> {
    match value {
        Value::String(name) if !name.starts_with('@') => vec![value.clone()],
        value => elements(Some(value), objects),
    }
}

/// The ports for which a comparison holds; `None` if it is not understood.
fn ports(operator: &str, right: &Value, objects: &Objects) -> Option<PortSet> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    if let Some(bound) = port(right) {
        return Some(match operator {
            "==" | "in" => PortSet::of([(bound, bound)]),
            "!=" => PortSet::of([(bound, bound)]).complement(),
            "<" => PortSet::of(bound.checked_sub(1).map(|last| (0, last))),
            ">" => PortSet::of(bound.checked_add(1).map(|first| (first, u16::MAX))),
            "<=" => PortSet::of([(0, bound)]),
            ">=" => PortSet::of([(bound, u16::MAX)]),
            _ => return None,
        });
    }
    let single = |value: &Value| {
        // An element with a comment, a timeout or a counter of its own is wrapped.
        let value = value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value);
        match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
            Some([first, last]) => Some((port(first)?, port(last)?)),
            Some(_) => None,
            None => port(value).map(|port| (port, port)),
        }
    };
    if let Value::String(name) = right {
        // A set that is not in the listing may hold anything.
        objects.sets.get(name.strip_prefix('@')?)?;
    }
    let ranges = elements(Some(right), objects).iter().map(single).collect::<Option<Vec<_>>>()?;
    let ports = PortSet::of(ranges);
    match operator {
        "==" | "in" => Some(ports),
        "!=" => Some(ports.complement()),
        _ => None,
    }
}
