-- What the numbers of a target's interfaces stood for when its counters were last read, as long as there are
-- counters of theirs: when they are read again, the interfaces may be gone.
CREATE TABLE interface (
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    scope TEXT NOT NULL,
    PRIMARY KEY (epoch, number)
) STRICT, WITHOUT ROWID;

-- Until when it was observed, in milliseconds since boot. Null: not known, or never.
ALTER TABLE target ADD COLUMN observed_until INTEGER;
