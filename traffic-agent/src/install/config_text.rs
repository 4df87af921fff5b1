//! The target of an installed unit in the text of `config.toml`: added and taken out again, every other byte
//! left alone, comments included. Pure.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::target::{Selector, Value, group};

/// The file when there was none.
const HEADER: &str = "# What traffic-agent counts. Check it with `traffic-agent config check`.\n";

/// Why the text cannot take the target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no TOML.
    #[error(
        "it is not understood, so nothing is added to it: {0}; see `traffic-agent config check`"
    )]
    NotToml(String),
    /// The name belongs to something else.
    #[error(
        "its target {name:?} is something else ({selectors}); give that one another name, or put \
         \"{wanted}\" in its place"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// What it is.
        selectors: String,
        /// What it should be.
        wanted: String,
    },
}

/// The text with a target for the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// All of it.
    pub text: String,
    /// What stood in the place of the slice: the unit itself, as it was written.
    pub replaced: Option<String>,
}

/// Makes the unit's target the slice, or adds one. `text`: none if there is no file.
pub fn add(text: Option<&str>, unit: &str, slice: &str) -> Result<Edited, Refusal> {
    let text = text.unwrap_or(HEADER);
    let targets = targets(text)?;
    let elements = || targets.iter().flat_map(|target| &target.elements);
    let find = |name: &str| {
        elements().find(|element| element.value.as_ref() == Some(&Value::Unit(name.to_owned())))
    };
    if find(slice).is_some() {
        return Ok(Edited { text: text.to_owned(), replaced: None });
    }
    if let Some(element) = find(unit) {
        let replaced = Some(text[element.place.clone()].to_owned());
        return Ok(Edited { text: replace(text, &element.place, &literal(slice)), replaced });
    }
    let name = target_name(unit);
    if let Some(target) = targets.iter().find(|target| target.name.as_deref() == Some(&name)) {
        let selectors = target.elements.iter().map(|element| &text[element.place.clone()]);
        let selectors = selectors.collect::<Vec<_>>().join(", ");
        return Err(Refusal::NameTaken { name, selectors, wanted: format!("unit:{slice}") });
    }
    let (begin, end) = marks(unit);
    let block =
        format!("{begin}[[target]]\nname = \"{name}\"\ntargets = [{}]\n{end}", literal(slice));
    Ok(Edited { text: format!("{text}{block}"), replaced: None })
}

/// Undoes [`add`]. None if nothing is left but what it had written. `replaced`: as it said then.
pub fn remove(
    text: &str,
    unit: &str,
    slice: &str,
    replaced: Option<&str>,
) -> Result<Option<String>, Refusal> {
    let (begin, end) = marks(unit);
    let block = text.find(&begin).and_then(|from| {
        let to = text[from..].find(&end)? + from + end.len();
        Some(from..to)
    });
    if let Some(block) = block {
        let rest = replace(text, &block, "");
        return Ok((rest != HEADER).then_some(rest));
    }
    let slice = Value::Unit(slice.to_owned());
    let targets = targets(text)?;
    let mut elements = targets.iter().flat_map(|target| &target.elements);
    let own = format!("\"unit:{unit}\"");
    let rest = match elements.find(|element| element.value.as_ref() == Some(&slice)) {
        Some(element) => replace(text, &element.place, replaced.unwrap_or(&own)),
        None => text.to_owned(),
    };
    Ok(Some(rest))
}

/// Whether an agent with this configuration has anything to count.
pub fn has_targets(text: &str) -> bool {
    let host = DeTable::parse(text).is_ok_and(|root| {
        matches!(root.get_ref().get("host").map(Spanned::get_ref), Some(DeValue::Boolean(true)))
    });
    host || targets(text).is_ok_and(|targets| !targets.is_empty())
}

/// The name of the target: the one that the unit has without a slice, so that its history goes on.
fn target_name(unit: &str) -> String {
    let specs = group(vec![Selector::from(Value::Unit(unit.to_owned()))]);
    specs.ok().and_then(|specs| specs.into_iter().next()).map_or_else(String::new, |one| one.name)
}

/// What is around an added target. The line end in front ends a last line that has none.
fn marks(unit: &str) -> (String, String) {
    let begin = format!(
        "\n# traffic-agent install {unit}: until `traffic-agent uninstall --unit {unit}`\n"
    );
    (begin, format!("# traffic-agent install {unit}: end\n"))
}

/// A selector as TOML. Backslashes, which names of slices have, stand for themselves between single quotes.
fn literal(slice: &str) -> String {
    match slice.contains('\\') {
        true => format!("'unit:{slice}'"),
        false => format!("\"unit:{slice}\""),
    }
}

fn replace(text: &str, place: &Range<usize>, by: &str) -> String {
    format!("{}{by}{}", &text[..place.start], &text[place.end..])
}

