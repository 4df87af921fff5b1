use super::*;

fn level(path: &str, sharing: Sharing, programs: &[&str]) -> Level {
    let programs = programs.iter().map(|&name| name.to_owned()).collect();
    Level { path: path.to_owned(), sharing, programs }
}

/// Nothing attached: the kernel reports the flags as 0 then.
fn free(path: &str) -> Level {
    level(path, Sharing::Exclusive, &[])
}

#[test]
fn without_programs_the_flags_mean_nothing() {
    assert_eq!(predict(&[free("/a"), free("/")]), Outcome::Beside);
    assert_eq!(predict(&[]), Outcome::Beside);
}

#[test]
fn only_programs_that_share_let_another_in() {
    for sharing in [Sharing::Exclusive, Sharing::Override] {
        let own = level("/a", sharing, &["sd_fw_ingress"]);
        assert_eq!(predict(&[own.clone(), free("/")]), Outcome::Refused(own));
    }
    let shared = level("/a", Sharing::Multi, &["other"]);
    assert_eq!(predict(&[shared, free("/")]), Outcome::Beside);
}

#[test]
fn nearest_cgroup_above_with_programs_decides() {
    let exclusive = level("/", Sharing::Exclusive, &["x"]);
    let overridable = level("/", Sharing::Override, &["x"]);
    let shared = level("/a", Sharing::Multi, &["y"]);
    let predict = |above: [&Level; 2]| predict(&[free("/a/b"), above[0].clone(), above[1].clone()]);
    assert_eq!(predict([&free("/a"), &exclusive]), Outcome::Refused(exclusive.clone()));
    assert_eq!(predict([&free("/a"), &overridable]), Outcome::Instead(overridable.clone()));
    assert_eq!(predict([&shared, &exclusive]), Outcome::Beside);
}

/// Where the hooks of `/a/b/c` go, `holders` holding some of it, `reserved` being wanted by systemd.
fn place(holders: [Option<Sharing>; 4], reserved: [bool; 4]) -> Option<usize> {
    let paths = ["/a/b/c", "/a/b", "/a", "/"];
    let level = |(path, holder): (&str, Option<Sharing>)| match holder {
        Some(sharing) => level(path, sharing, &["holder"]),
        None => free(path),
    };
    let levels: Vec<Level> = paths.into_iter().zip(holders).map(level).collect();
    let hooks = BTreeMap::from([(Hook::Ingress, levels), (Hook::Egress, paths.map(free).to_vec())]);
    let why =
        |(path, reserved): (&str, bool)| reserved.then(|| Why::WasHeld { path: path.to_owned() });
    let reserved: Vec<Option<Why>> = paths.into_iter().zip(reserved).map(why).collect();
    nearest(&hooks, &reserved)
}

#[test]
fn hooks_go_to_the_nearest_cgroup_that_is_neither_exclusive_nor_below_such_a_one() {
    let nothing = [false; 4];
    let exclusive = Some(Sharing::Exclusive);
    assert_eq!(place([None; 4], nothing), Some(0));
    assert_eq!(place([exclusive, None, None, None], nothing), Some(1));
    assert_eq!(place([None, exclusive, None, None], nothing), Some(2));
    assert_eq!(place([exclusive, None, exclusive, None], nothing), Some(3));
    assert_eq!(place([None, None, None, exclusive], nothing), None);
    // One that shares lets ours in below it, whatever is above.
    assert_eq!(place([exclusive, Some(Sharing::Multi), None, None], nothing), Some(1));
    // One that may be overridden is refused only at its own place.
    assert_eq!(place([Some(Sharing::Override), None, None, None], nothing), Some(1));
}

#[test]
fn where_an_owner_will_come_later_hooks_go_above_him() {
    assert_eq!(place([None; 4], [true, false, false, false]), Some(1));
    assert_eq!(place([None; 4], [false, true, false, false]), Some(2));
    assert_eq!(place([None; 4], [false, false, false, true]), None);
}
