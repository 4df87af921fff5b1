//! Values from what was written: each reader says what it expected, and where.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use log::LevelFilter;
use toml::de::DeValue;

use super::settings::nearest;
use super::source::{Place, Problem, Text, Value, Written, type_of};
use super::{LookInto, Sampling};
use crate::target::{PortFilter, ports::PortRule};
use crate::units;

/// The shortest pause between two samples, and the longest.
const INTERVAL: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// The shortest and the longest time between two flushes.
const FLUSH_INTERVAL: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(600)];
/// More days than anybody keeps: a hundred years.
const DAYS_MOST: u32 = 36_500;
/// More bytes in front of an IP packet than any link has.
const LINK_OVERHEAD_MOST: u32 = 256;
/// The longest name of an interface: IFNAMSIZ without its zero.
const INTERFACE_NAME_MAX: usize = 15;
/// What stands for no limit.
const FOREVER: &str = "forever";

/// Reads values, and collects what is wrong with them.
#[derive(Debug)]
pub struct Reader<'a> {
    /// To say where something is in the file.
    pub text: Text<'a>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// A value that was read, or why not.
type Read<T> = Result<T, String>;

impl Reader<'_> {
    /// Adds a problem.
    pub fn complain(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.problems.push(Problem { place, key: key.to_owned(), message: message.into() });
    }

    /// Reads one value.
    pub fn one<T>(
        &mut self,
        key: &str,
        written: &Written<'_>,
        read: fn(&Value<'_>) -> Read<T>,
    ) -> Option<T> {
        let value = read(&written.value);
        value.map_err(|message| self.complain(written.place.clone(), key, message)).ok()
    }

    /// Reads the strings of a list, each with its place. One string is a list of one.
    pub fn list(&mut self, key: &str, written: &Written<'_>) -> Option<Vec<(Place, String)>> {
        match &written.value {
            Value::Words(words) => {
                Some(words.iter().map(|word| (written.place.clone(), word.clone())).collect())
            }
            Value::Toml(DeValue::String(text)) => {
                Some(vec![(written.place.clone(), text.clone().into_owned())])
            }
            Value::Toml(DeValue::Array(entries)) => {
                let entries = self.text.entries(entries);
                let read: Vec<_> = entries
                    .into_iter()
                    .map(|entry| Some((entry.place.clone(), self.one(key, &entry, string)?)))
                    .collect();
                read.into_iter().collect()
            }
            Value::Toml(other) => {
                let message = format!(
                    "{} stands where a list of strings is expected, such as [\"...\"]",
                    type_of(other)
                );
                self.complain(written.place.clone(), key, message);
                None
            }
        }
    }

    /// Reads a list of ports.
    pub fn ports(&mut self, key: &str, written: &Written<'_>) -> Option<PortFilter> {
        // A number alone is a port in both protocols.
        if let Value::Toml(DeValue::Integer(number)) = &written.value {
            let message = format!(
                "an integer stands where a list of strings is expected; write [\"{number}\"]"
            );
            self.complain(written.place.clone(), key, message);
            return None;
        }
        let mut rules = Vec::new();
        let before = self.problems.len();
        for (place, text) in self.list(key, written)? {
            match text.trim().parse::<PortRule>() {
                Ok(rule) => rules.push(rule),
                Err(error) => self.complain(place, key, error.to_string()),
            }
        }
        (self.problems.len() == before).then_some(PortFilter(rules))
    }

    /// Reads a list of interfaces.
    pub fn interfaces(&mut self, key: &str, written: &Written<'_>) -> Option<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let before = self.problems.len();
        for (place, text) in self.list(key, written)? {
            // As dev_valid_name() of the kernel has it.
            let is_name = (1..=INTERFACE_NAME_MAX).contains(&text.len())
                && !matches!(text.as_str(), "." | "..")
                && !text.contains(|char: char| {
                    char == '/' || char == ':' || char.is_whitespace() || char.is_control()
                });
            if !is_name {
                let message = format!(
                    "{text:?} is not the name of an interface; write 1 to {INTERFACE_NAME_MAX} \
                     characters without space, / and :, such as wg0"
                );
                self.complain(place, key, message);
            } else if !names.contains(&text) {
                names.push(text);
            }
        }
        (self.problems.len() == before).then_some(names)
    }
}

fn single(words: &[String]) -> Read<&str> {
    match words {
        [] => Err("a value is missing".to_owned()),
        [word] => Ok(word),
        several => Err(format!("one value is expected, and {} are given", several.len())),
    }
}

/// A string.
pub fn string(value: &Value<'_>) -> Read<String> {
    text(value, "a string in quotes").map(str::to_owned)
}

fn text<'v>(value: &'v Value<'v>, expected: &str) -> Read<&'v str> {
    match value {
        Value::Words(words) => single(words),
        Value::Toml(DeValue::String(text)) => Ok(text),
        Value::Toml(other) => {
            Err(format!("{} stands where {expected} is expected", type_of(other)))
        }
    }
}

/// A boolean.
pub fn boolean(value: &Value<'_>) -> Read<bool> {
    match value {
        Value::Toml(DeValue::Boolean(yes)) => Ok(*yes),
        Value::Toml(other) => {
            Err(format!("{} stands where true or false is expected", type_of(other)))
        }
        Value::Words(words) => match single(words)? {
            "true" | "yes" | "1" => Ok(true),
            "false" | "no" | "0" => Ok(false),
            other => Err(format!("{other:?} is neither true nor false")),
        },
    }
}

