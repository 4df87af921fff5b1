//! What the user asked for: `[NAME=]KIND:VALUE`.
//!
//! Nothing here looks at the machine; `resolve` does.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// The longest name of a target: it is part of pin paths and metric labels.
const NAME_MAX: usize = 32;

/// Suffixes of unit names that have processes of their own; a name without one gets `.service`, as
/// with systemctl.
const UNIT_SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// What to look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A systemd unit, with suffix.
    Unit(String),
    /// A cgroup, by its path from the mount or its directory.
    Cgroup(String),
    /// A container, by name or the beginning of its id.
    Container(String),
    /// All processes of a name.
    Process(String),
    /// The cgroup of a process.
    Pid(i32),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::Container(name) => write!(f, "container:{name}"),
            Self::Process(name) => write!(f, "process:{name}"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

/// One `--target`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    /// The name before `=`, if one was given.
    pub name: Option<String>,
    /// What to look for.
    pub value: Value,
}

impl From<Value> for Selector {
    fn from(value: Value) -> Self {
        Self { name: None, value }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        self.value.fmt(f)
    }
}

/// Why a `--target` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing behind the colon, or nothing at all.
    #[error("target {0:?} is empty; write KIND:VALUE, such as unit:xray.service")]
    Empty(String),
    /// A kind that does not exist.
    #[error(
        "target {text:?} has the unknown kind {kind:?}; use unit:, cgroup:, container:, process: or pid:"
    )]
    UnknownKind {
        /// All of it.
        text: String,
        /// Before the colon.
        kind: String,
    },
    /// Only digits.
    #[error("target {0:?} is a number; for a process id write pid:{0}")]
    Number(String),
    /// A word that could be anything.
    #[error(
        "target {0:?} could be several things; write unit:{0}.service, process:{0} or container:{0}"
    )]
    BareWord(String),
    /// A name that cannot be part of a path or label.
    #[error("target name {0:?} is not valid; use 1 to 32 of a-z, 0-9, - and _")]
    BadName(String),
    /// A process id that is none.
    #[error("process id {0:?} is not valid; write a number from 1 on, such as pid:1234")]
    BadPid(String),
    /// A cgroup path that is none.
    #[error(
        "cgroup path {0:?} is not valid; write it from the mount on, with a leading / and without .."
    )]
    BadPath(String),
    /// A slash in a name.
    #[error("{kind} {value:?} has a slash in it; for a path write cgroup:/{}", value.trim_start_matches('/'))]
    Slash {
        /// unit, container or process.
        kind: &'static str,
        /// As given.
        value: String,
    },
    /// No name can be made of the value.
    #[error("no name can be made of {0}; give one: NAME={0}")]
    Nameless(String),
}

impl FromStr for Selector {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, rest) = split_name(text);
        let name = match name {
            Some(name) if !is_name(name) => return Err(ParseError::BadName(name.to_owned())),
            name => name.map(str::to_owned),
        };
        let selector = Self { name, value: parse_value(text, rest)? };
        if selector.name.is_none() && default_name(&selector.value).is_empty() {
            return Err(ParseError::Nameless(selector.value.to_string()));
        }
        Ok(selector)
    }
}

/// Splits `NAME=` off. A `=` behind a colon or in a path belongs to the value.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.contains([':', '/']) => (Some(name), rest),
        _ => (None, text),
    }
}

fn parse_value(text: &str, value: &str) -> Result<Value, ParseError> {
    let Some((kind, value)) = value.split_once(':').filter(|_| !value.starts_with('/')) else {
        return parse_bare(text, value);
    };
    let plain = |kind, value: &str| match value {
        "" => Err(ParseError::Empty(text.to_owned())),
        _ if value.contains('/') => Err(ParseError::Slash { kind, value: value.to_owned() }),
        _ => Ok(value.to_owned()),
    };
    match kind {
        "unit" => plain("unit", value).map(|name| Value::Unit(with_suffix(name))),
        // Docker itself prints names with a leading slash in places.
        "container" => {
            plain("container", value.strip_prefix('/').unwrap_or(value)).map(Value::Container)
        }
        "process" => plain("process", value).map(Value::Process),
        "cgroup" => parse_path(value),
        "pid" => value
            .parse()
            .ok()
            .filter(|&pid| pid > 0)
            .map(Value::Pid)
            .ok_or_else(|| ParseError::BadPid(value.to_owned())),
        _ => Err(ParseError::UnknownKind { text: text.to_owned(), kind: kind.to_owned() }),
    }
}