/// One `[[target]]`.
struct Target {
    name: Option<String>,
    elements: Vec<Element>,
}

/// One element of its `targets`.
struct Element {
    place: Range<usize>,
    value: Option<Value>,
}

/// The targets as far as they are understood; what else is wrong is said by `config check`.
fn targets(text: &str) -> Result<Vec<Target>, Refusal> {
    let root =
        DeTable::parse(text).map_err(|error| Refusal::NotToml(error.message().to_owned()))?;
    let root = root.into_inner();
    let Some(DeValue::Array(all)) = root.get("target").map(Spanned::get_ref) else {
        return Ok(Vec::new());
    };
    let tables = all.iter().filter_map(|one| match one.get_ref() {
        DeValue::Table(table) => Some(target(table)),
        _ => None,
    });
    Ok(tables.collect())
}

fn target(table: &DeTable<'_>) -> Target {
    let elements: Vec<Element> = match table.get("targets").map(Spanned::get_ref) {
        Some(DeValue::Array(all)) => all.iter().map(element).collect(),
        _ => Vec::new(),
    };
    let name = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) => Some(name.to_string()),
        _ => elements.iter().find_map(|element| {
            let specs = group(vec![Selector::from(element.value.clone()?)]).ok()?;
            Some(specs.into_iter().next()?.name)
        }),
    };
    Target { name, elements }
}

fn element(one: &Spanned<DeValue<'_>>) -> Element {
    let value = match one.get_ref() {
        DeValue::String(text) => text.parse::<Selector>().ok().map(|selector| selector.value),
        _ => None,
    };
    Element { place: one.span(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: &str = "system-xray_traffic.slice";

    fn round_trip(text: Option<&str>) -> String {
        let edited = add(text, "xray.service", SLICE).unwrap();
        let again = add(Some(&edited.text), "xray.service", SLICE).unwrap();
        assert_eq!(again.text, edited.text, "a second time changes nothing");
        let back = remove(&edited.text, "xray.service", SLICE, edited.replaced.as_deref()).unwrap();
        assert_eq!(back.as_deref(), text);
        edited.text
    }

    #[test]
    fn a_target_is_added_and_taken_out_to_the_byte() {
        let added = "[[target]]\nname = \"xray\"\ntargets = [\"unit:system-xray_traffic.slice\"]\n";
        assert!(round_trip(None).contains(added));
        for text in
            ["", "# mine", "host = true\n", "[[target]]\ntargets = ['pid:7']", "[retention]\n\n"]
        {
            assert!(round_trip(Some(text)).contains(added), "{text}");
        }
    }

    #[test]
    fn the_units_own_target_moves_to_the_slice_and_keeps_its_name() {
        let text = "[[target]]\nname = \"proxy\" # mine\ntargets = [ 'xray.service', \"pid:7\" ]\n";
        let edited = round_trip(Some(text));
        let expected = text.replace("'xray.service'", "\"unit:system-xray_traffic.slice\"");
        assert_eq!(edited, expected);
    }

    #[test]
    fn names_with_backslashes_are_understood_again() {
        let slice = r"system-x\x2dui_traffic.slice";
        let edited = add(None, "x-ui.service", slice).unwrap().text;
        assert_eq!(add(Some(&edited), "x-ui.service", slice).unwrap().text, edited);
        assert!(edited.contains("name = \"x-ui\""), "{edited}");
    }

    #[test]
    fn another_target_of_that_name_is_not_touched() {
        for text in [
            "[[target]]\nname = 'xray'\ntargets = ['pid:7']\n",
            "[[target]]\ntargets = ['process:xray']\n",
        ] {
            let error = add(Some(text), "xray.service", SLICE).unwrap_err().to_string();
            assert!(error.contains("something else"), "{error}");
        }
        let error = add(Some("a = "), "xray.service", SLICE).unwrap_err().to_string();
        assert!(error.contains("config check"), "{error}");
    }

    #[test]
    fn a_configuration_counts_something_or_nothing() {
        assert!(has_targets("host = true\n"));
        assert!(has_targets("[[target]]\ntargets = ['pid:1']\n"));
        assert!(!has_targets("host = false\n# [[target]]\n"));
    }

    #[test]
    fn two_units_are_taken_out_in_any_order() {
        let one = add(None, "a.service", "a_traffic.slice").unwrap().text;
        let both = add(Some(&one), "b.service", "b_traffic.slice").unwrap().text;
        let left = remove(&both, "a.service", "a_traffic.slice", None).unwrap().unwrap();
        assert!(left.contains("name = \"b\"") && !left.contains("name = \"a\""));
        assert_eq!(remove(&left, "b.service", "b_traffic.slice", None).unwrap(), None);
        assert_eq!(remove(&both, "b.service", "b_traffic.slice", None).unwrap(), Some(one));
    }
}
