-- Counters are six columns, always in this order: packets, bytes, wire_packets, wire_bytes, payload_bytes,
-- retransmitted_bytes. Times are milliseconds since 1970-01-01T00:00Z, quarters are quarters of an hour since
-- then, days are days since 1970-01-01.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('store_id', lower(hex(randomblob(16))));

CREATE TABLE target (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    selector TEXT NOT NULL,
    -- When the first span that was flushed began, and when the last one ended.
    since INTEGER NOT NULL,
    flushed_at INTEGER NOT NULL
) STRICT;

-- The dictionary of coordinates. Port 0 stands for none.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    target INTEGER NOT NULL REFERENCES target,
    interface TEXT NOT NULL,
    scope TEXT NOT NULL,
    origin TEXT NOT NULL,
    direction TEXT NOT NULL,
    leg TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port INTEGER NOT NULL,
    family TEXT NOT NULL,
    UNIQUE (target, interface, scope, origin, direction, leg, protocol, port, family)
) STRICT;

-- The truth.
CREATE TABLE quarter (
    target INTEGER NOT NULL,
    quarter INTEGER NOT NULL,
    series INTEGER NOT NULL,
    packets INTEGER NOT NULL CHECK (packets >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    wire_packets INTEGER NOT NULL CHECK (wire_packets >= 0),
    wire_bytes INTEGER NOT NULL CHECK (wire_bytes >= 0),
    payload_bytes INTEGER NOT NULL CHECK (payload_bytes >= 0),
    retransmitted_bytes INTEGER NOT NULL CHECK (retransmitted_bytes >= 0),
    PRIMARY KEY (target, quarter, series)
) STRICT, WITHOUT ROWID;

-- The same by day, and the truth for days whose quarters are no longer kept.
CREATE TABLE day (
    target INTEGER NOT NULL,
    day INTEGER NOT NULL,
    series INTEGER NOT NULL,
    packets INTEGER NOT NULL CHECK (packets >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    wire_packets INTEGER NOT NULL CHECK (wire_packets >= 0),
    wire_bytes INTEGER NOT NULL CHECK (wire_bytes >= 0),
    payload_bytes INTEGER NOT NULL CHECK (payload_bytes >= 0),
    retransmitted_bytes INTEGER NOT NULL CHECK (retransmitted_bytes >= 0),
    PRIMARY KEY (target, day, series)
) STRICT, WITHOUT ROWID;

-- The quarters that a day was made of, the last one not included. Frozen: they are no longer kept.
CREATE TABLE cut (
    day INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    after INTEGER NOT NULL,
    frozen INTEGER NOT NULL CHECK (frozen IN (0, 1))
) STRICT;

-- Milliseconds that were observed.
CREATE TABLE observed (
    target INTEGER NOT NULL,
    quarter INTEGER NOT NULL,
    milliseconds INTEGER NOT NULL CHECK (milliseconds >= 0),
    PRIMARY KEY (target, quarter)
) STRICT, WITHOUT ROWID;

CREATE TABLE observed_day (
    target INTEGER NOT NULL,
    day INTEGER NOT NULL,
    milliseconds INTEGER NOT NULL CHECK (milliseconds >= 0),
    PRIMARY KEY (target, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    target INTEGER NOT NULL,
    "start" INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_target ON event (target, "start");

CREATE TABLE epoch (
    id INTEGER PRIMARY KEY,
    target INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    map_id INTEGER NOT NULL,
    UNIQUE (target, boot_id, map_id)
) STRICT;

-- Counters as last read, by place in a sample. Two's complement: a u64 in full.
CREATE TABLE absolute (
    epoch INTEGER NOT NULL,
    cell INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    wire_packets INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    payload_bytes INTEGER NOT NULL,
    retransmitted_bytes INTEGER NOT NULL,
    PRIMARY KEY (epoch, cell)
) STRICT, WITHOUT ROWID;