fn parse_bare(text: &str, value: &str) -> Result<Value, ParseError> {
    if value.is_empty() {
        Err(ParseError::Empty(text.to_owned()))
    } else if value.starts_with('/') {
        parse_path(value)
    } else if value.bytes().all(|byte| byte.is_ascii_digit()) {
        Err(ParseError::Number(value.to_owned()))
    } else if value.contains('/') {
        Err(ParseError::BadPath(value.to_owned()))
    } else if [".service", ".scope", ".slice"].iter().any(|suffix| value.ends_with(suffix)) {
        Ok(Value::Unit(value.to_owned()))
    } else {
        Err(ParseError::BareWord(value.to_owned()))
    }
}

fn parse_path(value: &str) -> Result<Value, ParseError> {
    if !value.starts_with('/') || value.split('/').any(|part| part == "..") || value.contains('\0')
    {
        return Err(ParseError::BadPath(value.to_owned()));
    }
    let parts: Vec<_> = value.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(Value::Cgroup(format!("/{}", parts.join("/"))))
}

fn with_suffix(name: String) -> String {
    match UNIT_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        true => name,
        false => name + ".service",
    }
}

/// Whether a text can be the name of a target.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// Makes a name of a value: what is left of its last component without the unit's suffix. Empty if
/// nothing is left.
fn default_name(value: &Value) -> String {
    let raw = match value {
        Value::Unit(name) | Value::Container(name) | Value::Process(name) => name.clone(),
        Value::Cgroup(path) if path == "/" => "host".to_owned(),
        Value::Cgroup(path) => path.rsplit('/').next().unwrap_or_default().to_owned(),
        Value::Pid(pid) => format!("pid-{pid}"),
    };
    let stem = UNIT_SUFFIXES.iter().find_map(|suffix| raw.strip_suffix(suffix)).unwrap_or(&raw);
    let mut name = String::new();
    for char in stem.to_ascii_lowercase().chars() {
        match char {
            'a'..='z' | '0'..='9' | '_' => name.push(char),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(NAME_MAX);
    name.trim_end_matches('-').to_owned()
}

/// A target: what is counted as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// Short name: keys pins, history and metrics.
    pub name: String,
    /// What it consists of; never empty.
    pub selectors: Vec<Value>,
}

impl TargetSpec {
    /// The selectors in one text, such as `unit:xray.service,unit:xray2.service`.
    pub fn selector(&self) -> String {
        self.selectors.iter().map(Value::to_string).collect::<Vec<_>>().join(",")
    }

    /// Whether nothing new can be its own without a cgroup that is made. Processes come to cgroups that have been
    /// there all along.
    pub fn is_of_cgroups(&self) -> bool {
        self.selectors.iter().all(|value| match value {
            Value::Unit(_) | Value::Cgroup(_) | Value::Container(_) => true,
            Value::Process(_) | Value::Pid(_) => false,
        })
    }
}

/// Puts selectors under the same explicit name together, in the order of their first appearance.
///
/// A name made from a value is never shared: what looks alike need not be meant as one.
pub fn group(selectors: Vec<Selector>) -> Result<Vec<TargetSpec>, Error> {
    let mut targets: Vec<(TargetSpec, Selector)> = Vec::new();
    for selector in selectors {
        let name = selector.name.clone().unwrap_or_else(|| default_name(&selector.value));
        let Some((target, first)) = targets.iter_mut().find(|(target, _)| target.name == name)
        else {
            let target = TargetSpec { name, selectors: vec![selector.value.clone()] };
            targets.push((target, selector));
            continue;
        };
        if target.selectors.contains(&selector.value) {
            continue;
        }
        if first.name.is_none() || selector.name.is_none() {
            let (first, second) = (Box::new(first.clone()), Box::new(selector));
            return Err(Error::NameCollision { name, first, second });
        }
        target.selectors.push(selector.value);
    }
    Ok(targets.into_iter().map(|(target, _)| target).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Selector, ParseError> {
        text.parse()
    }

    fn grouped(texts: &[&str]) -> Result<Vec<TargetSpec>, Error> {
        group(texts.iter().map(|text| parse(text).unwrap()).collect())
    }

    #[test]
    fn every_form_has_one_canonical_text() {
        for (given, canonical) in [
            ("xray.service", "unit:xray.service"),
            ("unit:xray", "unit:xray.service"),
            ("unit:app=1.scope", "unit:app=1.scope"),
            ("unit:xray.socket", "unit:xray.socket"),
            ("/system.slice//xray.service/", "cgroup:/system.slice/xray.service"),
            ("/a=b:c", "cgroup:/a=b:c"),
            ("cgroup:/a", "cgroup:/a"),
            ("mine=/a", "mine=cgroup:/a"),
            ("container:/xray", "container:xray"),
            ("x_1=process:sing-box", "x_1=process:sing-box"),
            ("pid:007", "pid:7"),
        ] {
            let selector = parse(given).unwrap();
            assert_eq!(selector.to_string(), canonical);
            assert_eq!(parse(canonical).unwrap(), selector);
        }
    }

    #[test]
    fn what_is_not_understood_says_what_to_write() {
        for (given, hint) in [
            ("", "unit:xray.service"),
            ("unit:", "unit:xray.service"),
            ("a=", "unit:xray.service"),
            ("1234", "write pid:1234"),
            ("a=1234", "write pid:1234"),
            ("xray", "unit:xray.service, process:xray or container:xray"),
            ("service:xray", "use unit:, cgroup:"),
            ("pid:0", "pid:1234"),
            ("pid:-1", "pid:1234"),
            ("pid:99999999999", "pid:1234"),
            ("Xray=pid:1", "a-z, 0-9"),
            ("=pid:1", "a-z, 0-9"),
            ("abcdefghijklmnopqrstuvwxyz0123456=pid:1", "1 to 32"),
            ("cgroup:a/b", "leading /"),
            ("cgroup:/a/../b", "without .."),
            ("a/b", "leading /"),
            ("unit:a/b.service", "cgroup:/a/b.service"),
            ("container:/", "KIND:VALUE"),
            ("unit:\u{4e2d}", "NAME=unit:"),
        ] {
            let error = parse(given).unwrap_err().to_string();
            assert!(error.contains(hint), "{given:?}: {error}");
        }
    }

    #[test]
    fn names_are_made_of_values() {
        for (given, name) in [
            ("xray.service", "xray"),
            ("x-ui.service", "x-ui"),
            ("unit:Xray@My..Conf.service", "xray-my-conf"),
            ("/system.slice/sing-box.service", "sing-box"),
            ("cgroup:/", "host"),
            ("pid:12", "pid-12"),
            ("container:docker-x_1", "docker-x_1"),
            ("unit:a123456789b123456789c123456789-d.service", "a123456789b123456789c123456789-d"),
            ("unit:a123456789b123456789c1234567890-d.service", "a123456789b123456789c1234567890"),
        ] {
            assert_eq!(grouped(&[given]).unwrap()[0].name, name);
        }
    }

    #[test]
    fn one_name_makes_one_target() {
        let targets = grouped(&["all=pid:1", "b.service", "all=/x", "all=pid:1"]).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].selector(), "pid:1,cgroup:/x");
        assert_eq!(targets[1].name, "b");
    }

    #[test]
    fn names_that_collide_by_chance_are_refused() {
        let error = grouped(&["xray.service", "process:xray"]).unwrap_err().to_string();
        assert!(error.contains("unit:xray.service and process:xray"), "{error}");
        assert!(error.contains("other=process:xray"), "{error}");
        assert!(grouped(&["xray=pid:1", "process:xray"]).is_err());
        assert_eq!(grouped(&["xray.service", "unit:xray"]).unwrap().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_selector_or_an_error(text in "\\PC*") {
            if let Ok(selector) = parse(&text) {
                proptest::prop_assert_eq!(parse(&selector.to_string()), Ok(selector.clone()));
                let targets = group(vec![selector]).unwrap();
                proptest::prop_assert!(is_name(&targets[0].name));
            }
        }
    }
}
