//! The name of the slice that a unit gets for itself. Pure.
//!
//! A slice's place in the tree is its name: `a-b.slice` is a child of `a.slice`, whatever its file says. The
//! new one is a child of the slice that the unit is in already, so that what is configured there still holds
//! for it, and so that a service of `system.slice` does not become that slice's equal.

/// Ends the name, so that no slice is met that systemd makes itself: instances of `xray@.service` are in
/// `system-xray.slice`.
const SUFFIX: &str = "_traffic";

/// The slice that is the root of the tree.
const ROOT: &str = "-.slice";

/// The longest name that systemd takes, less the zero at its end: `UNIT_NAME_MAX`, src/basic/unit-name.h.
const LONGEST: usize = 255;

/// Returns the name for a unit that is in the slice `parent`; none if that would be too long.
pub fn name(parent: &str, unit: &str) -> Option<String> {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let parent = match parent {
        ROOT => "",
        parent => parent.strip_suffix(".slice").unwrap_or(parent),
    };
    let dash = if parent.is_empty() { "" } else { "-" };
    let name = format!("{parent}{dash}{}{SUFFIX}.slice", escape(stem));
    (name.len() <= LONGEST).then_some(name)
}

/// Escapes as systemd-escape does. A dash would nest, an `@` would make it an instance.
fn escape(text: &str) -> String {
    let byte = |(index, byte): (usize, u8)| match byte {
        b'.' if index == 0 => "\\x2e".to_owned(),
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("\\x{byte:02x}"),
    };
    text.bytes().enumerate().map(byte).collect()
}

/// The slice that a slice is in; none for the root.
pub fn parent(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    match stem.rsplit_once('-') {
        Some(("", "")) => None,
        Some((above, _)) => Some(format!("{above}.slice")),
        None => Some(ROOT.to_owned()),
    }
}

/// Its cgroup, from the mount.
pub fn cgroup(slice: &str) -> String {
    let mut lineage = Vec::new();
    let mut next = Some(slice.to_owned());
    while let Some(one) = next.filter(|one| one != ROOT) {
        next = parent(&one);
        lineage.push(one);
    }
    lineage.iter().rev().fold(String::new(), |path, one| path + "/" + one)
}

/// Whether systemd takes it as a name of a slice.
pub fn is_valid(slice: &str) -> bool {
    let Some(stem) = slice.strip_suffix(".slice") else { return false };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte);
    let dashes = stem.starts_with('-') || stem.ends_with('-') || stem.contains("--");
    !stem.is_empty() && !dashes && stem.bytes().all(fits) && slice.len() <= LONGEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_is_a_child_of_the_one_before() {
        for (parent_slice, unit, expected) in [
            ("system.slice", "xray.service", "system-xray_traffic.slice"),
            ("system.slice", "x-ui.service", r"system-x\x2dui_traffic.slice"),
            ("-.slice", "xray.service", "xray_traffic.slice"),
            ("proxies-fast.slice", "xray.service", "proxies-fast-xray_traffic.slice"),
            ("system-xray.slice", "xray@a-b.service", r"system-xray-xray\x40a\x2db_traffic.slice"),
        ] {
            let slice = name(parent_slice, unit).unwrap();
            assert_eq!(slice, expected);
            assert!(is_valid(&slice));
            assert_eq!(parent(&slice).unwrap(), parent_slice);
        }
        assert_eq!(name("system.slice", &format!("{}.service", "-".repeat(70))), None);
    }

    #[test]
    fn dashes_make_the_path() {
        let path = cgroup("a-b-c.slice");
        assert_eq!(path, "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(cgroup("xray_traffic.slice"), "/xray_traffic.slice");
    }

    #[test]
    fn what_systemd_refuses_is_refused() {
        for bad in ["xray", ".slice", "-.slice", "a--b.slice", "-a.slice", "a@b.slice", "a/b.slice"]
        {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
