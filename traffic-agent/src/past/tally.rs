//! Summing up the history: which rows a quarter or day belongs to, and in which group of them.

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::civil::Date;
use serde::Serialize;

use crate::{
    calendar::{Calendar, Span},
    history::{Quarter, Series},
    report::{Counters, Leg, Protocol, Scope, Scopes},
};

/// A span of time that is summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// What it is called.
    pub name: String,
    /// When it is.
    pub span: Span,
    /// The date that it is, or is a part of.
    pub day: Option<Date>,
}

/// By what the traffic of a slice is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// Client or upstream.
    Leg,
    /// Listening port of the client leg; the upstream leg is one group.
    Port,
    /// Transport protocol.
    Protocol,
    /// Interface, with its scope.
    Interface,
    /// Who pays.
    Scope,
}

/// A part of the traffic. What it is not divided by is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    /// Name of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Who pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Side of the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leg: Option<Leg>,
    /// Transport protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Listening port; the inner `None` is the sum of those without a slot, and null in JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Option<u16>>,
}

impl Group {
    /// The group that a series is in.
    pub fn of(series: &Series, by: &[Dimension]) -> Self {
        let mut group = Self::default();
        for dimension in by {
            match dimension {
                Dimension::Leg => group.leg = Some(series.leg),
                Dimension::Protocol => group.protocol = Some(series.protocol),
                Dimension::Scope => group.scope = Some(series.scope),
                Dimension::Interface => {
                    group.interface = Some(series.interface.clone());
                    group.scope = Some(series.scope);
                }
                Dimension::Port => {
                    group.leg = Some(series.leg);
                    if series.leg == Leg::Client {
                        group.protocol = Some(series.protocol);
                        group.port = Some(series.port);
                    }
                }
            }
        }
        group
    }
}

/// Where to read what is needed for some slices, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Days that no slice cuts.
    Days(Range<Date>),
    /// Quarters of all other days.
    Quarters(Range<Quarter>),
}

/// Says where to read: whole days wherever no slice begins or ends within one.
///
/// The days must be those of the calendar; `None` stands for days that are not, so that all is quarters.
pub fn pieces(calendar: &Calendar, slices: &[Slice], days: bool) -> Vec<Piece> {
    let Some(all) = extent(slices) else { return Vec::new() };
    if !days {
        return vec![Piece::Quarters(all.quarters())];
    }
    // Dates in which a slice begins or ends, other than with the date.
    let mut cut: Vec<Date> = slices
        .iter()
        .flat_map(|slice| [slice.span.start, slice.span.end])
        .map(|edge| (edge, calendar.date_of(edge)))
        .filter(|(edge, date)| calendar.start_of(*date) != *edge)
        .map(|(_, date)| date)
        .collect();
    cut.sort_unstable();
    cut.dedup();
    let mut pieces = Vec::new();
    let mut at = all.start;
    for date in cut {
        let day = calendar.of_date(crate::calendar::Unit::Day, date).span;
        push_days(&mut pieces, calendar, Span { start: at, end: day.start });
        if let Some(part) = day.common(&all) {
            push_quarters(&mut pieces, part);
            at = part.end;
        }
    }
    push_days(&mut pieces, calendar, Span { start: at, end: all.end });
    pieces
}

fn push_days(pieces: &mut Vec<Piece>, calendar: &Calendar, span: Span) {
    if span.start < span.end {
        pieces.push(Piece::Days(calendar.date_of(span.start)..calendar.date_of(span.end)));
    }
}

fn push_quarters(pieces: &mut Vec<Piece>, span: Span) {
    let quarters = span.quarters();
    match pieces.last_mut() {
        Some(Piece::Quarters(last)) if last.end == quarters.start => last.end = quarters.end,
        _ => pieces.push(Piece::Quarters(quarters)),
    }
}

/// From the beginning of the first slice to the end of the last.
pub fn extent(slices: &[Slice]) -> Option<Span> {
    let start = slices.iter().map(|slice| slice.span.start).min()?;
    let end = slices.iter().map(|slice| slice.span.end).max()?;
    Some(Span { start, end })
}

/// Sums of one target by slice and group. Slices may overlap.
#[derive(Clone, Debug)]
pub struct Tally {
    by: Vec<Dimension>,
    /// Where a slice begins or ends, and the slices from there to the next one.
    atoms: Vec<(Quarter, Vec<usize>)>,
    /// The number of the group that a series is in.
    series: BTreeMap<Series, usize>,
    /// The groups, and their numbers.
    groups: BTreeMap<Group, usize>,
    /// Sums of each slice, by the number of the group: a year of quarters is millions of additions.
    sums: Vec<Vec<Option<Scopes>>>,
    observed: Vec<u64>,
    /// The first quarter of the date that was asked for last.
    latest: Option<(Date, Quarter)>,
}

