//! What `doctor` found: a line per check for people; for scripts see [`super::json`].

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use super::{
    Options,
    text::{Style, tame, write_labelled},
};
use crate::check::{CheckStatus, DoctorReport};

/// Columns before a check's name: the longest status and two spaces.
const STATUS: usize = 9;

/// Writes a line per check, what to do below it, and the commands that measure what was found.
pub fn write(report: &DoctorReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let name = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &report.checks {
        let (status, style) = match check.status {
            CheckStatus::Ok => ("ok", Style::Green),
            CheckStatus::Warning => ("warning", Style::Yellow),
            CheckStatus::Error => ("error", Style::Red),
        };
        let labels = [(status, style, STATUS), (check.name, Style::Plain, name + 2)];
        write_labelled(&labels, &check.message, options, out)?;
        if let Some(remedy) = &check.remedy {
            let indent = [("", Style::Plain, STATUS + name + 2)];
            write_labelled(&indent, &format!("remedy: {remedy}"), options, out)?;
        }
    }
    if report.candidates.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nRunning proxies that can be measured:")?;
    for candidate in &report.candidates {
        match &candidate.command {
            Some(command) => writeln!(out, "  {}", tame(command))?,
            None => {
                let names: BTreeSet<&str> =
                    candidate.processes.iter().map(|process| process.name.as_str()).collect();
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                let text = format!(
                    "({names} in cgroup {}, which cannot be told from the rest)",
                    candidate.cgroup.path
                );
                writeln!(out, "  {}", tame(&text))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{fixture::text, json},
        *,
    };
    use crate::{
        check::{Candidate, Check},
        report::{CgroupReport, ProcessReport},
        units::Units,
    };

    fn report() -> DoctorReport {
        let candidate = |path: &str, target: Option<&str>| Candidate {
            cgroup: CgroupReport { path: path.to_owned(), id: 7 },
            processes: vec![ProcessReport { pid: 100, name: "xray".to_owned() }],
            selector: target.map(str::to_owned),
            command: target.map(|target| format!("traffic-agent compare --target {target}")),
        };
        DoctorReport::new(
            vec![
                Check::ok("kernel", "6.12.0"),
                Check::warning(
                    "ownership",
                    "2 sockets of xray (pid 100) belong to another cgroup and are not counted",
                    "systemctl restart xray.service",
                ),
                Check::error("bpffs", "not mounted", "mount -t bpf bpf /sys/fs/bpf"),
            ],
            vec![
                candidate("/system.slice/xray.service", Some("unit:xray.service")),
                candidate("/", None),
            ],
        )
    }

    #[test]
    fn each_check_is_a_line_with_what_to_do_below_it() {
        let options = Options { width: 60, ..Options::plain(Units::Iec, false) };
        let expected = "\
ok       kernel     6.12.0
warning  ownership  2 sockets of xray (pid 100) belong to
                    another cgroup and are not counted
                    remedy: systemctl restart xray.service
error    bpffs      not mounted
                    remedy: mount -t bpf bpf /sys/fs/bpf

Running proxies that can be measured:
  traffic-agent compare --target unit:xray.service
  (xray in cgroup /, which cannot be told from the rest)
";
        assert_eq!(text(|out| write(&report(), &options, out)), expected);
        let coloured = text(|out| write(&report(), &Options { colour: true, ..options }, out));
        assert!(coloured.starts_with("\x1b[32mok\x1b[0m       kernel     6.12.0\n"));
    }

    #[test]
    fn json_has_checks_and_candidates() {
        let json = text(|out| json::write_line(&report(), out));
        assert!(
            json.starts_with(
                "{\"format\":1,\"command\":\"doctor\",\"checks\":[{\"status\":\"ok\",\
                 \"name\":\"kernel\",\"message\":\"6.12.0\",\"remedy\":null},"
            ),
            "{json}"
        );
        assert!(json.contains("\"selector\":\"unit:xray.service\""), "{json}");
    }

    #[test]
    fn worst_check_decides() {
        assert_eq!(report().status(), CheckStatus::Error);
        assert_eq!(DoctorReport::new(vec![], vec![]).status(), CheckStatus::Ok);
    }
}
