use super::*;
use crate::report::Family;
use crate::target::Cgroup;
use crate::target::survey::Namespace;

const UNIT: &str = "/system.slice/x-ui.service";

fn process(pid: i32, exe: &str) -> Process {
    Process { pid, name: exe.into(), exe: Some(exe.into()), started: pid as u64, netns: Some(1) }
}

fn socket(inode: u64, protocol: Protocol, port: u16, state: State, cgroup: u64) -> Socket {
    Socket {
        protocol,
        family: Family::Ipv4,
        local: ([0, 0, 0, 0], port).into(),
        remote: ([0, 0, 0, 0], 0).into(),
        state,
        inode,
        uid: 0,
        cgroup_id: (cgroup != 0).then_some(cgroup),
        transparent: false,
    }
}

/// A look at one cgroup with id 10: processes with the inodes of their sockets, and the sockets.
fn survey(path: &str, processes: &[(Process, &[u64])], sockets: Vec<Socket>) -> Survey {
    let mut survey = Survey {
        cgroups: vec![Cgroup { path: path.into(), dir: path.into(), id: 10 }],
        owned: BTreeMap::from([(10, 0)]),
        processes: processes.iter().map(|(process, _)| process.clone()).collect(),
        anchors: processes.iter().map(|(process, _)| (process.pid, 0)).collect(),
        ..Survey::default()
    };
    for (index, (_, inodes)) in processes.iter().enumerate() {
        for inode in *inodes {
            survey.holders.entry(*inode).or_default().push(index);
        }
    }
    survey.namespaces.push(Namespace {
        inode: 1,
        pid: None,
        sockets,
        ephemeral: crate::target::ports::DEFAULT_EPHEMERAL,
    });
    survey
}

fn listener(inode: u64, port: u16, cgroup: u64) -> Socket {
    socket(inode, Protocol::Tcp, port, State::LISTEN, cgroup)
}

#[test]
fn moved_process_keeps_its_old_sockets() {
    let sockets = vec![
        listener(1, 443, 7),
        socket(2, Protocol::Udp, 8443, State::CLOSE, 7),
        socket(3, Protocol::Tcp, 443, State::ESTABLISHED, 7),
        listener(4, 444, 10),
        socket(5, Protocol::Tcp, 443, State(6), 0),
        listener(6, 22, 99),
    ];
    let survey = survey("/proxy", &[(process(12, "xray"), &[1, 2, 3, 4, 5, 77])], sockets);
    let findings = not_owned(&survey, &HashMap::from([(7, "/old".to_owned())]));
    assert_eq!(findings.len(), 1);
    assert_eq!(
        findings[0].message,
        "sockets of xray (pid 12) are not counted, because they were made in cgroup /old: bound to \
         tcp 443, udp 8443; 1 connection"
    );
    assert_eq!((findings[0].code, findings[0].incomplete), ("socket-not-owned", true));
    assert!(findings[0].remedy.contains("restart the service"));
}

#[test]
fn owner_that_is_gone_is_named_by_its_id() {
    let survey = survey("/proxy", &[(process(12, "xray"), &[1])], vec![listener(1, 443, 7)]);
    let findings = not_owned(&survey, &HashMap::new());
    assert!(findings[0].message.contains("a cgroup that no longer exists (id 7)"));
}

#[test]
fn socket_that_systemd_made_is_counted_by_another_target() {
    let survey = survey("/proxy", &[(process(12, "xray"), &[1])], vec![listener(1, 443, 7)]);
    let owners = HashMap::from([(7, "/system.slice/xray.socket".to_owned())]);
    let remedy = &not_owned(&survey, &owners)[0].remedy;
    assert!(remedy.contains("cgroup:/system.slice/xray.socket"), "{remedy}");
}

