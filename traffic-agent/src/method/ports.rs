//! Sets of ports, as rules name them: single ports, ranges, lists and their negation.

use std::fmt;

/// A set of ports: sorted inclusive ranges that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// Every port: the rule does not look at it.
    pub(crate) fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The union of inclusive ranges, in any order; a range that ends before it begins is empty.
    pub(crate) fn of(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub(crate) fn is_all(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    pub(crate) fn and(&self, other: &Self) -> Self {
        Self::of(self.0.iter().flat_map(|&(first, last)| {
            other.0.iter().map(move |&(from, to)| (first.max(from), last.min(to)))
        }))
    }

    pub(crate) fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0);
        for &(first, last) in &self.0 {
            if let (Some(from), Some(to)) = (next, first.checked_sub(1)) {
                gaps.push((from, to));
            }
            next = last.checked_add(1);
        }
        gaps.extend(next.map(|from| (from, u16::MAX)));
        Self::of(gaps)
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        self.and(&other.complement())
    }

    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.without(other).is_empty()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, (first, last)) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        if self.0.len() > SHOWN {
            write!(f, ",...")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn adjacent_and_overlapping_ranges_become_one() {
        assert_eq!(PortSet::of([(5, 9), (1, 2), (3, 4), (20, 10)]), PortSet::of([(1, 9)]));
        assert!(PortSet::of([(0, 100), (101, u16::MAX)]).is_all());
        assert_eq!(PortSet::of([(443, 443), (8000, 8100)]).to_string(), "443,8000-8100");
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_membership(
            a in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            b in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            probe in any::<u16>(),
        ) {
            let (a, b) = (PortSet::of(a), PortSet::of(b));
            for port in [probe, 0, u16::MAX] {
                prop_assert_eq!(a.and(&b).contains(port), a.contains(port) && b.contains(port));
                prop_assert_eq!(a.complement().contains(port), !a.contains(port));
                prop_assert_eq!(a.without(&b).contains(port), a.contains(port) && !b.contains(port));
            }
            prop_assert_eq!(a.complement().complement(), a);
        }
    }
}
