//! What a measurement's hooks hang on: the target's cgroups, or those above them that select
//! ([`crate::anchor`]).

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Measurement, finding};
use crate::anchor::{self, Above};
use crate::report::Finding;
use crate::target::Cgroup;

impl Measurement<'_> {
    /// Counts a cgroup, by hooks on itself or above it. Returns those that were not counted for a moment because
    /// they had to move to another anchor.
    pub(super) fn hang(&mut self, cgroup: &Cgroup) -> Result<Vec<Cgroup>> {
        if let Some(above) = anchor::find(self.host, cgroup, &self.held) {
            return self.hang_above(cgroup, above);
        }
        let refused = match self.counter.attach(&cgroup.dir) {
            Err(error) if error.errno() == Some(libc::EPERM) => error,
            other => return Ok(other.map(|()| Vec::new())?),
        };
        // Somebody may have come since it was looked for others.
        match anchor::find(self.host, cgroup, &self.held) {
            Some(above) => self.hang_above(cgroup, above),
            None => Err(refused.into()),
        }
    }

    fn hang_above(&mut self, cgroup: &Cgroup, above: Above) -> Result<Vec<Cgroup>> {
        let Above { anchor, levels, why } = above;
        self.held.insert(why.path().to_owned());
        let hanging = self.counter.anchors();
        self.anchors.retain(|id, _| hanging.contains(id));
        // Anchors never nest: one that contains this one sees all that it would.
        let outer = |hung: &&Cgroup| hung.contains(&anchor) && self.host.cgroups.is_current(hung);
        let anchor = self.anchors.values().find(outer).cloned().unwrap_or(anchor);
        let inner = self.anchors.values().filter(|hung| anchor.is_above(hung));
        let mut moved = Vec::new();
        for id in inner.map(|hung| hung.id).collect::<Vec<_>>() {
            let by_it = |it: &&Cgroup| self.counter.anchor_of(it.id) == Some(id);
            moved.extend(self.hung.values().filter(by_it).cloned());
            self.counter.move_anchor(id, &anchor.dir)?;
            self.anchors.remove(&id);
        }
        moved.retain(|it| self.host.cgroups.is_current(it));
        self.counter.attach_above(&cgroup.dir, &anchor.dir, &levels)?;
        self.anchors.insert(anchor.id, anchor);
        Ok(moved)
    }

    /// Learns where on the tree is what the counter hung on when it was opened.
    pub(super) fn find_hung(&mut self) -> Result<()> {
        let (counted, anchors) = (self.counter.attached_cgroups(), self.counter.anchors());
        if counted.is_empty() && anchors.is_empty() {
            return Ok(());
        }
        let tree = self.host.cgroups.tree()?.into_iter();
        let mut tree: BTreeMap<u64, Cgroup> = tree.map(|cgroup| (cgroup.id, cgroup)).collect();
        self.anchors = anchors.iter().filter_map(|id| Some((*id, tree.get(id)?.clone()))).collect();
        tree.retain(|id, _| counted.contains(id));
        self.hung = tree;
        let selected = self.hung.values().filter(|it| self.counter.anchor_of(it.id).is_some());
        self.held = selected.map(|cgroup| cgroup.path.clone()).collect();
        Ok(())
    }

    /// The path of the anchor by which a cgroup is counted, if it is not hooked itself.
    fn anchor_of(&self, cgroup: &Cgroup) -> Option<&str> {
        let anchor = self.counter.anchor_of(cgroup.id)?;
        Some(self.anchors.get(&anchor).map_or("a cgroup above it", |anchor| &anchor.path))
    }

    /// A cgroup in words, with where the hooks are if not on itself.
    pub fn describe(&self, cgroup: &Cgroup) -> String {
        match self.anchor_of(cgroup) {
            Some(anchor) => format!("{} (by hooks on {anchor})", cgroup.path),
            None => cgroup.path.clone(),
        }
    }

    /// What is to be said of cgroups that are not hooked themselves.
    pub(super) fn above_findings(&self) -> Vec<Finding> {
        let of_cgroup = |cgroup: &Cgroup| {
            let hooked = self.anchor_of(cgroup)?;
            let why = anchor::find(self.host, cgroup, &self.held).map(|above| above.why);
            Some(finding::attached_above(cgroup, hooked, why.as_ref()))
        };
        self.plan.cgroups.iter().filter_map(of_cgroup).collect()
    }
}
