use std::path::Path;
use std::time::Duration;

use clap::{Args as _, CommandFactory as _, Parser as _};
use proptest::prelude::*;

use super::reload::Changes;
use super::settings::{self, Setting, TARGET_KEYS, name};
use super::source::{Given, Place};
use super::*;
use crate::cli::run::{ConfigCommand, Settings};
use crate::cli::{Cli, Command};
use crate::commands::config::DEFAULT_TEXT;

const FILE: &str = "/c.toml";

fn read(text: &str) -> Result<Loaded, Invalid> {
    parse(Some((Path::new(FILE), text)), &[])
}

/// The configuration with something to count.
fn read_counting(text: &str) -> Result<Config, Invalid> {
    read(&format!("host = true\n{text}")).map(|loaded| loaded.config)
}

fn problems(text: &str) -> Vec<String> {
    let invalid = read(text).expect_err(text);
    invalid.problems.iter().map(ToString::to_string).collect()
}

fn given(setting: Setting, from_environment: bool, words: &[&str]) -> Given {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Given { setting, from_environment, words }
}

fn flag(setting: Setting, word: &str) -> Given {
    given(setting, false, &[word])
}

fn variable(setting: Setting, word: &str) -> Given {
    given(setting, true, &[word])
}

/// All of the default file with its settings in force.
fn uncommented() -> String {
    let active = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with([' ', '#']) => rest.to_owned(),
        _ => line.to_owned(),
    };
    DEFAULT_TEXT.lines().map(active).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_default_file_says_nothing_and_all_it_could_say_is_the_default() {
    let nothing = problems(DEFAULT_TEXT);
    assert!(nothing[0].contains("no target is named"), "{nothing:?}");

    let all = read(&uncommented()).unwrap();
    let [target] = all.config.targets.as_slice() else { panic!("{:?}", all.config.targets) };
    assert_eq!(
        (target.spec.name.as_str(), &*target.spec.selector()),
        ("xray", "unit:xray.service")
    );
    let without = Config { targets: Vec::new(), ..all.config };
    assert_eq!(without, Config::default());
}

#[test]
fn the_default_file_forgets_no_setting_and_its_names() {
    let all = read(&uncommented()).unwrap();
    for (setting, place) in &all.origins {
        assert!(matches!(place, Place::File { .. }), "{} is missing in the file", setting.key);
        for name in [format!("# --{}", setting.flag), setting.variable.to_owned()] {
            assert!(DEFAULT_TEXT.contains(&name), "{name} is missing in the file");
        }
    }
    assert_eq!(all.origins.iter().map(|(it, _)| *it).collect::<Vec<_>>(), settings::ALL);
    let target = &uncommented()[uncommented().find("[[target]]").unwrap()..];
    for key in TARGET_KEYS {
        assert!(target.contains(&format!("\n{key} = ")), "{key} is missing in the file");
    }
}

#[test]
fn every_setting_is_a_flag_and_a_variable_of_run() {
    let mut command = Settings::augment_args(clap::Command::new("run"));
    command.build();
    for setting in settings::ALL {
        let named = |arg: &&clap::Arg| arg.get_long() == Some(setting.flag);
        let arg = command.get_arguments().find(named).expect(setting.flag);
        assert_eq!(arg.get_env(), Some(setting.variable.as_ref()), "{}", setting.flag);
        let is_retention = setting.flag.starts_with("retention");
        assert_eq!(arg.get_help_heading().is_some(), is_retention, "{}", setting.flag);
    }
    let others: Vec<_> = command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|long| !settings::ALL.iter().any(|setting| setting.flag == *long))
        .collect();
    assert_eq!(others, ["config", "help"]);
    Cli::command().debug_assert();
}

