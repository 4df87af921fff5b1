use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

fn found(text: &str) -> Vec<Hierarchy> {
    candidates(&MountInfos::from_read(text.as_bytes()).unwrap())
}

#[test]
fn hybrid_layout_is_found_below_the_usual_place() {
    assert_eq!(found(HYBRID), [Hierarchy::at("/sys/fs/cgroup/unified", "/")]);
}

#[test]
fn whole_tree_goes_before_a_bind_mount_of_a_part() {
    let text = "\
50 1 0:38 /system.slice /srv/my\\040part rw - cgroup2 cgroup2 rw
51 1 0:38 / /mnt/cg rw - cgroup2 cgroup2 rw
";
    let expected = [Hierarchy::at("/mnt/cg", "/"), Hierarchy::at("/srv/my part", "/system.slice")];
    assert_eq!(found(text), expected);
}

#[test]
fn a_host_with_only_cgroup_v1_has_none() {
    assert_eq!(found("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), []);
}

#[test]
fn process_paths_are_taken_relative_to_the_mounted_part() {
    let part = Hierarchy::at("/m", "/system.slice");
    assert_eq!(part.visible_path("/system.slice/a.service").as_deref(), Some("/a.service"));
    assert_eq!(part.visible_path("/system.slice").as_deref(), Some("/"));
    assert_eq!(part.visible_path("/system.slice2/a.service"), None);
    assert_eq!(part.visible_path("/user.slice"), None);
}

#[test]
fn paths_outside_the_cgroup_namespace_are_not_visible() {
    assert_eq!(Hierarchy::at("/m", "/").visible_path("/../other"), None);
    // A mount made outside shows them by their own names.
    assert_eq!(Hierarchy::at("/m", "/..").visible_path("/../other").as_deref(), Some("/other"));
    assert_eq!(Hierarchy::at("/m", "/..").visible_path("/"), None);
}

#[test]
fn cgroup_line_is_the_one_without_controllers() {
    assert_eq!(process_path("9:name=systemd:/x\n0::/a/b\n"), Some("/a/b"));
    assert_eq!(process_path("4:memory:/x\n"), None);
    assert_eq!(process_path("0::/a (deleted)\n"), None);
    assert_eq!(process_path("0::\n"), None);
    assert_eq!(process_path(""), None);
}

#[test]
fn processes_of_other_pid_namespaces_are_left_out() {
    assert_eq!(parse_pids("12\n0\n\nx\n13\n").collect::<Vec<_>>(), [12, 13]);
}

#[test]
fn nested_cgroups_leave_only_the_outermost() {
    let cgroup = |path: &str, id| Cgroup { path: path.into(), dir: path.into(), id };
    let all = vec![
        cgroup("/a/b/c", 3),
        cgroup("/a/b", 2),
        cgroup("/a/bc", 4),
        cgroup("/a/b", 2),
        cgroup("/d", 5),
    ];
    let expected = [cgroup("/a/b", 2), cgroup("/a/bc", 4), cgroup("/d", 5)];
    assert_eq!(without_nested(all), expected);
}

#[test]
fn tree_lists_ids_paths_and_processes() {
    let mount = tempfile::tempdir().unwrap();
    fs::create_dir_all(mount.path().join("a.slice/b.service")).unwrap();
    fs::write(mount.path().join("a.slice/cgroup.procs"), "7\n").unwrap();
    fs::write(mount.path().join("a.slice/b.service/cgroup.procs"), "8\n9\n").unwrap();
    let tree = Hierarchy::at(mount.path(), "/");
    let top = tree.cgroup("/a.slice/").unwrap();
    assert_eq!(top.path, "/a.slice");
    assert_eq!(tree.pids(std::slice::from_ref(&top)).unwrap(), BTreeSet::from([7, 8, 9]));
    assert_eq!(tree.subtree_ids(std::slice::from_ref(&top)).len(), 2);
    let paths: Vec<_> = tree.tree().unwrap().into_iter().map(|cgroup| cgroup.path).collect();
    assert_eq!(paths, ["/", "/a.slice", "/a.slice/b.service"]);
    assert!(tree.is_current(&top));
    fs::rename(&top.dir, mount.path().join("old.slice")).unwrap();
    assert!(!tree.is_current(&top));
    assert!(tree.cgroup("/missing").is_err());
    assert!(tree.cgroup("/old.slice/cgroup.procs").is_err());
}