#[test]
fn panel_beside_the_proxy_shares_the_cgroup() {
    let processes: [(Process, &[u64]); 2] =
        [(process(1, "x-ui"), &[1, 2]), (process(2, "xray-linux-amd64"), &[3])];
    let sockets = vec![
        listener(1, 2053, 10),
        socket(2, Protocol::Tcp, 2053, State::ESTABLISHED, 10),
        listener(3, 443, 10),
    ];
    let survey = survey(UNIT, &processes, sockets);
    let findings = shared(&survey, &[Value::Unit("x-ui.service".into())]);
    assert_eq!(findings.len(), 1);
    assert_eq!(
        findings[0].message,
        "x-ui (pid 1) has sockets in cgroup /system.slice/x-ui.service too (bound to tcp 2053; 1 \
         connection): the figures are the cgroup's, not those of xray-linux-amd64 alone"
    );
    assert_eq!((findings[0].code, findings[0].incomplete), ("cgroup-shared", false));
    // Whoever asks for the panel means the panel.
    let findings = shared(&survey, &[Value::Pid(1)]);
    assert!(findings[0].message.starts_with("xray-linux-amd64 (pid 2)"));
}

#[test]
fn master_and_workers_are_one_program() {
    let processes: [(Process, &[u64]); 3] =
        [(process(1, "nginx"), &[1]), (process(2, "nginx"), &[1, 2]), (process(3, "sh"), &[])];
    let sockets = vec![listener(1, 443, 10), socket(2, Protocol::Tcp, 1, State::ESTABLISHED, 10)];
    assert_eq!(shared(&survey("/system.slice/nginx.service", &processes, sockets), &[]), []);
}

#[test]
fn unknown_programs_are_told_apart_only_in_a_service() {
    let processes: [(Process, &[u64]); 2] = [(process(1, "a"), &[1]), (process(2, "b"), &[2])];
    let sockets = vec![listener(1, 80, 10), listener(2, 81, 10)];
    let service = survey("/system.slice/a.service", &processes, sockets.clone());
    let findings = shared(&service, &[]);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.starts_with("b (pid 2)"));
    assert_eq!(shared(&survey("/mine", &processes, sockets), &[]), []);
}

#[test]
fn proxy_in_a_plain_cgroup_is_told_from_its_neighbours() {
    let processes: [(Process, &[u64]); 2] =
        [(process(1, "nginx"), &[1]), (process(2, "xray"), &[2])];
    let survey = survey("/mine", &processes, vec![listener(1, 80, 10), listener(2, 443, 10)]);
    let findings = shared(&survey, &[Value::Cgroup("/mine".into())]);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("nginx (pid 1)"));
}

#[test]
fn process_outside_with_a_counted_socket_is_found() {
    let sockets = vec![listener(1, 80, 10), listener(2, 443, 10)];
    let survey = survey("/mine", &[(process(2, "xray"), &[2])], sockets);
    let strays: Vec<_> = strays(&survey).map(|socket| socket.inode).collect();
    assert_eq!(strays, [1]);
    let findings = shared_from_outside(&survey, &[(process(5, "nginx"), BTreeSet::from([1]))]);
    assert!(findings[0].message.contains("nginx (pid 5)"), "{}", findings[0].message);
    assert!(findings[0].message.ends_with("bound to tcp 80"), "{}", findings[0].message);
}

#[test]
fn unreadable_files_are_told() {
    let mut survey = survey("/mine", &[(process(2, "xray"), &[])], Vec::new());
    assert_eq!(limited(&survey), None);
    survey.unreadable.push(2);
    let finding = limited(&survey).unwrap();
    assert_eq!(finding.code, "audit-limited");
    assert!(finding.message.contains("xray (pid 2)") && finding.remedy.contains("CAP_SYS_PTRACE"));
}

#[test]
fn long_lists_of_ports_are_cut() {
    let sockets: Vec<_> = (1..=10).map(|port| listener(port.into(), port, 7)).collect();
    let text = describe(&sockets.iter().collect::<Vec<_>>());
    assert!(text.ends_with("tcp 8, 2 more"), "{text}");
}