#[test]
fn defaults_named_in_the_help_are_those_of_the_type() {
    let help = Settings::augment_args(clap::Command::new("run")).render_long_help().to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let default = Config::default();
    for text in [
        format!("[default: {}]", default.state_dir.display()),
        format!("[default: {}]", default.bpffs.display()),
        format!("[default: {}, Ethernet]", default.link_overhead),
        format!("[default: {}s]", default.flush_interval.as_secs()),
        format!("[default: {}]", default.retention.quarters_days.unwrap()),
        format!("[default: {}]", default.retention.estimates_minutes_days.unwrap()),
        "[default: info]".to_owned(),
    ] {
        assert!(help.contains(&text), "{text} is not in the help");
    }
}

/// Each mistake alone, and what its message has.
#[test]
fn every_mistake_says_where_it_is_and_what_to_write() {
    let target = |line: &str| format!("[[target]]\ntargets = \"unit:a\"\n{line}");
    let table: &[(String, &str)] = &[
        ("intervall = \"5s\"".into(), "/c.toml:1:1: intervall: unknown; did you mean interval?"),
        ("\n  secret = 1".into(), "/c.toml:2:3: secret: unknown; there are target, ports,"),
        (
            "interval = \"0.5s\"".into(),
            "/c.toml:1:12: interval: \"0.5s\" stands where \"auto\" or a time from 1s to 1m",
        ),
        (
            "interval = 61".into(),
            "61 stands where \"auto\" or a time from 1s to 1m, such as \"10s\", is expected",
        ),
        ("interval = [1]".into(), "a list stands where \"auto\" or a time"),
        ("flush_interval = 0".into(), "flush_interval: 0 stands where a time from 1s to 10m"),
        ("flush_interval = \"-5s\"".into(), "\"-5s\" stands where a time"),
        (
            "interval = \"20s\"".into(),
            "/c.toml:1:12: flush_interval: 10s is shorter than the interval, 20s",
        ),
        ("time_zone = \"Europe/Berln\"".into(), "did you mean \"Europe/Berlin\"?"),
        ("time_zone = \"?\"".into(), "time_zone: \"?\" is no time zone that this machine knows"),
        (
            "time_zone = 1".into(),
            "an integer stands where the name of a time zone in quotes is expected",
        ),
        ("host = \"yes\"".into(), "a string stands where true or false is expected"),
        (
            "link_overhead = 257".into(),
            "257 stands where a number of bytes from 0 to 256 is expected",
        ),
        ("link_overhead = -1".into(), "-1 stands where a number of bytes from 0 to 256"),
        ("link_overhead = 14.0".into(), "a fraction stands where a number of bytes"),
        ("link_overhead = \"14\"".into(), "the string \"14\" stands where a number of bytes"),
        ("link_overhead = 99999999999999999999999".into(), "stands where a number of bytes"),
        ("log_level = \"loud\"".into(), "write error, warn, info, debug or trace"),
        ("log_level = 1979-05-27".into(), "a date stands where a level in quotes is expected"),
        ("look_into = \"all\"".into(), "write auto, nothing, processes or namespaces"),
        ("state_dir = \"lib\"".into(), "\"lib\" is not an absolute path; write it from / on"),
        ("state_dir = \"/\"".into(), "write a directory of its own"),
        ("bpffs = \"/sys/../fs\"".into(), "without .."),
        ("bpffs = {}".into(), "a table stands where a path in quotes is expected"),
        (
            "unbilled = [\"wg0\", \"a b\"]".into(),
            "/c.toml:1:20: unbilled: \"a b\" is not the name of an interface",
        ),
        ("unbilled = [\"abcdefghijklmnop\"]".into(), "1 to 15 characters"),
        ("unbilled = true".into(), "a boolean stands where a list of strings is expected"),
        (
            "ports = 443".into(),
            "an integer stands where a list of strings is expected; write [\"443\"]",
        ),
        ("ports = [443]".into(), "an integer stands where a string in quotes is expected"),
        ("ports = [\"http\"]".into(), "a port is a number from 1 to 65535; write 443, tcp/443"),
        ("estimate_ports = [\"icmp/1\"]".into(), "only tcp and udp have ports"),
        (
            "quarters_days = 5".into(),
            "/c.toml:1:1: quarters_days: unknown here; it belongs below [retention]",
        ),
        ("name = \"x\"".into(), "name: unknown here; it belongs below [[target]]"),
        ("retention = 5".into(), "an integer stands where a table is expected; write [retention]"),
        (
            "[retention]\nquarter_days = 5".into(),
            "/c.toml:2:1: retention.quarter_days: unknown; did you mean quarters_days?",
        ),
        (
            "[retention]\nhost = true".into(),
            "unknown below [retention]; it belongs above the first table",
        ),
        (
            "[retention]\nevents_days = 0".into(),
            "0 stands where a number of days from 1 to 36500, or \"forever\", is expected",
        ),
        (
            "[retention]\nevents_days = \"never\"".into(),
            "the string \"never\" stands where a number of days",
        ),
        (
            "[retention]\nquarters_days = \"forever\"\ndays_days = 5".into(),
            "/c.toml:3:13: retention.days_days: 5 is less than quarters_days, forever",
        ),
        (
            "[target]\ntargets = \"unit:a\"".into(),
            "/c.toml:1:1: target: write [[target]], in double brackets",
        ),
        (
            "target = [\"unit:a\"]".into(),
            "a string stands where a table is expected; write [[target]]",
        ),
        ("target = \"unit:a\"".into(), "/c.toml:1:10: target: a string stands where a table"),
        ("[[target]]\nname = \"x\"".into(), "/c.toml:1:1: target: it does not say what to count"),
        (
            "[[target]]\nunit = \"x.service\"".into(),
            "/c.toml:2:1: target.unit: unknown; write targets = [\"unit:x.service\"]",
        ),
        ("[[target]]\nselector = \"x\"".into(), "write targets = [...]"),
        (target("port = 443"), "target.port: unknown; did you mean ports?"),
        (target("prots = 443"), "target.prots: unknown; did you mean ports?"),
        (
            target("log_level = \"info\""),
            "target.log_level: unknown in a target; it belongs above the first [[target]]",
        ),
        (
            target("name = \"Bad Name\""),
            "/c.toml:3:8: target.name: target name \"Bad Name\" is not valid",
        ),
        (target("name = 5"), "target.name: an integer stands where a string in quotes is expected"),
        ("[[target]]\ntargets = []".into(), "target.targets: the list is empty"),
        (
            "[[target]]\ntargets = \"xray\"".into(),
            "could be several things; write unit:xray.service",
        ),
        (
            "[[target]]\ntargets = \"a=unit:b\"".into(),
            "write \"unit:b.service\", and name = \"a\" beside it",
        ),
        (
            "[[target]]\ntargets = \"unit:\u{4e2d}\"".into(),
            "no name can be made of unit:\u{4e2d}.service",
        ),
        (
            "[[target]]\ntargets = [\"unit:a\", \"unit:b\"]".into(),
            "several are counted as one, which needs a name",
        ),
        (
            "[[target]]\ntargets=\"unit:a\"\n[[target]]\ntargets=\"pid:1\"\nname=\"a\"".into(),
            "/c.toml:3:1: target.name: the name \"a\" is that of the target in line 1 too",
        ),
        ("host = ".into(), "/c.toml:1:8: not TOML: "),
        ("host = true\nhost = true".into(), "/c.toml:2:1: not TOML: duplicate key"),
        ("\u{feff}\u{4e2d} = 1".into(), "/c.toml:1:1: not TOML"),
        (
            "# \u{4e2d}\u{6587}\nunbilled = [\"\u{4e2d}\u{6587}\", 1]".into(),
            "/c.toml:2:19: unbilled: an integer",
        ),
        ("".into(), "no target is named, so there is nothing to count"),
    ];
    for (text, expected) in table {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{text:?}: {found:#?}");
        assert!(found[0].contains(expected), "{text:?}:\n{}\nhas no\n{expected}", found[0]);
    }
}

#[test]
fn all_mistakes_are_said_at_once_in_their_order() {
    let text = "hots = true\ninterval = 0\n[[target]]\nname = 1\n[retention]\nx = 1\n";
    let found = problems(text);
    let starts: Vec<_> =
        found.iter().map(|it| it.split(": ").take(2).collect::<Vec<_>>()).collect();
    assert_eq!(
        starts,
        [
            ["/c.toml:1:1", "hots"],
            ["/c.toml:2:12", "interval"],
            ["/c.toml:3:1", "target"],
            ["/c.toml:4:8", "target.name"],
            ["/c.toml:6:1", "retention.x"],
        ]
    );
    let message = read(text).unwrap_err().to_string();
    assert!(
        message.starts_with("the configuration is not valid in 5 places:\n  /c.toml:1:1: hots")
    );
}

#[test]
fn what_is_not_toml_hides_no_other_mistake() {
    let found = problems("host = \nintervall = 5\nlog_level = \"loud\"\nports = [\"x\"\n");
    assert!(found.iter().any(|it| it.contains("intervall: unknown")), "{found:#?}");
    assert!(found.iter().any(|it| it.contains("\"loud\" is no level")), "{found:#?}");
    assert!(found.iter().filter(|it| it.contains("not TOML")).count() >= 2, "{found:#?}");
    // A line is not wrong twice.
    assert_eq!(found.iter().filter(|it| it.starts_with("/c.toml:1:")).count(), 1, "{found:#?}");
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let text = "flush_interval = 20\nhost = true";
    let in_force = |given: &[Given]| {
        let loaded = parse(Some((Path::new(FILE), text)), given).unwrap();
        let (_, place) =
            loaded.origins.iter().find(|(it, _)| *it == name::FLUSH_INTERVAL).unwrap().clone();
        (loaded.config.flush_interval.as_secs(), place.to_string())
    };
    let (by_flag, by_variable) =
        (flag(name::FLUSH_INTERVAL, "40s"), variable(name::FLUSH_INTERVAL, "30s"));
    assert_eq!(in_force(&[]), (20, "/c.toml:1:18".to_owned()));
    assert_eq!(
        in_force(std::slice::from_ref(&by_variable)),
        (30, by_variable.setting.variable.to_owned())
    );
    assert_eq!(in_force(&[by_variable, by_flag]), (40, "--flush-interval".to_owned()));
    let host = flag(name::HOST, "true");
    let default = parse(None, &[host]).unwrap();
    assert_eq!(default.config, Config { host: true, ..Config::default() });
    assert_eq!(default.file, None);
}

#[test]
fn what_is_overridden_must_be_right_too() {
    let given = [flag(name::INTERVAL, "5s"), variable(name::INTERVAL, "x")];
    let invalid = parse(Some((Path::new(FILE), "interval = 0\nhost = true")), &given).unwrap_err();
    let shown: Vec<_> = invalid.problems.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 2);
    assert!(shown[0].starts_with("/c.toml:1:12: interval: 0 stands"), "{shown:?}");
    assert!(shown[1].starts_with("TRAFFIC_AGENT_INTERVAL: \"x\" stands"), "{shown:?}");
}

