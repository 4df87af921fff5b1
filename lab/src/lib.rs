//! What the demo and the tests share: namespaces, links, captures, a relay and workloads.
