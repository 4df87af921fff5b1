//! Reads what `nft -j list ruleset` prints.
//!
//! The JSON is walked with `serde_json` and not through the types of the `nftables` crate: those
//! refuse the whole ruleset for one statement they do not know, and one statement that cannot be
//! understood should cost no more than its own rule.

use std::collections::HashMap;

use serde_json::Value;

use super::nft_rule::{self, Objects};
use super::ruleset::{At, Chain, Hook, Ruleset, Table};

/// Parses the JSON; `skip` says which tables (family, name) another program owns and has shown.
///
/// # Errors
///
/// What is no ruleset at all, in words.
pub(crate) fn parse(text: &str, skip: impl Fn(&str, &str) -> bool) -> Result<Ruleset, String> {
    // Nothing printed means nothing there: some versions print no JSON for an empty ruleset.
    if text.trim().is_empty() {
        return Ok(Ruleset::default());
    }
    let json: Value = serde_json::from_str(text).map_err(|error| {
        format!(
            "line {}, column {}: not the JSON it should be: {error}",
            error.line(),
            error.column()
        )
    })?;
    let listed = json
        .get("nftables")
        .and_then(Value::as_array)
        .ok_or("line 1: no list \"nftables\" in it: not a ruleset")?;
    let field = |object: &Value, key: &str| object.get(key)?.as_str().map(str::to_owned);
    let of = |kind: &'static str| listed.iter().filter_map(move |entry| entry.get(kind));

    // Sets, maps and counters first: rules refer to them by name.
    let mut objects: HashMap<(String, String), Objects> = HashMap::new();
    for (kind, object) in
        ["set", "map", "counter"].into_iter().flat_map(|k| of(k).map(move |o| (k, o)))
    {
        let (Some(family), Some(table), Some(name)) =
            (field(object, "family"), field(object, "table"), field(object, "name"))
        else {
            continue;
        };
        let objects = objects.entry((family, table)).or_default();
        if kind == "counter" {
            objects.counters.insert(name, nft_rule::counter_values(object));
        } else {
            let elements =
                object.get("elem").and_then(Value::as_array).cloned().unwrap_or_default();
            objects.sets.insert(name, elements);
        }
    }

    let mut ruleset = Ruleset::default();
    let mut tables: HashMap<(String, String), usize> = HashMap::new();
    let mut table_of = |ruleset: &mut Ruleset, family: &str, name: &str| {
        *tables.entry((family.to_owned(), name.to_owned())).or_insert_with(|| {
            ruleset.tables.push(Table {
                backend: "nft".to_owned(),
                family: family.to_owned(),
                name: name.to_owned(),
                chains: Vec::new(),
            });
            ruleset.tables.len() - 1
        })
    };
    // arp, bridge and netdev count frames, or packets that are not for this host.
    let wanted =
        |family: &str, name: &str| matches!(family, "ip" | "ip6" | "inet") && !skip(family, name);
    for chain in of("chain") {
        let (Some(family), Some(table), Some(name)) =
            (field(chain, "family"), field(chain, "table"), field(chain, "name"))
        else {
            continue;
        };
        if wanted(&family, &table) {
            let index = table_of(&mut ruleset, &family, &table);
            ruleset.tables[index].chains.push(Chain { name, hook: hook(chain), rules: Vec::new() });
        }
    }
    for rule in of("rule") {
        let (Some(family), Some(table), Some(chain)) =
            (field(rule, "family"), field(rule, "table"), field(rule, "chain"))
        else {
            continue;
        };
        if !wanted(&family, &table) {
            continue;
        }
        let index = table_of(&mut ruleset, &family, &table);
        let nothing = Objects::default();
        let objects = objects.get(&(family, table)).unwrap_or(&nothing);
        let chains = &mut ruleset.tables[index].chains;
        if let Some(chain) = chains.iter_mut().find(|known| known.name == chain) {
            chain.rules.push(nft_rule::parse(rule, objects));
        }
    }
    Ok(ruleset)
}

fn hook(chain: &Value) -> Option<Hook> {
    let at = match chain.get("hook")?.as_str()? {
        "prerouting" => At::Prerouting,
        "input" => At::Input,
        "forward" => At::Forward,
        "output" => At::Output,
        "postrouting" => At::Postrouting,
        _ => At::Device,
    };
    let nat = chain.get("type").and_then(Value::as_str) == Some("nat");
    Some(Hook { at, nat, priority: chain.get("prio").and_then(Value::as_i64).unwrap_or(0) })
}