#[test]
fn values_of_words_need_no_quotes_and_are_checked_as_strictly() {
    for (setting, word, expected) in [
        (name::HOST, "maybe", "--host: \"maybe\" is neither true nor false"),
        (name::LINK_OVERHEAD, "+5", "--link-overhead: \"+5\" stands where"),
        (name::DAYS_DAYS, "0", "--retention-days-days: 0 stands where"),
        (name::TARGETS, "xray", "--target: target \"xray\" could be"),
        (name::PORTS, "0", "--port: port \"0\" is not valid"),
        (name::TIME_ZONE, "Mars", "--time-zone: \"Mars\" is no time zone"),
        (name::STATE_DIR, "x", "--state-dir: \"x\" is not an absolute path"),
    ] {
        let invalid = parse(None, &[flag(setting, word)]).unwrap_err();
        assert!(invalid.problems[0].to_string().starts_with(expected), "{invalid}");
    }
    let collide = given(name::TARGETS, false, &["unit:a", "pid:1", "process:a"]);
    assert!(
        parse(None, &[collide]).unwrap_err().to_string().contains("unit:a.service and process:a")
    );
    let words =
        [flag(name::DAYS_DAYS, "forever"), flag(name::INTERVAL, "auto"), flag(name::HOST, "yes")];
    assert_eq!(parse(None, &words).unwrap().config, Config { host: true, ..Config::default() });
}

