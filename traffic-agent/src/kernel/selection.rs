//! Cgroups that must not be hooked themselves, because another program holds them exclusively: the hooks of
//! their packets hang on a cgroup above, the *anchor*, and select them by their ids.
//!
//! What is exclusive is one hook: whatever else an instance hangs on a cgroup hangs on these themselves, too.

use std::{collections::BTreeSet, fs::File, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use traffic_ebpf::{MOST_SELECTED, MOST_SELECTED_LEVELS};

use super::{
    Counter, Error, PROGRAMS, attached::Hook, descriptor, directory_id, load_error, load_skb,
    open_directory,
};

const SELECTED: &str = "SELECTED";
const LEVELS: &str = "SELECTED_LEVELS";
/// The maps that outlive the agent.
pub(super) const MAPS: [&str; 2] = [SELECTED, LEVELS];
/// In the place of those that count all packets of their cgroup. Loaded when there is something to select.
pub(super) const SELECTING: [(Hook, &str); 2] =
    [(Hook::Ingress, "select_ingress"), (Hook::Egress, "select_egress")];

/// A `SELECTED_LEVELS` element; a type of our own, so that it can be aya's `Pod`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels([u8; MOST_SELECTED_LEVELS]);

// SAFETY: `repr(transparent)` over an array of bytes; every bit pattern is a valid value.
unsafe impl aya::Pod for Levels {}

impl Levels {
    const NONE: Self = Self([0; MOST_SELECTED_LEVELS]);

    /// Adds a level, if there is room for it. Those that are there keep their places: the programs are reading.
    fn add(&mut self, level: u8) -> bool {
        let place = self.0.iter_mut().find(|known| **known == level || **known == 0);
        place.map(|place| *place = level).is_some()
    }
}

/// Which cgroups are selected, and by which anchor.
pub(super) struct Selection {
    selected: HashMap<MapData, u64, u64>,
    levels: Array<MapData, Levels>,
}

impl Selection {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut take = |name| ebpf.take_map(name).ok_or(Error::Foreign { kind: "map", name });
        Ok(Self {
            selected: HashMap::try_from(take(SELECTED)?).map_err(map_error("open", SELECTED))?,
            levels: Array::try_from(take(LEVELS)?).map_err(map_error("open", LEVELS))?,
        })
    }

    /// Ids of the selected cgroups with those of their anchors.
    fn all(&self) -> Result<Vec<(u64, u64)>, Error> {
        self.selected.iter().collect::<Result<_, _>>().map_err(map_error("read", SELECTED))
    }

    /// The anchor of a selected cgroup.
    pub(super) fn anchor_of(&self, cgroup: u64) -> Option<u64> {
        self.selected.get(&cgroup, 0).ok()
    }

    fn insert(&mut self, cgroup: u64, anchor: u64, levels: &[u8]) -> Result<(), Error> {
        // First, so that the packets are selected from one moment on.
        let mut known = self.levels.get(&0, 0).map_err(map_error("read", LEVELS))?;
        let before = known;
        for &level in levels {
            if !known.add(level) {
                return Err(Error::TooManyLevels);
            }
        }
        if known != before {
            self.levels.set(0, known, 0).map_err(map_error("write", LEVELS))?;
        }
        self.selected.insert(cgroup, anchor, 0).map_err(|source| {
            let error = map_error("write", SELECTED)(source);
            match error.errno() {
                Some(libc::E2BIG) => Error::TooManySelected(MOST_SELECTED),
                _ => error,
            }
        })
    }

    fn remove(&mut self, cgroup: u64) -> Result<(), Error> {
        if self.anchor_of(cgroup).is_some() {
            self.selected.remove(&cgroup).map_err(map_error("write", SELECTED))?;
        }
        Ok(())
    }
}

fn map_error(action: &'static str, map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { action, map, source }
}

/// Loads the programs that select, if they are not loaded yet.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    for (_, name) in SELECTING {
        let program = load_skb(ebpf, name)?;
        if program.fd().is_err() {
            program.load().map_err(load_error)?;
        }
    }
    Ok(())
}