impl Tally {
    /// Begins with nothing.
    pub fn new(slices: &[Slice], by: &[Dimension]) -> Self {
        let ranges: Vec<Range<Quarter>> =
            slices.iter().map(|slice| slice.span.quarters()).collect();
        let mut edges: Vec<Quarter> =
            ranges.iter().flat_map(|range| [range.start, range.end]).collect();
        edges.sort_unstable();
        edges.dedup();
        // As many as there are edges at most, and each slice in those it spans: what a day is looked up in
        // for a year of them must not be made by trying every pair.
        let mut atoms: Vec<(Quarter, Vec<usize>)> =
            edges.into_iter().map(|edge| (edge, Vec::new())).collect();
        for (index, range) in ranges.iter().enumerate() {
            let first = atoms.partition_point(|(edge, _)| *edge < range.start);
            for (_, slices) in atoms[first..].iter_mut().take_while(|(edge, _)| *edge < range.end) {
                slices.push(index);
            }
        }
        Self {
            by: by.to_vec(),
            atoms,
            series: BTreeMap::new(),
            groups: BTreeMap::new(),
            sums: vec![Vec::new(); slices.len()],
            observed: vec![0; slices.len()],
            latest: None,
        }
    }

    /// Adds traffic of a quarter.
    pub fn add(&mut self, quarter: Quarter, series: &Series, counters: Counters) {
        let Some(atom) = self.atom(quarter) else { return };
        let group = self.group_of(series);
        for &slice in &self.atoms[atom].1 {
            let sums = &mut self.sums[slice];
            if sums.len() <= group {
                sums.resize(group + 1, None);
            }
            let scopes = sums[group].get_or_insert_default();
            *scopes.of_mut(series.scope).of_mut(series.direction) += counters;
        }
    }

    /// The number of the group that a series is in.
    fn group_of(&mut self, series: &Series) -> usize {
        if self.by.is_empty() {
            return 0;
        }
        if let Some(&group) = self.series.get(series) {
            return group;
        }
        let next = self.groups.len();
        let group = *self.groups.entry(Group::of(series, &self.by)).or_insert(next);
        self.series.insert(series.clone(), group);
        group
    }

    /// Adds traffic of a date of the calendar that no slice cuts.
    pub fn add_day(
        &mut self,
        calendar: &Calendar,
        date: Date,
        series: &Series,
        counters: Counters,
    ) {
        let quarter = self.quarter_of(calendar, date);
        self.add(quarter, series, counters);
    }

    /// Adds milliseconds of a quarter that were observed.
    pub fn observe(&mut self, quarter: Quarter, milliseconds: u64) {
        let Some(atom) = self.atom(quarter) else { return };
        for &slice in &self.atoms[atom].1 {
            self.observed[slice] = self.observed[slice].saturating_add(milliseconds);
        }
    }

    /// Adds milliseconds of a date that were observed.
    pub fn observe_day(&mut self, calendar: &Calendar, date: Date, milliseconds: u64) {
        let quarter = self.quarter_of(calendar, date);
        self.observe(quarter, milliseconds);
    }

    /// Whether there are groups: without, all is one.
    pub fn is_divided(&self) -> bool {
        !self.by.is_empty()
    }

    /// The sums of a slice by group, in the order of the groups; those without traffic are left out.
    pub fn sums(&self, slice: usize) -> impl Iterator<Item = (&Group, Scopes)> {
        let sums = &self.sums[slice];
        self.groups.iter().filter_map(|(group, &number)| Some((group, (*sums.get(number)?)?)))
    }

    /// All of a slice.
    pub fn total(&self, slice: usize) -> Scopes {
        self.sums[slice].iter().flatten().copied().sum()
    }

    /// Whether a slice has no traffic.
    pub fn is_empty(&self, slice: usize) -> bool {
        self.sums[slice].iter().all(Option::is_none)
    }

    /// Milliseconds of a slice that were observed.
    pub fn observed(&self, slice: usize) -> u64 {
        self.observed[slice]
    }

    fn quarter_of(&mut self, calendar: &Calendar, date: Date) -> Quarter {
        match self.latest {
            Some((latest, quarter)) if latest == date => quarter,
            _ => {
                let start = calendar.start_of(date);
                let quarter = Span { start, end: start }.quarters().start;
                self.latest = Some((date, quarter));
                quarter
            }
        }
    }