#[test]
fn targets_have_their_own_ports_unless_a_flag_says_otherwise() {
    let text = "ports = [\"1\"]\nunbilled = [\"wg0\"]\n[[target]]\ntargets = [\"unit:a\"]\n\
                [[target]]\ntargets = [\"unit:b\", \"pid:7\"]\nname = \"c\"\nports = [\"udp/2\", \"!tcp/3\"]\nunbilled = []\n";
    let shown = |given: &[Given]| -> Vec<String> {
        let loaded = parse(Some((Path::new(FILE), text)), given).unwrap();
        let line = |target: &Target| {
            let ports: Vec<_> = target.ports.0.iter().map(ToString::to_string).collect();
            let selector = target.spec.selector();
            format!(
                "{} {selector} {} {}",
                target.spec.name,
                ports.join(","),
                target.unbilled.join(",")
            )
        };
        loaded.config.targets.iter().map(line).collect()
    };
    assert_eq!(shown(&[]), ["a unit:a.service 1 wg0", "c unit:b.service,pid:7 udp/2,!tcp/3 "]);
    assert_eq!(
        shown(&[variable(name::PORTS, "9")]),
        ["a unit:a.service 9 wg0", "c unit:b.service,pid:7 9 "]
    );
    assert_eq!(shown(&[flag(name::TARGETS, "z=pid:1")]), ["z pid:1 1 wg0"]);
    let both = [variable(name::TARGETS, "pid:2"), flag(name::TARGETS, "z=pid:1")];
    assert_eq!(shown(&both), ["z pid:1 1 wg0"]);
}

