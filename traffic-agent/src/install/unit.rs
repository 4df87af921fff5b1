//! What systemd knows of a unit: `systemctl show` read, and whether the unit can be moved. Pure.

use std::collections::BTreeMap;

/// The properties that are asked for.
pub const PROPERTIES: &str = "Id,LoadState,ActiveState,UnitFileState,FragmentPath,DropInPaths,Slice,\
    ControlGroup,Transient,CPUWeight,StartupCPUWeight,IOWeight,StartupIOWeight,MemoryMin,MemoryLow";

/// What counts between the children of a slice: moved into a slice of its own, the unit would no longer be
/// weighed against those it is weighed against now, so the slice gets the same. A protection of memory holds
/// no further than that of the slices above.
const BETWEEN_SIBLINGS: [&str; 6] =
    ["CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight", "MemoryMin", "MemoryLow"];

/// A unit as systemd has loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name, and not an alias.
    pub id: String,
    /// Whether it runs, or is about to.
    pub active: bool,
    /// Its slice now.
    pub slice: String,
    /// Its cgroup, from the mount; empty unless it runs.
    pub control_group: String,
    /// Files that change it.
    pub drop_ins: Vec<String>,
    /// Settings that count between siblings.
    pub weights: Vec<(&'static str, String)>,
}

/// Why a unit cannot get a slice of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such unit.
    #[error(
        "there is no unit {0}; `systemctl list-units --type=service` lists those that are loaded. A \
         container: `traffic-agent install --container NAME`"
    )]
    Missing(String),
    /// A unit of a user's own manager.
    #[error(
        "{unit} is a unit of a user ({cgroup}), and that user's systemd alone can move it: write \
         [Service] Slice={slice} with `systemctl --user edit {unit}`, restart it, and count unit:{slice}"
    )]
    OfUser {
        /// As asked for.
        unit: String,
        /// Where it was found.
        cgroup: String,
        /// A slice for it.
        slice: String,
    },
    /// Forbidden to start.
    #[error("{0} is masked, so it never runs; `systemctl unmask {0}` first")]
    Masked(String),
    /// Not loaded for another reason.
    #[error("systemd cannot load {unit} ({state}); see `systemctl status {unit}`")]
    Broken {
        /// The unit.
        unit: String,
        /// LoadState.
        state: String,
    },
    /// Without an instance there is no process.
    #[error("{0} is a template and has no processes; name an instance, such as {example}", example = .0.replace("@.", "@NAME."))]
    Template(String),
    /// A slice, scope, socket...
    #[error(
        "{0} is no service, and only services are moved; count it where it is: write \
         targets = [\"unit:{0}\"] into /etc/traffic-agent/config.toml"
    )]
    NoService(String),
    /// Made by systemd-run.
    #[error(
        "{0} was started by a program and has no file that a drop-in would outlive; start it in a slice of \
         its own: systemd-run --slice=NAME.slice"
    )]
    Transient(String),
}

/// Refuses what is known from the name alone.
pub fn check_name(unit: &str) -> Result<(), Refusal> {
    if unit.contains("@.") {
        return Err(Refusal::Template(unit.to_owned()));
    }
    if !unit.ends_with(".service") {
        return Err(Refusal::NoService(unit.to_owned()));
    }
    Ok(())
}

/// Adds the suffix that systemctl adds.
pub fn with_suffix(unit: &str) -> String {
    let known = [
        ".service",
        ".slice",
        ".scope",
        ".socket",
        ".target",
        ".mount",
        ".automount",
        ".swap",
        ".path",
        ".timer",
        ".device",
    ];
    match known.iter().any(|suffix| unit.ends_with(suffix)) {
        true => unit.to_owned(),
        false => format!("{unit}.service"),
    }
}

/// Reads `systemctl show --property=PROPERTIES`.
pub fn read(asked: &str, text: &str) -> Result<Unit, Refusal> {
    let all: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| all.get(name).copied().unwrap_or_default();
    match get("LoadState") {
        "loaded" => {}
        "not-found" => return Err(Refusal::Missing(asked.to_owned())),
        "masked" => return Err(Refusal::Masked(asked.to_owned())),
        state => {
            return Err(Refusal::Broken { unit: asked.to_owned(), state: state.to_owned() });
        }
    }
    let id = get("Id").to_owned();
    if get("Transient") == "yes" {
        return Err(Refusal::Transient(id));
    }
    let is_set = |value: &&str| !matches!(*value, "" | "[not set]" | "infinity" | "0");
    let weights = BETWEEN_SIBLINGS.into_iter().filter_map(|name| {
        let value = Some(get(name)).filter(is_set)?;
        // 2^64 - 1 is "not set" to older ones.
        (value != "18446744073709551615").then(|| (name, value.to_owned()))
    });
    Ok(Unit {
        active: matches!(get("ActiveState"), "active" | "activating" | "reloading"),
        slice: get("Slice").to_owned(),
        control_group: get("ControlGroup").to_owned(),
        drop_ins: get("DropInPaths").split_whitespace().map(str::to_owned).collect(),
        weights: weights.collect(),
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADED: &str = "Id=xray.service\nLoadState=loaded\nActiveState=active\n\
        FragmentPath=/etc/systemd/system/xray.service\nDropInPaths=/a.conf /b.conf\nSlice=system.slice\n\
        ControlGroup=/system.slice/xray.service\nTransient=no\nCPUWeight=500\nIOWeight=[not set]\n\
        MemoryLow=0\nMemoryMin=1048576\n";

    #[test]
    fn a_running_unit_is_read() {
        let unit = read("xray.service", LOADED).unwrap();
        assert_eq!(unit.id, "xray.service");
        assert!(unit.active);
        assert_eq!(unit.drop_ins, ["/a.conf", "/b.conf"]);
        let weights = [("CPUWeight", "500".to_owned()), ("MemoryMin", "1048576".to_owned())];
        assert_eq!(unit.weights, weights);
    }

    #[test]
    fn each_unit_that_cannot_be_moved_has_its_reason() {
        let state = |state: &str| {
            let text = LOADED.replace("LoadState=loaded", &format!("LoadState={state}"));
            read("xray.service", &text).unwrap_err().to_string()
        };
        assert!(state("not-found").contains("there is no unit xray.service"));
        assert!(state("masked").contains("systemctl unmask xray.service"));
        assert!(state("bad-setting").contains("bad-setting"));
        let transient = LOADED.replace("Transient=no", "Transient=yes");
        assert!(read("xray.service", &transient).unwrap_err().to_string().contains("systemd-run"));
        let template = check_name("xray@.service").unwrap_err().to_string();
        assert!(template.contains("xray@NAME.service"), "{template}");
        assert!(check_name("xray.socket").unwrap_err().to_string().contains("no service"));
        assert_eq!(check_name(&with_suffix("xray@1")), Ok(()));
    }
}