impl Counter {
    /// Counts a cgroup by hooks on one above it, because it must not be hooked itself. None of the anchors of
    /// an instance may lie in another ([`Counter::move_anchor`]): a packet would be counted twice.
    ///
    /// `levels`: how deep in the tree the cgroup may be, the root being 0.
    pub fn attach_above(
        &mut self,
        cgroup: &Path,
        anchor: &Path,
        levels: &[u8],
    ) -> Result<(), Error> {
        let directory = open_directory(cgroup)?;
        let id = directory_id(&directory, cgroup)?;
        // A hook that was let in before the other one was refused would count its half a second time.
        self.links.detach_hooks(id, [Hook::Ingress, Hook::Egress])?;
        for (hook, name) in PROGRAMS {
            if !SELECTING.iter().any(|(selecting, _)| *selecting == hook) {
                self.attach_hook((id, hook), name, &directory, cgroup)?;
            }
        }
        let anchor = self.hang_anchor(anchor)?;
        self.selection.insert(id, anchor, levels)?;
        self.answered.attach(&mut self.ebpf, &mut self.links, &directory, id)
    }

    /// Hangs the hooks that select on an anchor, if they are not there yet; returns its id.
    fn hang_anchor(&mut self, path: &Path) -> Result<u64, Error> {
        load(&mut self.ebpf)?;
        let directory: File = open_directory(path)?;
        let id = directory_id(&directory, path)?;
        for (hook, name) in SELECTING {
            let program = descriptor(&self.ebpf, name)?;
            self.links
                .hang_anchor((id, hook), program, directory.as_fd())
                .map_err(|error| error.of(name, path))?;
        }
        Ok(id)
    }

    /// Takes one anchor for another, which contains it. In between nothing of its cgroups is counted; the other
    /// way round all of it would be, twice.
    pub fn move_anchor(&mut self, from: u64, to: &Path) -> Result<(), Error> {
        self.links.detach_anchor(from)?;
        let to = self.hang_anchor(to)?;
        for (cgroup, anchor) in self.selection.all()? {
            if anchor == from {
                self.selection
                    .selected
                    .insert(cgroup, to, 0)
                    .map_err(map_error("write", SELECTED))?;
            }
        }
        Ok(())
    }

    /// Ids of the anchors, those that were removed included as long as sockets below them still send.
    pub fn anchors(&self) -> BTreeSet<u64> {
        self.links.anchors()
    }

    /// The anchor by which a cgroup is counted; `None` for one that is hooked itself, or not counted.
    pub fn anchor_of(&self, cgroup: u64) -> Option<u64> {
        self.selection.anchor_of(cgroup)
    }

    /// Whether the hooks of a selected cgroup's anchor are there.
    pub(super) fn is_selected(&self, cgroup: u64) -> bool {
        self.anchor_of(cgroup).is_some_and(|anchor| self.links.has_anchor(anchor))
    }

    /// Forgets a cgroup that is selected no more, and anchors that have none left.
    pub(super) fn deselect(&mut self, cgroup: u64) -> Result<(), Error> {
        self.selection.remove(cgroup)?;
        self.leave_anchors()
    }

    /// Selects no others than these any more, and leaves the anchors that have none left.
    pub(super) fn keep_selected(&mut self, cgroups: &[u64]) -> Result<(), Error> {
        for (cgroup, _) in self.selection.all()? {
            if !cgroups.contains(&cgroup) {
                self.selection.remove(cgroup)?;
            }
        }
        self.leave_anchors()
    }

    fn leave_anchors(&mut self) -> Result<(), Error> {
        let hanging = self.links.anchors();
        if hanging.is_empty() {
            return Ok(());
        }
        let used: BTreeSet<u64> =
            self.selection.all()?.into_iter().map(|(_, anchor)| anchor).collect();
        for &anchor in hanging.difference(&used) {
            self.links.detach_anchor(anchor)?;
        }
        if used.is_empty() {
            let levels = &mut self.selection.levels;
            levels.set(0, Levels::NONE, 0).map_err(map_error("write", LEVELS))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_listed_once_and_those_that_are_there_stay_where_they_are() {
        let mut levels = Levels::NONE;
        assert!([2, 3, 2].into_iter().all(|level| levels.add(level)));
        assert_eq!(levels.0[..3], [2, 3, 0]);
        assert!((4..18).all(|level| levels.add(level)));
        assert!(!levels.add(18) && levels.add(17));
    }
}