#[test]
fn a_value_without_a_name_in_it_may_have_one_beside_it() {
    let loaded = read("[[target]]\nname = \"cn\"\ntargets = [\"unit:\u{4e2d}\"]").unwrap();
    assert_eq!(loaded.config.targets[0].spec.name, "cn");
}

#[test]
fn a_short_flush_interval_shortens_the_longest_pause() {
    let seconds = Duration::from_secs;
    let config = read_counting("flush_interval = \"3s\"").unwrap();
    assert_eq!(config.interval, Sampling { least: seconds(1), most: seconds(3) });
    let config = read_counting("interval = \"2s\"").unwrap();
    assert_eq!(config.interval, Sampling::fixed(seconds(2)));
    let config = read_counting("flush_interval = \"1m\"").unwrap();
    assert_eq!(config.interval, Sampling::AUTO);
}

fn settings_of(words: &[&str]) -> Settings {
    let words = ["traffic-agent", "config", "check"].iter().chain(words);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Config { command: ConfigCommand::Check(args) } => args.settings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_has_the_value_of_the_variable_comes_from_there() {
    let settings = settings_of(&["a.service", "--port", "443", "--port", "udp/1", "--host"]);
    let without = settings.given(&|_| None);
    assert!(without.contains(&given(name::PORTS, false, &["443", "udp/1"])));
    assert!(without.contains(&flag(name::HOST, "true")));
    let with = settings.given(&|variable| match variable {
        "TRAFFIC_AGENT_PORTS" => Some("443,udp/1".to_owned()),
        "TRAFFIC_AGENT_HOST" => Some("false".to_owned()),
        _ => None,
    });
    assert!(with.contains(&given(name::PORTS, true, &["443", "udp/1"])));
    assert!(with.contains(&flag(name::HOST, "true")));
}

#[test]
fn positional_targets_win_over_the_variable_and_add_to_the_option() {
    let targets = |settings: &Settings, variable: Option<&str>| {
        let environment =
            |name: &str| variable.filter(|_| name == "TRAFFIC_AGENT_TARGETS").map(str::to_owned);
        settings.given(&environment).remove(0).words
    };
    let settings = settings_of(&["a.service", "--target", "pid:1"]);
    assert_eq!(targets(&settings, None), ["a.service", "pid:1"]);
    // clap took what the variable says for the option.
    assert_eq!(targets(&settings, Some("pid:1")), ["a.service"]);
}

#[test]
fn an_empty_variable_is_none() {
    let settings = Settings { interval: Some(String::new()), ..Settings::default() };
    assert_eq!(settings.given(&|_| Some(String::new())), []);
    assert_eq!(settings.given(&|_| None).len(), 1);
}

#[test]
fn a_reload_changes_all_but_what_is_open() {
    let old = read_counting("").unwrap();
    let new = read_counting(
        "state_dir = \"/srv\"\nbpffs = \"/bpf\"\ninterval = 5\nlink_overhead = 0\n[retention]\nevents_days = 1\n[[target]]\ntargets = \"unit:a\"",
    )
    .unwrap();
    let (in_force, changes) = old.reloaded(new.clone());
    assert_eq!((&in_force.state_dir, &in_force.bpffs), (&old.state_dir, &old.bpffs));
    assert_eq!(
        Config { state_dir: new.state_dir.clone(), bpffs: new.bpffs.clone(), ..in_force },
        new
    );
    let keys = |settings: &[Setting]| settings.iter().map(|it| it.key).collect::<Vec<_>>();
    assert_eq!(
        keys(&changes.applied),
        ["interval", "link_overhead", "retention.events_days", "target"]
    );
    let message = changes.restart_message().unwrap();
    assert!(
        message.starts_with("state_dir and bpffs cannot change while the agent runs"),
        "{message}"
    );
    assert!(Changes::between(&old, &old).is_empty());
    assert_eq!(Changes::between(&old, &old).restart_message(), None);
}

#[test]
fn a_file_that_is_none_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let message =
        |path: &Path| load(&ConfigFile::Named(path.to_owned()), &[]).unwrap_err().to_string();
    assert!(message(&dir.path().join("missing")).contains("cannot be read: No such file"));
    assert!(message(dir.path()).contains("it is not a regular file"));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(message(&fifo).contains("it is not a regular file"));
    let file = dir.path().join("file");
    std::fs::write(&file, b"host = true\n# caf\xe9").unwrap();
    assert!(message(&file).contains("file:2:6: not UTF-8"), "{}", message(&file));
    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(message(&file).contains("is it the right file?"));
    std::fs::write(&file, "host = true").unwrap();
    assert!(load(&ConfigFile::Named(file), &[]).is_ok());
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC*") {
        let _ = read(&text);
    }

    /// Lines of the default file, cut and put together at random: near to what people write.
    #[test]
    fn any_cut_of_the_default_file_is_a_configuration_or_an_error(
        lines in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..20),
    ) {
        let all = uncommented();
        let all: Vec<&str> = all.lines().collect();
        let cut = lines.iter().map(|(line, end)| {
            let line = line.get(&all);
            line.chars().take(end.index(line.len() + 1)).collect::<String>()
        });
        let text = cut.collect::<Vec<_>>().join("\n");
        if let Err(invalid) = read(&text) {
            prop_assert!(!invalid.problems.is_empty());
            let _ = invalid.to_string();
        }
    }
}
