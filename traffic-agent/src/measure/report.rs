//! What a measurement says about the time between two of its samples, and what it finds wrong.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use traffic_ebpf::Cell;

use super::{Measurement, finding};
use crate::kernel::{Owner, Sample};
use crate::ledger;
use crate::method::ListeningPort;
use crate::report::{
    CellReport, CgroupReport, Counters, Directions, Finding, Origin, ProcessReport, TargetReport,
};
use crate::target::sockets::Which;
use crate::target::{Survey, ownership};

impl Measurement<'_> {
    /// What was counted between two samples, with names.
    pub fn cells(&mut self, start: &Sample, end: &Sample) -> Result<Vec<CellReport>> {
        Ok(self.counted(start, end)?.0)
    }

    /// The same, and what may be anybody's.
    fn counted(
        &mut self,
        start: &Sample,
        end: &Sample,
    ) -> Result<(Vec<CellReport>, Option<Directions>)> {
        let counted: Vec<Cell> = ledger::difference(&start.cells, &end.cells)?;
        let names = self.names()?;
        let available = self.counter.answered().unavailable().is_none();
        let unattributed = available.then(|| ledger::unattributed(&counted));
        Ok((ledger::name_cells(&counted, &names), unattributed))
    }

    /// Looks at the target once more, and puts the report together from two samples.
    ///
    /// The methods, estimates and verdict are the caller's to add.
    pub fn report(&mut self, start: &Sample, end: &Sample) -> Result<TargetReport> {
        let (cells, unattributed) = self.counted(start, end)?;
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(self.audit().unwrap_or_else(|error| vec![finding::audit_failed(&error)]));
        findings.extend(finding::interface_without_slot(&cells));
        findings.extend(finding::port_without_slot(&cells));
        findings.extend(self.networks.finding());
        findings.extend(self.answered_findings(&cells, unattributed));
        findings.extend(finding::unparsable(self.counter.trace().take_log()));
        let silent = cells.iter().all(|cell| cell.origin != Origin::Socket);
        if silent && !self.plan.selectors.is_empty() {
            findings.push(finding::no_traffic());
        }
        let totals = ledger::totals(&cells);
        let counters = end.cells.iter().copied().map(Counters::from);
        let scopes = [totals.billed, totals.unbilled, totals.loopback];
        let sums = scopes.iter().flat_map(|scope| [scope.ingress, scope.egress]);
        if counters.chain(sums).any(|counters| counters.at_limit())
            || totals.billed.wire_bytes() == u64::MAX
        {
            findings.push(finding::at_limit("counters", true));
        }
        // Ports beyond the table are summed in a row without a number: as rows of their own they would
        // seem to have had no traffic.
        let listening = self.client_ports();
        let own_slot: BTreeSet<ListeningPort> = self
            .counter
            .slots()
            .owners()?
            .into_iter()
            .filter_map(|(_, owner)| match owner {
                Owner::Port(port) => Some(port),
                Owner::Interface(_) => None,
            })
            .filter(|port| listening.contains(port))
            .collect();
        let seconds = end.taken_at.duration_since(start.taken_at).as_secs_f64();
        Ok(TargetReport {
            name: self.plan.name.clone(),
            selector: self.plan.selector.clone(),
            cgroups: self.plan.cgroups.iter().map(CgroupReport::from).collect(),
            processes: self
                .processes
                .iter()
                .map(|(pid, name)| ProcessReport { pid: *pid, name: name.clone() })
                .collect(),
            complete: !findings.iter().any(|finding| finding.incomplete),
            observed_seconds: seconds,
            total_wire_bytes: totals.billed.wire_bytes(),
            totals,
            ports: ledger::ports(&cells, &own_slot.into_iter().collect::<Vec<_>>()),
            cells,
            unattributed,
            methods: Vec::new(),
            estimates: Vec::new(),
            capture_rates: Vec::new(),
            ratio: None,
            verdict: String::new(),
            findings,
        })
    }

    /// What is wrong, missing or worth knowing now, without what only a report can tell.
    pub fn findings(&mut self) -> Result<Vec<Finding>> {
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(self.audit()?);
        findings.extend(self.networks.finding());
        findings.extend(self.answered_findings(&[], None));
        findings.extend(finding::unparsable(self.counter.trace().take_log()));
        Ok(findings)
    }

    /// Whose sockets were counted, and whose were not.
    fn audit(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut alive = Vec::new();
        for cgroup in &self.plan.cgroups {
            match self.host.cgroups.cgroup(&cgroup.path) {
                Ok(now) if now.id == cgroup.id => alive.push(cgroup.clone()),
                _ => findings.push(finding::cgroup_gone(cgroup)),
            }
        }
        if !alive.is_empty() {
            let mut survey = Survey::take(self.host, &alive, Which::All)
                .context("cannot audit who owns the sockets")?;
            for id in &self.owned {
                survey.owned.entry(*id).or_insert(0);
            }
            // Several namespaces are reported from what was seen all along.
            let seen =
                survey.findings.iter().filter(|finding| finding.code != "several-namespaces");
            findings.extend(seen.cloned());
            findings.extend(ownership::audit(self.host, &survey, &self.plan.selectors)?);
        }
        Ok(findings)
    }

    /// Packets without a socket that were not counted, or not as the target's.
    fn answered_findings(
        &mut self,
        cells: &[CellReport],
        unattributed: Option<Directions>,
    ) -> Vec<Finding> {
        let refused = self.counter.answered().unavailable().map(finding::not_answered);
        let missed = self.counter.missed().unwrap_or(0);
        refused
            .into_iter()
            .chain(finding::unattributed(unattributed.unwrap_or_default()))
            .chain(finding::icmpv6_not_counted(cells))
            .chain(finding::syn_cookies(self.networks.cookies_sent()))
            .chain(finding::answers_missed(missed))
            .collect()
    }
}
