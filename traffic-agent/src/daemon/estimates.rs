//! The looks of [`crate::background`], once a minute: one per network namespace, for all targets in it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use jiff::Timestamp;

use crate::background::{Look, Observer};
use crate::method::ListeningPort;
use crate::netns::NetNs;

/// Where a target is, and its ports.
#[derive(Debug)]
pub struct Place {
    /// Name of the target.
    pub target: String,
    /// Its network namespace.
    pub network: NetNs,
    /// Its listening ports.
    pub ports: Vec<ListeningPort>,
}

/// A look that has ended.
#[derive(Debug)]
pub struct Looked {
    /// What was found.
    pub look: Look,
    /// The targets that it is of.
    pub targets: Vec<String>,
    /// When it began.
    pub at: Timestamp,
}

/// An observer, and what it looks at now.
#[derive(Debug, Default)]
struct Post {
    observer: Observer,
    targets: Vec<String>,
    at: Timestamp,
}

/// The observers, by the namespace's inode.
#[derive(Debug, Default)]
pub struct Estimates {
    posts: BTreeMap<u64, Post>,
}

impl Estimates {
    /// Begins to look at these. A namespace whose last look has not ended is left out this time.
    pub fn start(&mut self, places: Vec<Place>, at: Timestamp) {
        let mut by_namespace: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for place in places {
            by_namespace.entry(place.network.inode()).or_default().push(place);
        }
        // Namespaces that no target is in any more.
        self.posts
            .retain(|inode, post| by_namespace.contains_key(inode) || post.observer.is_looking());
        for (inode, places) in by_namespace {
            let post = self.posts.entry(inode).or_default();
            if post.observer.is_looking() {
                continue;
            }
            let mut ports: Vec<_> = places.iter().flat_map(|place| place.ports.clone()).collect();
            ports.sort_unstable();
            ports.dedup();
            post.targets = places.iter().map(|place| place.target.clone()).collect();
            post.at = at;
            if let Some(place) = places.into_iter().next() {
                post.observer.start(place.network, ports);
            }
        }
    }

    /// Waits for the next look that ends; for ever if none is under way. May be dropped and called again.
    pub async fn next(&mut self) -> Looked {
        poll_fn(|context| {
            for post in self.posts.values_mut().filter(|post| post.observer.is_looking()) {
                if let Poll::Ready(look) = pin!(post.observer.finished()).poll(context) {
                    let targets = std::mem::take(&mut post.targets);
                    return Poll::Ready(Looked { look, targets, at: post.at });
                }
            }
            Poll::Pending
        })
        .await
    }
}
