-- The host's ledger: what every cgroup used, and what the interfaces counted meanwhile.

-- The dictionary. No target: ''.
CREATE TABLE host_series (
    id INTEGER PRIMARY KEY,
    cgroup TEXT NOT NULL,
    target TEXT NOT NULL,
    interface TEXT NOT NULL,
    direction TEXT NOT NULL,
    UNIQUE (cgroup, target, interface, direction)
) STRICT;

CREATE TABLE host_quarter (
    quarter INTEGER NOT NULL,
    series INTEGER NOT NULL,
    packets INTEGER NOT NULL CHECK (packets >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    wire_packets INTEGER NOT NULL CHECK (wire_packets >= 0),
    wire_bytes INTEGER NOT NULL CHECK (wire_bytes >= 0),
    PRIMARY KEY (quarter, series)
) STRICT, WITHOUT ROWID;

-- Bytes with the link-layer headers, as far as the driver counts them.
CREATE TABLE host_interface (
    quarter INTEGER NOT NULL,
    interface TEXT NOT NULL,
    ingress_bytes INTEGER NOT NULL CHECK (ingress_bytes >= 0),
    ingress_packets INTEGER NOT NULL CHECK (ingress_packets >= 0),
    egress_bytes INTEGER NOT NULL CHECK (egress_bytes >= 0),
    egress_packets INTEGER NOT NULL CHECK (egress_packets >= 0),
    PRIMARY KEY (quarter, interface)
) STRICT, WITHOUT ROWID;

-- Counters as last read. One row at most.
CREATE TABLE host_epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id TEXT NOT NULL,
    map_id INTEGER NOT NULL
) STRICT;

-- All numbers in two's complement. Direction: 0 ingress, 1 egress. What found no place: namespace -1.
CREATE TABLE host_absolute (
    turn INTEGER NOT NULL,
    cgroup INTEGER NOT NULL,
    namespace INTEGER NOT NULL,
    interface INTEGER NOT NULL,
    direction INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    wire_packets INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    PRIMARY KEY (turn, cgroup, namespace, interface, direction)
) STRICT, WITHOUT ROWID;

CREATE TABLE host_device (
    name TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    ingress_bytes INTEGER NOT NULL,
    ingress_packets INTEGER NOT NULL,
    egress_bytes INTEGER NOT NULL,
    egress_packets INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
