//! The compiled eBPF object: the committed one, embedded, or the one that a developer names.

use std::{borrow::Cow, env, fs, path::PathBuf};

use super::Error;

/// The committed object. Its manifest beside it says what it was built with.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../traffic-ebpf/prebuilt/traffic.bpf.o"
));

/// Returns the object to load: the embedded one, unless `TRAFFIC_AGENT_OBJECT` names another, which
/// is how a freshly built object is tested before it is committed.
pub fn bytes() -> Result<Cow<'static, [u8]>, Error> {
    match env::var_os("TRAFFIC_AGENT_OBJECT") {
        None => Ok(Cow::Borrowed(EMBEDDED)),
        Some(path) => {
            let path = PathBuf::from(path);
            fs::read(&path).map(Cow::Owned).map_err(|source| Error::Object { path, source })
        }
    }
}
