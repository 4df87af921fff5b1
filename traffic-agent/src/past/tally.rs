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
    groups: BTreeMap<Series, Group>,
    sums: Vec<BTreeMap<Group, Scopes>>,
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
            groups: BTreeMap::new(),
            sums: vec![BTreeMap::new(); slices.len()],
            observed: vec![0; slices.len()],
            latest: None,
        }
    }

    /// Adds traffic of a quarter.
    pub fn add(&mut self, quarter: Quarter, series: &Series, counters: Counters) {
        let Some(atom) = self.atom(quarter) else { return };
        let undivided = Group::default();
        let group = match self.by.is_empty() {
            true => &undivided,
            false => {
                if !self.groups.contains_key(series) {
                    self.groups.insert(series.clone(), Group::of(series, &self.by));
                }
                &self.groups[series]
            }
        };
        for &slice in &self.atoms[atom].1 {
            let sums = &mut self.sums[slice];
            let scopes = match sums.get_mut(group) {
                Some(scopes) => scopes,
                None => sums.entry(group.clone()).or_default(),
            };
            *scopes.of_mut(series.scope).of_mut(series.direction) += counters;
        }
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

    /// The sums of a slice by group.
    pub fn sums(&self, slice: usize) -> &BTreeMap<Group, Scopes> {
        &self.sums[slice]
    }

    /// All of a slice.
    pub fn total(&self, slice: usize) -> Scopes {
        self.sums[slice].values().copied().sum()
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
