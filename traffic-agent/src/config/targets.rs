//! The targets of the file, and those of flags and environment.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Target;
use super::read::{Reader, string};
use super::settings::name;
use super::source::{Place, Written, lookup, type_of};
use crate::target::{PortFilter, Selector, TargetSpec, group, selector};

/// What targets have that do not say otherwise, and what they have whatever they say.
#[derive(Debug)]
pub struct Common<T> {
    /// The value.
    pub value: T,
    /// Whether flag or environment gave it: then it is for all.
    pub overrides: bool,
}

impl<T: Clone> Common<T> {
    fn or_own(&self, own: Option<T>) -> T {
        match own {
            Some(own) if !self.overrides => own,
            _ => self.value.clone(),
        }
    }
}

/// [`Common`] values of all that a target may say itself.
#[derive(Debug)]
pub struct Defaults {
    pub(super) ports: Common<PortFilter>,
    pub(super) estimate_ports: Common<PortFilter>,
    pub(super) unbilled: Common<Vec<String>>,
}

impl Defaults {
    fn target(
        &self,
        spec: TargetSpec,
        ports: Option<PortFilter>,
        estimate_ports: Option<PortFilter>,
        unbilled: Option<Vec<String>>,
    ) -> Target {
        Target {
            spec,
            ports: self.ports.or_own(ports),
            estimate_ports: self.estimate_ports.or_own(estimate_ports),
            unbilled: self.unbilled.or_own(unbilled),
        }
    }
}

/// Reads the targets that flags or the environment name.
pub fn given(reader: &mut Reader<'_>, written: &Written<'_>, defaults: &Defaults) -> Vec<Target> {
    let key = "";
    let mut selectors = Vec::new();
    for (place, text) in reader.list(key, written).unwrap_or_default() {
        match text.parse::<Selector>() {
            Ok(selector) => selectors.push(selector),
            Err(error) => reader.complain(place, key, error.to_string()),
        }
    }
    match group(selectors) {
        Ok(specs) => {
            specs.into_iter().map(|spec| defaults.target(spec, None, None, None)).collect()
        }
        Err(error) => {
            reader.complain(written.place.clone(), key, error.to_string());
            Vec::new()
        }
    }
}

/// Reads the targets of the file.
pub fn of_file(
    reader: &mut Reader<'_>,
    root: &DeTable<'_>,
    defaults: &Defaults,
) -> Vec<(Place, Target)> {
    let Some(value) = lookup(root, name::TARGETS.key) else { return Vec::new() };
    let place = reader.text.place(value.span().start);
    let mut targets: Vec<(Place, Target)> = Vec::new();
    match value.get_ref() {
        DeValue::Array(entries) => {
            for entry in entries {
                let place = reader.text.place(entry.span().start);
                match entry.get_ref() {
                    DeValue::Table(table) => {
                        let Some(target) = one(reader, &place, table, defaults) else { continue };
                        add(reader, &mut targets, place, target);
                    }
                    other => not_a_table(reader, place, other),
                }
            }
        }
        other => not_a_table(reader, place, other),
    }
    targets
}

fn not_a_table(reader: &mut Reader<'_>, place: Place, found: &DeValue<'_>) {
    let message = match found {
        DeValue::Table(_) => {
            "write [[target]], in double brackets: there may be several".to_owned()
        }
        other => format!(
            "{} stands where a table is expected; write [[target]] on a line of its own, and \
             targets = [\"unit:xray.service\"] below",
            type_of(other)
        ),
    };
    reader.complain(place, "target", message);
}

fn add(reader: &mut Reader<'_>, targets: &mut Vec<(Place, Target)>, place: Place, target: Target) {
    let name = &target.spec.name;
    let Some((first, _)) = targets.iter().find(|(_, other)| other.spec.name == *name) else {
        targets.push((place, target));
        return;
    };
    let line = match first {
        Place::File { line, .. } => line.to_string(),
        other => other.to_string(),
    };
    let message = format!(
        "the name {name:?} is that of the target in line {line} too; names key the history and must \
         differ: give one, such as name = \"{name}-2\""
    );
    reader.complain(place, "target.name", message);
}