    fn atom(&self, quarter: Quarter) -> Option<usize> {
        self.atoms.partition_point(|(edge, _)| *edge <= quarter).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::Unit;
    use crate::report::{Direction, Family, Origin};

    fn calendar() -> Calendar {
        Calendar::named("Asia/Shanghai").unwrap()
    }

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    /// A span by the clock of the calendar.
    fn slice(start: &str, end: &str) -> Slice {
        let at = |text: &str| format!("2026-{text}+08:00").parse().unwrap();
        let span = Span { start: at(start), end: at(end) };
        Slice { name: String::new(), span, day: None }
    }

    fn quarter(text: &str) -> Quarter {
        Quarter::of(format!("2026-{text}+08:00").parse().unwrap())
    }

    fn series(leg: Leg, port: Option<u16>) -> Series {
        Series {
            interface: "eth0".to_owned(),
            scope: Scope::Billed,
            origin: Origin::Socket,
            direction: Direction::Egress,
            leg,
            protocol: Protocol::Tcp,
            port,
            family: Family::Ipv4,
        }
    }

    fn bytes(wire_bytes: u64) -> Counters {
        Counters { wire_bytes, ..Counters::default() }
    }

    #[test]
    fn whole_days_are_read_as_days() {
        let slices = [slice("11-01T00:00", "11-25T00:00"), slice("11-24T00:00", "11-25T00:00")];
        let days = Piece::Days(date("2026-11-01")..date("2026-11-25"));
        assert_eq!(pieces(&calendar(), &slices, true), [days]);
        let quarters = Piece::Quarters(quarter("11-01T00:00")..quarter("11-25T00:00"));
        assert_eq!(pieces(&calendar(), &slices, false), [quarters]);
        assert!(pieces(&calendar(), &[], true).is_empty());
    }

    #[test]
    fn only_days_that_are_cut_are_read_by_quarters() {
        let slices = [slice("11-20T10:15", "11-25T00:00"), slice("11-23T00:00", "11-23T12:00")];
        assert_eq!(
            pieces(&calendar(), &slices, true),
            [
                Piece::Quarters(quarter("11-20T10:15")..quarter("11-21T00:00")),
                Piece::Days(date("2026-11-21")..date("2026-11-23")),
                Piece::Quarters(quarter("11-23T00:00")..quarter("11-24T00:00")),
                Piece::Days(date("2026-11-24")..date("2026-11-25")),
            ]
        );
    }

    #[test]
    fn hours_of_several_days_are_one_piece() {
        let whole = slice("11-23T20:00", "11-25T05:00");
        let hours = calendar().periods(Unit::Hour, whole.span);
        let slices: Vec<Slice> =
            hours.iter().map(|hour| Slice { span: hour.span, ..whole.clone() }).collect();
        let quarters = Piece::Quarters(quarter("11-23T20:00")..quarter("11-25T05:00"));
        assert_eq!(pieces(&calendar(), &slices, true), [quarters]);
    }

    #[test]
    fn traffic_is_in_every_slice_that_it_lies_in_and_in_no_other() {
        let slices = [
            slice("11-01T00:00", "12-01T00:00"),
            slice("11-24T00:00", "11-25T00:00"),
            slice("11-23T00:00", "11-24T00:00"),
        ];
        let mut tally = Tally::new(&slices, &[]);
        let series = series(Leg::Upstream, None);
        for (at, count) in [
            ("10-31T23:45", 1),
            ("11-01T00:00", 2),
            ("11-23T23:45", 4),
            ("11-24T00:00", 8),
            ("12-01T00:00", 16),
        ] {
            tally.add(quarter(at), &series, bytes(count));
            tally.observe(quarter(at), count);
        }
        tally.add_day(&calendar(), date("2026-11-24"), &series, bytes(32));
        tally.observe_day(&calendar(), date("2026-11-23"), 64);
        let sums = [0, 1, 2].map(|slice| tally.total(slice).billed.wire_bytes());
        assert_eq!(sums, [2 + 4 + 8 + 32, 8 + 32, 4]);
        assert_eq!([0, 1, 2].map(|slice| tally.observed(slice)), [2 + 4 + 8 + 64, 8, 4 + 64]);
    }

    #[test]
    fn ports_are_those_of_the_client_leg_and_upstream_is_one() {
        let mut tally = Tally::new(&[slice("11-01T00:00", "12-01T00:00")], &[Dimension::Port]);
        for (leg, port, count) in [
            (Leg::Client, Some(443), 1),
            (Leg::Client, Some(8443), 2),
            (Leg::Client, None, 4),
            (Leg::Upstream, None, 8),
            (Leg::Client, Some(443), 16),
        ] {
            tally.add(quarter("11-24T00:00"), &series(leg, port), bytes(count));
        }
        let sums: Vec<_> = tally
            .sums(0)
            .map(|(group, sum)| (group.leg, group.port, sum.billed.wire_bytes()))
            .collect();
        assert_eq!(
            sums,
            [
                (Some(Leg::Client), Some(None), 4),
                (Some(Leg::Client), Some(Some(443)), 17),
                (Some(Leg::Client), Some(Some(8443)), 2),
                (Some(Leg::Upstream), None, 8),
            ]
        );
    }
}
