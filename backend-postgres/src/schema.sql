-- Every event, in the order of its version.
CREATE TABLE {schema}.events (
    -- 1, 2, 3, ... without a gap.
    version      bigint PRIMARY KEY CHECK (version > 0),
    -- The same for each aggregate.
    revision     bigint NOT NULL CHECK (revision > 0),
    recorded_at  timestamptz NOT NULL,
    -- Texts are UTF-8 in bytea: the type text has no U+0000.
    id           bytea NOT NULL,
    type         bytea NOT NULL,
    aggregate_id bytea NOT NULL,
    metadata     bytea NOT NULL,
    data         bytea NOT NULL,
    -- Of this event and all before it.
    digest       bytea NOT NULL
);
CREATE UNIQUE INDEX events_id ON {schema}.events (id);
CREATE UNIQUE INDEX events_aggregate ON {schema}.events (aggregate_id, revision) INCLUDE (version);

-- One row. Whoever appends locks it first: so versions are given, and become visible, in order.
CREATE TABLE {schema}.head (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The version of these tables.
    format     integer NOT NULL,
    store_id   text NOT NULL,
    -- The newest event's.
    version    bigint NOT NULL,
    -- That of the newest event whose transaction waited for the disk.
    synced     bigint NOT NULL,
    -- How many aggregates have events.
    aggregates bigint NOT NULL,
    -- Bytes of the largest event: texts and data.
    largest    bigint NOT NULL,
    -- Of all events.
    digest     bytea NOT NULL
) WITH (fillfactor = 10);
INSERT INTO {schema}.head (format, store_id, version, synced, aggregates, largest, digest)
    VALUES (1, '{store_id}', 0, 0, 0, 0, decode(repeat('00', 32), 'hex'));
