//! Names and ids of containers, read from the files of docker and podman.
//!
//! Their daemons are not asked: docker's socket would need a client, and podman has no daemon. The
//! files say which name belongs to which id, and the id is part of the cgroup's name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::known::command;
use super::{Candidates, Cgroup, Error, Host, Value};

/// The shortest beginning of an id that is taken for one; a shorter word is only a name.
const ID_MIN: usize = 4;

/// Where containers are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stores {
    /// Data roots of docker, such as /var/lib/docker.
    pub docker: Vec<PathBuf>,
    /// Storage roots of podman, such as /var/lib/containers/storage.
    pub podman: Vec<PathBuf>,
}

impl Stores {
    /// The usual places, docker's configured one, and those of users without rights.
    pub fn detect() -> Self {
        let mut docker: Vec<_> = fs::read_to_string("/etc/docker/daemon.json")
            .ok()
            .and_then(|text| serde_json::from_str::<DockerDaemon>(&text).ok())
            .and_then(|daemon| daemon.data_root)
            .into_iter()
            .collect();
        let mut podman = vec![PathBuf::from("/var/lib/containers/storage")];
        docker.push("/var/lib/docker".into());
        let homes =
            || fs::read_dir("/home").into_iter().flatten().flatten().map(|home| home.path());
        let snap = PathBuf::from("/var/snap/docker/common/var-lib-docker");
        let rootless = homes().map(|home| home.join(".local/share/docker"));
        docker.extend([snap].into_iter().chain(rootless).filter(|path| path.exists()));
        let rootless = homes().map(|home| home.join(".local/share/containers/storage"));
        podman.extend(rootless.filter(|path| path.exists()));
        Self { docker, podman }
    }

    /// Returns the containers that are stored, running or not, and what was looked at.
    pub fn list(&self) -> (Vec<Container>, Vec<String>) {
        let (mut found, mut looked_at) = (Vec::new(), Vec::new());
        let mut look = |path: &Path, result: Result<Vec<Container>, String>| match result {
            Ok(containers) => {
                looked_at.push(format!("{} ({} found)", path.display(), containers.len()));
                found.extend(containers);
            }
            Err(error) => looked_at.push(format!("{} ({error})", path.display())),
        };
        for root in &self.docker {
            let path = root.join("containers");
            look(&path, read_docker(&path));
        }
        for root in &self.podman {
            for file in ["containers.json", "volatile-containers.json"] {
                let path = root.join("overlay-containers").join(file);
                let result = read(&path).and_then(|text| parse_podman(&text));
                look(&path, result);
            }
        }
        (found, looked_at)
    }
}

/// A container as its engine has stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Names without a slash.
    pub names: Vec<String>,
}

#[derive(Deserialize)]
struct DockerDaemon {
    #[serde(rename = "data-root")]
    data_root: Option<PathBuf>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name")]
    name: String,
}

#[derive(Deserialize)]
struct PodmanContainer {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| reason(&error))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not there".to_owned(),
        io::ErrorKind::PermissionDenied => "not readable, run as root".to_owned(),
        _ => error.to_string(),
    }
}

fn read_docker(containers: &Path) -> Result<Vec<Container>, String> {
    let entries = fs::read_dir(containers).map_err(|error| reason(&error))?;
    // One container that is just being removed, or whose file is damaged, hides no other.
    let parse = |dir: PathBuf| parse_docker(&read(&dir.join("config.v2.json")).ok()?).ok();
    Ok(entries.flatten().filter_map(|entry| parse(entry.path())).collect())
}

fn parse_docker(text: &str) -> Result<Container, String> {
    let DockerConfig { id, name } =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Container { id, names: vec![name.trim_start_matches('/').to_owned()] })
}

fn parse_podman(text: &str) -> Result<Vec<Container>, String> {
    let containers: Vec<PodmanContainer> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let convert = |c: PodmanContainer| Container { id: c.id, names: c.names.unwrap_or_default() };
    Ok(containers.into_iter().map(convert).collect())
}

/// Returns the container id in the last component of a cgroup path: `docker-ID.scope`, `libpod-ID`,
/// `/docker/ID` and the like.
pub fn id_in_path(path: &str) -> Option<&str> {
    let component = path.rsplit('/').next()?;
    let stem = component.strip_suffix(".scope").unwrap_or(component);
    let (engine, id) = stem.rsplit_once('-').unwrap_or(("", stem));
    let is_id = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    // Podman's monitor of a container is not the container.
    (is_id && engine != "libpod-conmon").then_some(id)
}

/// Returns the cgroups of the running container of that name, or whose id begins so.
pub(super) fn cgroups(host: &Host, wanted: &str) -> Result<Vec<Cgroup>, Error> {
    let mut running: BTreeMap<String, Vec<Cgroup>> = BTreeMap::new();
    for cgroup in host.cgroups.tree()? {
        if let Some(id) = id_in_path(&cgroup.path) {
            running.entry(id.to_owned()).or_default().push(cgroup.clone());
        }
    }
    let (stored, mut looked_at) = host.containers.list();
    looked_at.push(format!(
        "the cgroup tree at {} ({} containers running)",
        host.cgroups.mount().display(),
        running.len()
    ));
    let missing = |reason: String| Error::NoSuchContainer {
        container: wanted.to_owned(),
        reason,
        looked_at: looked_at.join(", "),
    };
    let ids = matching(wanted, &stored, running.keys());
    match ids.as_slice() {
        [id] => Ok(running.remove(id).expect("an id from its own keys")),
        [] if stored.iter().any(|container| container.names.iter().any(|name| name == wanted)) => {
            Err(missing("it is stored, but has no cgroup: it is not running".to_owned()))
        }
        [] => Err(missing("no running container has that name or id".to_owned())),
        several => Err(Error::Ambiguous {
            selector: format!("container:{wanted}"),
            count: several.len(),
            candidates: Candidates(
                several.iter().map(|id| command(&Value::Container(format!("{id:.12}")))).collect(),
            ),
        }),
    }
}

/// Returns the running ids that `wanted` means: a name goes before the beginning of an id.
fn matching<'a>(
    wanted: &str,
    stored: &[Container],
    running: impl Iterator<Item = &'a String>,
) -> Vec<String> {
    let running: Vec<_> = running.cloned().collect();
    let named = |id: &&String| {
        stored.iter().any(|c| c.id == **id && c.names.iter().any(|name| name == wanted))
    };
    let by_name: Vec<_> = running.iter().filter(named).cloned().collect();
    if !by_name.is_empty() || wanted.len() < ID_MIN {
        return by_name;
    }
    running.into_iter().filter(|id| id.starts_with(&wanted.to_ascii_lowercase())).collect()
}

/// Returns the name of a container whose id is in `path`, or the beginning of the id.
pub(super) fn name_in_path(stored: &[Container], path: &str) -> Option<String> {
    let id = id_in_path(path)?;
    let name = stored.iter().find(|c| c.id == id).and_then(|c| c.names.first()).cloned();
    Some(name.unwrap_or_else(|| id[..12].to_owned()))
}
