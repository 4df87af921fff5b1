use super::*;

fn unit() -> Unit {
    Unit {
        id: "xray.service".to_owned(),
        active: true,
        slice: "system.slice".to_owned(),
        control_group: "/system.slice/xray.service".to_owned(),
        drop_ins: Vec::new(),
        weights: vec![("CPUWeight", "500".to_owned())],
    }
}

fn found() -> Found {
    Found {
        files: BTreeMap::new(),
        config: PathBuf::from("/etc/traffic-agent/config.toml"),
        packaged_unit: None,
        program: PathBuf::from("/usr/bin/traffic-agent"),
        has_group: true,
    }
}

/// What is there when the plan is carried out.
fn carried_out(found: &Found, plan: &Plan) -> Found {
    let mut after = found.clone();
    for change in &plan.changes {
        assert_eq!(after.files.get(&change.path), change.before.as_ref());
        match &change.after {
            Some(text) => after.files.insert(change.path.clone(), text.clone()),
            None => after.files.remove(&change.path),
        };
    }
    after
}

#[test]
fn a_second_plan_is_empty_and_the_way_back_ends_where_it_began() {
    let config = PathBuf::from("/etc/traffic-agent/config.toml");
    for text in [None, Some("host = true\n"), Some("[[target]]\ntargets = ['xray.service']\n")] {
        let mut before = found();
        before.files.extend(text.map(|text| (config.clone(), text.to_owned())));
        let plan = install(&before, &unit(), None).unwrap();
        assert!(plan.restart);
        assert_eq!(plan.changes.len(), 5);
        let after = carried_out(&before, &plan);

        let mut moved = unit();
        moved.slice = plan.slice.clone();
        moved.control_group = format!("{}/xray.service", slice::cgroup(&plan.slice));
        let again = install(&after, &moved, None).unwrap();
        assert_eq!((again.changes.len(), again.restart), (0, false), "{:?}", again.changes);

        let back = uninstall(&after, &moved, true).unwrap().unwrap();
        assert!(back.restart);
        assert_eq!(carried_out(&after, &back).files, before.files);
        assert_eq!(uninstall(&before, &unit(), true).unwrap(), None);
    }
}

#[test]
fn the_slice_weighs_what_the_unit_weighed() {
    let plan = install(&found(), &unit(), None).unwrap();
    let file = carried_out(&found(), &plan).files[&slice_file(&plan.slice)].clone();
    assert!(file.contains("\nCPUWeight=500\n"), "{file}");
}

#[test]
fn a_stopped_unit_needs_no_restart() {
    let stopped = Unit { active: false, control_group: String::new(), ..unit() };
    assert!(!install(&found(), &stopped, None).unwrap().restart);
}

#[test]
fn with_a_package_its_unit_is_left_alone() {
    let packaged = Found { packaged_unit: Some("/lib/x".to_owned()), ..found() };
    let plan = install(&packaged, &unit(), None).unwrap();
    assert!(!plan.changes.iter().any(|change| change.path == agent_file()));
}

#[test]
fn files_of_others_are_not_overwritten() {
    for path in [agent_file(), slice_file("system-xray_traffic.slice"), drop_in("xray.service")] {
        let mut found = found();
        found.files.insert(path.clone(), "# mine\n".to_owned());
        let error = install(&found, &unit(), None).unwrap_err();
        assert!(
            matches!(&error, Refusal::Foreign { path: named, .. } if *named == path),
            "{error}"
        );
    }
}

#[test]
fn a_program_that_the_unit_cannot_see_is_refused() {
    let mut found = found();
    found.program = PathBuf::from("/root/traffic-agent");
    let error = install(&found, &unit(), None).unwrap_err().to_string();
    assert!(error.contains("install -m 755 /root/traffic-agent"), "{error}");
    found.program = PathBuf::from("/opt/traffic-agent");
    let plan = install(&found, &unit(), None).unwrap();
    let text = plan.changes[0].after.clone().unwrap();
    assert!(text.contains("ExecStart=/opt/traffic-agent run"), "{text}");
}

#[test]
fn slices_are_named_by_the_user_or_kept() {
    let plan = install(&found(), &unit(), Some("proxies")).unwrap();
    assert_eq!(plan.slice, "proxies.slice");
    let after = carried_out(&found(), &plan);
    assert_eq!(install(&after, &unit(), None).unwrap().slice, "proxies.slice");
    assert!(matches!(
        install(&after, &unit(), Some("other.slice")),
        Err(Refusal::OtherSlice { .. })
    ));
    assert!(matches!(install(&found(), &unit(), Some("a/b")), Err(Refusal::BadSlice(_))));
}

#[test]
fn the_agent_outlives_all_but_the_last_unit() {
    let first = install(&found(), &unit(), None).unwrap();
    let after = carried_out(&found(), &first);
    let back = uninstall(&after, &unit(), false).unwrap().unwrap();
    assert!(!back.changes.iter().any(|change| change.path == agent_file()));
    let names = ["50-xray.service.conf".to_owned(), "override.conf".to_owned()];
    assert_eq!(installed(&names), ["xray.service"]);
}

#[test]
fn a_drop_in_that_would_win_is_named() {
    let path = "/etc/systemd/system/xray.service.d/override.conf";
    let edited = Unit { drop_ins: vec![path.to_owned()], ..unit() };
    let mut found = found();
    found.files.insert(path.into(), "[Service]\nSlice=mine.slice\n".to_owned());
    let error = install(&found, &edited, None).unwrap_err();
    assert_eq!(error, Refusal::Overruled(path.into()));
    found.files.insert(path.into(), "[Service]\nRestart=always\n".to_owned());
    assert!(install(&found, &edited, None).is_ok());
}
