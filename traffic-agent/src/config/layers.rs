//! Flags above the environment above the file above the defaults.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::read::{self, Reader};
use super::settings::{self, Setting, keys_of, name, nearest};
use super::source::{Given, Place, Text, Value, Written, lookup, type_of};
use super::targets::{self, Common, Defaults};
use super::{Config, Invalid, Loaded};
use crate::history::Retention;

/// Makes a configuration of the file's text and what was given besides. Pure, but for time zones, which
/// are this machine's.
pub fn parse(file: Option<(&Path, &str)>, given: &[Given]) -> Result<Loaded, Invalid> {
    let (path, text) = file.unwrap_or((Path::new(super::DEFAULT_FILE), ""));
    let text = Text::new(path, text.strip_prefix('\u{feff}').unwrap_or(text));
    let (root, errors) = DeTable::parse_recoverable(text.text());
    let root = root.get_ref();
    let mut layers =
        Layers { root, given, reader: Reader { text, problems: Vec::new() }, origins: Vec::new() };
    let config = layers.config();
    unknown_keys(&mut layers.reader, root, "");
    // A mistake is the likelier reason.
    if config.targets.is_empty() && !config.host && layers.reader.problems.is_empty() {
        layers.reader.complain(Place::Nowhere, "", nothing_to_count(path));
    }
    let Layers { reader: Reader { mut problems, .. }, mut origins, .. } = layers;

    // What the parser has put in place of what it did not understand is no second mistake.
    let broken: Vec<_> = errors.iter().map(|error| text.problem(error)).collect();
    let line = |place: &Place| match place {
        Place::File { line, .. } => Some(*line),
        _ => None,
    };
    if !broken.is_empty() {
        problems.retain(|problem| {
            problem.place != Place::Nowhere
                && !broken.iter().any(|it| line(&it.place) == line(&problem.place))
        });
        problems.extend(broken);
    }
    if problems.is_empty() {
        let order = |setting: &Setting| settings::ALL.iter().position(|it| it == setting);
        origins.sort_by_key(|(setting, _)| order(setting));
        return Ok(Loaded { config, origins, file: file.map(|(path, _)| path.to_owned()) });
    }
    problems.sort();
    problems.dedup();
    Err(Invalid { problems })
}

struct Layers<'a> {
    root: &'a DeTable<'a>,
    given: &'a [Given],
    reader: Reader<'a>,
    origins: Vec<(Setting, Place)>,
}

impl<'a> Layers<'a> {
    /// Reads a setting wherever it is written, since a mistake is one also where something else is in
    /// force; returns what is.
    fn take<T>(
        &mut self,
        setting: Setting,
        mut read: impl FnMut(&mut Reader<'a>, &str, &Written<'_>) -> Option<T>,
        default: T,
    ) -> T {
        let mut in_force = None;
        let given = self.given.iter().filter(|given| given.setting == setting);
        // Flags first.
        let mut given: Vec<&Given> = given.collect();
        given.sort_by_key(|given| given.from_environment);
        for given in given {
            let written = given.written();
            // The place is the name already.
            let value = read(&mut self.reader, "", &written);
            in_force = in_force.or(value.map(|value| (value, written.place)));
        }
        if let Some(value) = lookup(self.root, setting.key) {
            let written = self.reader.text.written(value);
            let value = read(&mut self.reader, setting.key, &written);
            in_force = in_force.or(value.map(|value| (value, written.place)));
        }
        let (value, place) = in_force.unwrap_or((default, Place::Nowhere));
        self.origins.push((setting, place));
        value
    }

