-- What other methods counted, beside what is exact (billed wire bytes) of the same span.
-- Methods: 1 iptables-port, 2 hook-port, 3 interface.

-- From one look to the next, about a minute. Null: nothing counts the direction, or not all ports.
CREATE TABLE reading (
    target INTEGER NOT NULL,
    method INTEGER NOT NULL,
    "start" INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    ingress INTEGER CHECK (ingress >= 0),
    egress INTEGER CHECK (egress >= 0),
    exact_ingress INTEGER NOT NULL CHECK (exact_ingress >= 0),
    exact_egress INTEGER NOT NULL CHECK (exact_egress >= 0),
    PRIMARY KEY (target, method, "start")
) STRICT, WITHOUT ROWID;

-- The same added up by the quarter of the start, apart for each set of directions that a reading has
-- (1: ingress, 2: egress), so that every sum of rows is a reading with its exact bytes.
CREATE TABLE reading_quarter (
    target INTEGER NOT NULL,
    method INTEGER NOT NULL,
    quarter INTEGER NOT NULL,
    directions INTEGER NOT NULL CHECK (directions BETWEEN 0 AND 3),
    milliseconds INTEGER NOT NULL CHECK (milliseconds >= 0),
    ingress INTEGER NOT NULL CHECK (ingress >= 0),
    egress INTEGER NOT NULL CHECK (egress >= 0),
    exact_ingress INTEGER NOT NULL CHECK (exact_ingress >= 0),
    exact_egress INTEGER NOT NULL CHECK (exact_egress >= 0),
    PRIMARY KEY (target, method, quarter, directions)
) STRICT, WITHOUT ROWID;
