//! The links of one instance: which program hangs on what. Held by their descriptors, and pinned where
//! counting is to go on without the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{attached::Hook, bpf, pins::Pins};

/// Why a link could not be made, pinned or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct LinkError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn link_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LinkError {
    let path = path.to_owned();
    move |source| LinkError { action, path, source }
}

/// What a link counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// All of its cgroup.
    Whole,
    /// Of its cgroup, the anchor, those that are selected.
    Selected,
}

/// A hook of a cgroup.
type Place = (u64, Hook);

/// All links of an instance.
#[derive(Default)]
pub(super) struct Links {
    pins: Option<Pins>,
    cgroups: BTreeMap<Place, OwnedFd>,
    anchors: BTreeMap<Place, OwnedFd>,
    tracepoints: Vec<(String, OwnedFd)>,
}

/// A pinned link by its name: `c<cgroup id>_<hook>`, `a<anchor's id>_<hook>` or `t<generation>_<program>`.
fn parse_place(name: &str) -> Option<(Reach, Place)> {
    let (reach, rest) = match name.strip_prefix('c') {
        Some(rest) => (Reach::Whole, rest),
        None => (Reach::Selected, name.strip_prefix('a')?),
    };
    let (id, hook) = rest.split_once('_')?;
    let hook = Hook::LINKED.into_iter().find(|known| known.name() == hook)?;
    Some((reach, (id.parse().ok()?, hook)))
}

fn name_of(reach: Reach, (id, hook): Place) -> String {
    let letter = match reach {
        Reach::Whole => 'c',
        Reach::Selected => 'a',
    };
    format!("{letter}{id}_{}", hook.name())
}

/// Whether pins have links that select.
pub(super) fn any_selects(pins: &Pins) -> Result<bool, super::pins::Error> {
    let names = pins.link_names()?;
    let mut places = names.iter().filter_map(|name| parse_place(name));
    Ok(places.any(|(reach, _)| reach == Reach::Selected))
}

impl Links {
    /// Links that end with the agent.
    pub(super) fn held() -> Self {
        Self::default()
    }