/// What the names of selectors say to those who write them as keys.
const KINDS: [&str; 7] = ["unit", "cgroup", "container", "process", "pid", "selector", "selectors"];

fn one(
    reader: &mut Reader<'_>,
    place: &Place,
    table: &DeTable<'_>,
    defaults: &Defaults,
) -> Option<Target> {
    let before = reader.problems.len();
    let written = |reader: &Reader<'_>, key: &str| -> Option<(String, Written<'_>)> {
        let value: &Spanned<DeValue<'_>> = lookup(table, key)?;
        Some((format!("target.{key}"), reader.text.written(value)))
    };
    let name = written(reader, "name").and_then(|(key, written)| {
        let name = reader.one(&key, &written, string)?;
        if !selector::is_name(&name) {
            let error = selector::ParseError::BadName(name);
            reader.complain(written.place, &key, error.to_string());
            return None;
        }
        Some(name)
    });
    let ports = written(reader, "ports").and_then(|(key, written)| reader.ports(&key, &written));
    let estimate_ports =
        written(reader, "estimate_ports").and_then(|(key, written)| reader.ports(&key, &written));
    let unbilled =
        written(reader, "unbilled").and_then(|(key, written)| reader.interfaces(&key, &written));
    let spec = match written(reader, "targets") {
        Some((key, written)) => spec(reader, &key, &written, name),
        None => {
            // A key that says it otherwise is refused as unknown, and tells what to write.
            if !KINDS.iter().any(|kind| lookup(table, kind).is_some()) {
                let message =
                    "it does not say what to count; write targets = [\"unit:xray.service\"]";
                reader.complain(place.clone(), "target", message);
            }
            None
        }
    };
    let target = defaults.target(spec?, ports, estimate_ports, unbilled);
    (reader.problems.len() == before).then_some(target)
}

fn spec(
    reader: &mut Reader<'_>,
    key: &str,
    written: &Written<'_>,
    name: Option<String>,
) -> Option<TargetSpec> {
    let before = reader.problems.len();
    let mut selectors: Vec<Selector> = Vec::new();
    for (place, text) in reader.list(key, written)? {
        match text.parse::<Selector>() {
            Ok(Selector { name: None, value }) => {
                selectors.push(Selector { name: name.clone(), value });
            }
            Ok(Selector { name: Some(name), value }) => {
                let message = format!(
                    "{text:?} has a name in it; write \"{value}\", and name = \"{name}\" beside it"
                );
                reader.complain(place, key, message);
            }
            // A name of the table's own is no reason to refuse a value that none can be made of.
            Err(selector::ParseError::Nameless(_)) if name.is_some() => {
                let named = format!("{}={text}", name.as_deref().unwrap_or_default());
                selectors.extend(named.parse::<Selector>());
            }
            Err(error) => reader.complain(place, key, error.to_string()),
        }
    }
    if reader.problems.len() > before {
        return None;
    }
    if selectors.is_empty() {
        let message = "the list is empty; write targets = [\"unit:xray.service\"]";
        reader.complain(written.place.clone(), key, message);
        return None;
    }
    let specs = group(selectors).unwrap_or_default();
    match <[TargetSpec; 1]>::try_from(specs) {
        Ok([spec]) => Some(spec),
        Err(_) => {
            let message = "several are counted as one, which needs a name; write name = \"...\" \
                           beside them, or a [[target]] for each";
            reader.complain(written.place.clone(), key, message);
            None
        }
    }
}

/// What to write instead of a key that does not exist, where it is known better than by its letters.
pub fn advice(key: &str, written: &DeValue<'_>) -> Option<String> {
    let value = written.as_str().unwrap_or("...");
    match key {
        "selector" | "selectors" => Some("write targets = [...]".to_owned()),
        kind if KINDS.contains(&kind) => Some(format!("write targets = [\"{kind}:{value}\"]")),
        _ => None,
    }
}
