//! Which cgroup has which id: what the host's ledger calls them.

use std::collections::{BTreeMap, BTreeSet};

use traffic_ebpf::HOST_NOBODY;

use super::ledger::Owner;
use crate::target::{Error, Hierarchy};

/// What the kernel sends through sockets of its own.
pub const KERNEL: &str = "(kernel)";
/// A cgroup that was gone before anybody saw its path.
pub const REMOVED: &str = "(removed)";
/// What found no place.
pub const OVERFLOW: &str = "(overflow)";

/// So many paths are kept, some 100 bytes each.
const MOST_PATHS: usize = 8192;

/// The paths of cgroups by id. One that was removed keeps its last known path as long as it is counted.
#[derive(Default)]
pub struct Paths {
    by_id: BTreeMap<u64, String>,
}

impl Paths {
    /// Learns the paths of these owners. The tree is walked only if one of them is not known yet.
    pub fn learn<'o>(
        &mut self,
        tree: &Hierarchy,
        owners: impl IntoIterator<Item = &'o Owner>,
    ) -> Result<(), Error> {
        let is_new = |owner: &Owner| match owner {
            Owner::Key(key) => key.cgroup != HOST_NOBODY && !self.by_id.contains_key(&key.cgroup),
            Owner::Overflow => false,
        };
        if owners.into_iter().any(is_new) {
            self.by_id.extend(tree.paths_by_id()?);
        }
        Ok(())
    }

    /// What an owner is called.
    pub fn name(&self, owner: Owner) -> &str {
        match owner {
            Owner::Key(key) if key.cgroup == HOST_NOBODY => KERNEL,
            Owner::Key(key) => self.by_id.get(&key.cgroup).map_or(REMOVED, String::as_str),
            Owner::Overflow => OVERFLOW,
        }
    }

    /// Forgets what is not counted any more once there is a lot of it: cgroups that come and go must not pile
    /// up here, but the orphans of one that was removed may speak up late.
    pub fn forget_all_but(&mut self, live: impl Iterator<Item = u64>) {
        if self.by_id.len() <= MOST_PATHS {
            return;
        }
        let live: BTreeSet<u64> = live.collect();
        self.by_id.retain(|id, _| live.contains(id));
    }
}