fn integer(value: &Value<'_>, expected: &str) -> Read<u32> {
    let wrong = |found: &str| format!("{found} stands where {expected} is expected");
    match value {
        Value::Toml(DeValue::Integer(number)) => {
            u32::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| wrong(&number.to_string()))
        }
        Value::Toml(DeValue::String(text)) => Err(wrong(&format!("the string {text:?}"))),
        Value::Toml(other) => Err(wrong(type_of(other))),
        Value::Words(words) => {
            let word = single(words)?;
            // `parse` alone would also take `+5`.
            let plain = word.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| word.parse().ok()).flatten().ok_or_else(|| wrong(&format!("{word:?}")))
        }
    }
}

/// Bytes in front of each packet.
pub fn link_overhead(value: &Value<'_>) -> Read<u32> {
    let expected = format!("a number of bytes from 0 to {LINK_OVERHEAD_MOST}");
    match integer(value, &expected)? {
        bytes @ 0..=LINK_OVERHEAD_MOST => Ok(bytes),
        other => Err(format!("{other} stands where {expected} is expected")),
    }
}

/// How many days something is kept; `None` for ever.
pub fn days(value: &Value<'_>) -> Read<Option<u32>> {
    let forever = match value {
        Value::Toml(DeValue::String(text)) => text == FOREVER,
        Value::Words(words) => words == &[FOREVER],
        Value::Toml(_) => false,
    };
    if forever {
        return Ok(None);
    }
    let expected = format!("a number of days from 1 to {DAYS_MOST}, or {FOREVER:?},");
    match integer(value, &expected)? {
        days @ 1..=DAYS_MOST => Ok(Some(days)),
        other => Err(format!("{other} stands where {expected} is expected")),
    }
}

/// An absolute path.
pub fn path(value: &Value<'_>) -> Read<PathBuf> {
    let text = text(value, "a path in quotes")?;
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is not an absolute path; write it from / on"));
    }
    if path == Path::new("/") || text.split('/').any(|part| part == "..") || text.contains('\0') {
        return Err(format!("{text:?} cannot be used; write a directory of its own, without .."));
    }
    // Without doubled and closing slashes, so that one directory has one name.
    Ok(path.components().collect())
}

/// A time within limits.
fn duration(value: &Value<'_>, [least, most]: [Duration; 2], also: &str) -> Read<Duration> {
    let expected = format!(
        "{also}a time from {} to {}, such as \"10s\",",
        units::format_duration(least),
        units::format_duration(most)
    );
    let (shown, read) = match value {
        Value::Toml(DeValue::Integer(number)) => (number.to_string(), number.to_string()),
        Value::Toml(DeValue::String(text)) => (format!("{text:?}"), text.clone().into_owned()),
        Value::Toml(other) => (type_of(other).to_owned(), String::new()),
        Value::Words(words) => single(words).map(|word| (format!("{word:?}"), word.to_owned()))?,
    };
    units::parse_duration(&read)
        .filter(|duration| (least..=most).contains(duration))
        .ok_or_else(|| format!("{shown} stands where {expected} is expected"))
}

/// How often to sample.
pub fn sampling(value: &Value<'_>) -> Read<Sampling> {
    let auto = match value {
        Value::Toml(DeValue::String(text)) => text == "auto",
        Value::Words(words) => words == &["auto"],
        Value::Toml(_) => false,
    };
    match auto {
        true => Ok(Sampling::AUTO),
        false => duration(value, INTERVAL, "\"auto\" or ").map(Sampling::fixed),
    }
}

/// How often to flush.
pub fn flush_interval(value: &Value<'_>) -> Read<Duration> {
    duration(value, FLUSH_INTERVAL, "")
}

/// A time zone.
pub fn time_zone(value: &Value<'_>) -> Read<TimeZone> {
    let name = text(value, "the name of a time zone in quotes")?;
    if name == "system" {
        return Ok(TimeZone::system());
    }
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> =
            jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect();
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.len() <= 1 => {
                "this machine knows none: install the package tzdata, or write \"UTC\"".to_owned()
            }
            None => "write a name such as \"Europe/Berlin\", \"UTC\" or \"system\"".to_owned(),
        };
        format!("{name:?} is no time zone that this machine knows; {hint}")
    })
}

/// What to log.
pub fn log_level(value: &Value<'_>) -> Read<LevelFilter> {
    let word = text(value, "a level in quotes")?;
    match word {
        "error" => Ok(LevelFilter::Error),
        "warn" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "trace" => Ok(LevelFilter::Trace),
        _ => Err(format!("{word:?} is no level; write error, warn, info, debug or trace")),
    }
}

/// What to look into.
pub fn look_into(value: &Value<'_>) -> Read<LookInto> {
    let word = text(value, "a word in quotes")?;
    let known = LookInto::WORDS.iter().find(|(it, _)| *it == word).map(|(_, it)| *it);
    known.ok_or_else(|| {
        format!("{word:?} is not known; write auto, nothing, processes or namespaces")
    })
}