    fn one<T>(
        &mut self,
        setting: Setting,
        read: fn(&Value<'_>) -> Result<T, String>,
        default: T,
    ) -> T {
        self.take(setting, |reader, key, written| reader.one(key, written, read), default)
    }

    /// Where the value in force comes from.
    fn origin(&self, setting: Setting) -> Place {
        let found = self.origins.iter().find(|(it, _)| *it == setting);
        found.map_or(Place::Nowhere, |(_, place)| place.clone())
    }

    fn overrides(&self, setting: Setting) -> bool {
        matches!(self.origin(setting), Place::Flag(_) | Place::Environment(_))
    }

    fn config(&mut self) -> Config {
        let default = Config::default();
        let interval = self.one(name::INTERVAL, read::sampling, default.interval);
        let flush_interval =
            self.one(name::FLUSH_INTERVAL, read::flush_interval, default.flush_interval);
        let unbilled = self.take(name::UNBILLED, Reader::interfaces, default.unbilled);
        let mut config = Config {
            state_dir: self.one(name::STATE_DIR, read::path, default.state_dir),
            bpffs: self.one(name::BPFFS, read::path, default.bpffs),
            interval,
            flush_interval,
            time_zone: self.one(name::TIME_ZONE, read::time_zone, default.time_zone),
            host: self.one(name::HOST, read::boolean, default.host),
            unbilled,
            link_overhead: self.one(
                name::LINK_OVERHEAD,
                read::link_overhead,
                default.link_overhead,
            ),
            log_level: self.one(name::LOG_LEVEL, read::log_level, default.log_level),
            look_into: self.one(name::LOOK_INTO, read::look_into, default.look_into),
            retention: self.retention(default.retention),
            targets: Vec::new(),
        };
        config.targets = self.targets(&config.unbilled);
        self.check_intervals(&mut config);
        config
    }

    fn retention(&mut self, default: Retention) -> Retention {
        let retention = Retention {
            quarters_days: self.one(name::QUARTERS_DAYS, read::days, default.quarters_days),
            days_days: self.one(name::DAYS_DAYS, read::days, default.days_days),
            events_days: self.one(name::EVENTS_DAYS, read::days, default.events_days),
            estimates_minutes_days: self.one(
                name::ESTIMATES_MINUTES_DAYS,
                read::days,
                default.estimates_minutes_days,
            ),
            estimates_quarters_days: self.one(
                name::ESTIMATES_QUARTERS_DAYS,
                read::days,
                default.estimates_quarters_days,
            ),
        };
        let shown = |days: Option<u32>| days.map_or("forever".to_owned(), |days| days.to_string());
        let days = retention.days_days.unwrap_or(u32::MAX);
        if days < retention.quarters_days.unwrap_or(u32::MAX) {
            let message = format!(
                "{} is less than quarters_days, {}: days are cut from quarters and kept at least as long",
                shown(retention.days_days),
                shown(retention.quarters_days)
            );
            let place = self.origin(name::DAYS_DAYS);
            self.reader.complain(place, name::DAYS_DAYS.key, message);
        }
        retention
    }

    fn targets(&mut self, unbilled: &[String]) -> Vec<super::Target> {
        let ports = self.take(name::PORTS, Reader::ports, Default::default());
        let estimate_ports = self.take(name::ESTIMATE_PORTS, Reader::ports, Default::default());
        let defaults = Defaults {
            ports: Common { value: ports, overrides: self.overrides(name::PORTS) },
            estimate_ports: Common {
                value: estimate_ports,
                overrides: self.overrides(name::ESTIMATE_PORTS),
            },
            unbilled: Common {
                value: unbilled.to_vec(),
                overrides: self.overrides(name::UNBILLED),
            },
        };
        let of_file = targets::of_file(&mut self.reader, self.root, &defaults);
        let given: Vec<&Given> =
            self.given.iter().filter(|given| given.setting == name::TARGETS).collect();
        let mut in_force = None;
        for given in [false, true].into_iter().flat_map(|environment| {
            given.iter().filter(move |given| given.from_environment == environment)
        }) {
            let written = given.written();
            let targets = targets::given(&mut self.reader, &written, &defaults);
            in_force.get_or_insert((targets, written.place));
        }
        let first = of_file.first().map_or(Place::Nowhere, |(place, _)| place.clone());
        let (targets, place) = in_force
            .unwrap_or_else(|| (of_file.into_iter().map(|(_, target)| target).collect(), first));
        self.origins.push((name::TARGETS, place));
        targets
    }

    /// A flush writes what was sampled.
    fn check_intervals(&mut self, config: &mut Config) {
        if config.interval == super::Sampling::AUTO {
            config.interval.most = config.interval.most.min(config.flush_interval);
        } else if config.interval.least > config.flush_interval {
            let shown = crate::units::format_duration;
            let message = format!(
                "{} is shorter than the interval, {}: there would be nothing to write",
                shown(config.flush_interval),
                shown(config.interval.least)
            );
            let place = match self.origin(name::FLUSH_INTERVAL) {
                Place::Nowhere => self.origin(name::INTERVAL),
                place => place,
            };
            self.reader.complain(place, name::FLUSH_INTERVAL.key, message);
        }
    }
}

fn nothing_to_count(file: &Path) -> String {
    format!(
        "no target is named, so there is nothing to count: name one on the command line, such as \
         `traffic-agent run xray.service`, or in {}:\n    [[target]]\n    targets = \
         [\"unit:xray.service\"]",
        file.display()
    )
}

/// Refuses keys that do not exist, with the one that was meant.
fn unknown_keys(reader: &mut Reader<'_>, table: &DeTable<'_>, under: &str) {
    let known = keys_of(under);
    for (key, value) in table.iter() {
        let word = key.get_ref().as_ref();
        if known.contains(&word) {
            below(reader, word, value);
            continue;
        }
        let place = reader.text.place(key.span().start);
        let full = if under.is_empty() { word.to_owned() } else { format!("{under}.{word}") };
        let message = advice(under, word, value.get_ref()).unwrap_or_else(|| {
            match nearest(word, known.iter().copied()) {
                Some(near) => format!("unknown; did you mean {near}?"),
                None => format!("unknown; there are {}", known.join(", ")),
            }
        });
        reader.complain(place, &full, message);
    }
}

fn below(reader: &mut Reader<'_>, key: &str, value: &Spanned<DeValue<'_>>) {
    match (key, value.get_ref()) {
        ("retention", DeValue::Table(table)) => unknown_keys(reader, table, key),
        ("retention", other) => {
            let place = reader.text.place(value.span().start);
            let message = format!(
                "{} stands where a table is expected; write [retention] on a line of its own, and \
                 quarters_days = 800 below",
                type_of(other)
            );
            reader.complain(place, key, message);
        }
        ("target", DeValue::Array(entries)) => {
            for table in entries.iter().filter_map(|entry| entry.get_ref().as_table()) {
                unknown_keys(reader, table, key);
            }
        }
        _ => {}
    }
}

/// What to write instead, where the letters of the key do not tell.
fn advice(under: &str, key: &str, value: &DeValue<'_>) -> Option<String> {
    let meant = |table: &str| {
        let in_table = keys_of(table).contains(&key);
        let shown = if table == "target" { "[[target]]" } else { "[retention]" };
        in_table.then(|| format!("unknown here; it belongs below {shown}"))
    };
    match under {
        "" => meant("retention").or_else(|| meant("target")),
        "target" => {
            targets::advice(key, value).map(|advice| format!("unknown; {advice}")).or_else(|| {
                let above = keys_of("").contains(&key) || keys_of("retention").contains(&key);
                above.then(|| {
                    "unknown in a target; it belongs above the first [[target]]".to_owned()
                })
            })
        }
        _ => {
            let above = keys_of("").contains(&key);
            above.then(|| format!("unknown below [{under}]; it belongs above the first table"))
        }
    }
}