    /// Links that are pinned: takes over those that are there already, and puts these programs in the
    /// place of theirs. Those of an earlier version move over.
    ///
    /// `program`: the one for such a link to a hook; without one its links are removed.
    pub(super) fn adopt<'p>(
        pins: Pins,
        earlier: &[Pins],
        program: impl Fn(Reach, Hook) -> Option<BorrowedFd<'p>>,
    ) -> Result<Self, super::Error> {
        let mut links = Self { pins: Some(pins.clone()), ..Self::default() };
        for source in earlier.iter().chain([&pins]) {
            for name in source.link_names()? {
                let path = source.link(&name);
                let Some((reach, place)) = parse_place(&name) else { continue };
                let link = bpf::open_pinned(&path).map_err(link_error("open the link", &path))?;
                let alive = bpf::cgroup_of(&link).map_err(link_error("ask for", &path))? != 0;
                let replaced = match program(reach, place.1) {
                    Some(program) if alive => bpf::replace_program(&link, program),
                    _ => Err(io::Error::from_raw_os_error(libc::ENOLINK)),
                };
                match replaced {
                    Ok(()) => links.keep(reach, place, link)?,
                    // Its cgroup is gone, perhaps since the question above.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(link_error("change", &path)(error).into()),
                }
                if source != &pins || !links.of(reach).contains_key(&place) {
                    remove(&path)?;
                }
            }
        }
        Ok(links)
    }

    fn of(&mut self, reach: Reach) -> &mut BTreeMap<Place, OwnedFd> {
        match reach {
            Reach::Whole => &mut self.cgroups,
            Reach::Selected => &mut self.anchors,
        }
    }

    fn keep(&mut self, reach: Reach, place: Place, link: OwnedFd) -> Result<(), LinkError> {
        self.pin(&name_of(reach, place), &link)?;
        self.of(reach).insert(place, link);
        Ok(())
    }

    fn pin(&self, name: &str, link: &OwnedFd) -> Result<(), LinkError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let path = pins.link(name);
        match bpf::pin(link, &path) {
            // This very link: two of one name are never made.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(link_error("pin a link at", &path)),
        }
    }

    /// Attaches a program to a hook of a cgroup, if none is attached there for this instance.
    pub(super) fn attach(
        &mut self,
        place: Place,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        self.hang(Reach::Whole, place, program, cgroup)
    }

    /// The same for one that counts what is selected of the cgroup.
    pub(super) fn hang_anchor(
        &mut self,
        place: Place,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        self.hang(Reach::Selected, place, program, cgroup)
    }

    fn hang(
        &mut self,
        reach: Reach,
        place: Place,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        if !self.of(reach).contains_key(&place) {
            let link = bpf::attach_to_cgroup(program, cgroup, place.1 as u32)
                .map_err(AttachError::Refused)?;
            self.keep(reach, place, link).map_err(AttachError::Pin)?;
        }
        Ok(())
    }

    /// Attaches a program to its tracepoint.
    pub(super) fn attach_to_tracepoint(
        &mut self,
        generation: u32,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let link = bpf::attach_to_tracepoint(program).map_err(AttachError::Refused)?;
        let name = format!("t{generation}_{name}");
        self.pin(&name, &link).map_err(AttachError::Pin)?;
        self.tracepoints.push((name, link));
        Ok(())
    }

    /// Detaches from all tracepoints.
    pub(super) fn leave_tracepoints(&mut self) -> Result<(), LinkError> {
        for (name, _link) in std::mem::take(&mut self.tracepoints) {
            if let Some(pins) = &self.pins {
                remove(&pins.link(&name))?;
            }
        }
        Ok(())
    }

    /// Removes the tracepoints' links of earlier generations, which these have taken over.
    pub(super) fn remove_earlier_tracepoints(&self, earlier: &[Pins]) -> Result<(), super::Error> {
        for source in earlier.iter().chain(&self.pins) {
            for name in source.link_names()? {
                let is_own = self.tracepoints.iter().any(|(own, _)| *own == name);
                if name.starts_with('t') && !(is_own && Some(source) == self.pins.as_ref()) {
                    remove(&source.link(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Ids of the cgroups that these links hang on, but for anchors.
    pub(super) fn cgroups(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.cgroups.keys().map(|(id, _)| *id).collect();
        ids.dedup();
        ids
    }

    /// Lets go of the links whose cgroup is gone with its last socket, and returns the ids. Until then they
    /// count what its orphaned connections still send.
    pub(super) fn reap(&mut self) -> Result<Vec<u64>, LinkError> {
        let mut gone = Vec::new();
        for id in self.cgroups() {
            let of_cgroup = self.cgroups.range((id, Hook::Ingress)..=(id, Hook::Release));
            let is_gone =
                of_cgroup.clone().all(|(_, link)| bpf::cgroup_of(link).is_ok_and(|id| id == 0));
            if is_gone {
                gone.push(id);
            }
        }
        for &id in &gone {
            self.detach(id)?;
        }
        Ok(gone)
    }

    /// Detaches from a cgroup.
    pub(super) fn detach(&mut self, id: u64) -> Result<(), LinkError> {
        self.leave(Reach::Whole, id, Hook::LINKED)
    }

    /// Detaches from some hooks of a cgroup.
    pub(super) fn detach_hooks<const N: usize>(
        &mut self,
        id: u64,
        hooks: [Hook; N],
    ) -> Result<(), LinkError> {
        self.leave(Reach::Whole, id, hooks)
    }

    /// Detaches from an anchor.
    pub(super) fn detach_anchor(&mut self, id: u64) -> Result<(), LinkError> {
        self.leave(Reach::Selected, id, Hook::LINKED)
    }

    fn leave<const N: usize>(
        &mut self,
        reach: Reach,
        id: u64,
        hooks: [Hook; N],
    ) -> Result<(), LinkError> {
        for hook in hooks {
            if self.of(reach).remove(&(id, hook)).is_some()
                && let Some(pins) = &self.pins
            {
                remove(&pins.link(&name_of(reach, (id, hook))))?;
            }
        }
        Ok(())
    }

    /// Ids of the anchors that these links hang on.
    pub(super) fn anchors(&self) -> BTreeSet<u64> {
        self.anchors.keys().map(|(id, _)| *id).collect()
    }

    /// Whether the hooks of an anchor are all there.
    pub(super) fn has_anchor(&self, id: u64) -> bool {
        [Hook::Ingress, Hook::Egress].into_iter().all(|hook| is_at(&self.anchors, (id, hook)))
    }

    /// Pins once more what is pinned no longer: somebody has unmounted the file system.
    pub(super) fn pin_again(&self) -> Result<(), LinkError> {
        for (reach, links) in [(Reach::Whole, &self.cgroups), (Reach::Selected, &self.anchors)] {
            for (place, link) in links {
                self.pin(&name_of(reach, *place), link)?;
            }
        }
        for (name, link) in &self.tracepoints {
            self.pin(name, link)?;
        }
        Ok(())
    }

    /// Whether a link to this hook of this cgroup is there.
    pub(super) fn has(&self, place: Place) -> bool {
        is_at(&self.cgroups, place)
    }
}

/// Whether one of these links is at this place, where the cgroup is still there.
fn is_at(links: &BTreeMap<Place, OwnedFd>, place: Place) -> bool {
    let link = links.get(&place);
    link.is_some_and(|link| bpf::cgroup_of(link.as_fd()).is_ok_and(|found| found == place.0))
}

/// Why a program was not attached.
#[derive(Debug)]
pub(super) enum AttachError {
    /// The kernel refused.
    Refused(io::Error),
    /// It was attached, but not pinned.
    Pin(LinkError),
}

fn remove(path: &Path) -> Result<(), LinkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(link_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_read_as_they_are_written() {
        for place in [(1, Hook::Ingress), (u64::MAX, Hook::Release)] {
            for reach in [Reach::Whole, Reach::Selected] {
                assert_eq!(parse_place(&name_of(reach, place)), Some((reach, place)));
            }
        }
        assert_eq!(parse_place("t3_count_reset"), None);
        assert_eq!(parse_place("c_ingress"), None);
        assert_eq!(parse_place("c7_nothing"), None);
    }
}
