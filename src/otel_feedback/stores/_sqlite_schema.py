"""The tables of a store's file, and how an older file becomes a newer one.

Everything about the shape of the file lives here; this file opens none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydantic_core

from otel_feedback.exceptions import StoreError

# "otfb": marks a file as ours (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x6F746662

_FIRST = """
CREATE TABLE keys (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    call TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    handle TEXT NOT NULL,
    UNIQUE (kind, key, call)
);
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    call TEXT NOT NULL,
    name TEXT NOT NULL,
    retracts INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (id, revision)
);
CREATE INDEX records_by_call ON records (call, name);
CREATE TABLE deliveries (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES records (sequence),
    id TEXT NOT NULL,
    state TEXT NOT NULL,
    due INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    parts TEXT,
    held INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (destination, sequence)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_id ON deliveries (id, destination, sequence);
CREATE INDEX deliveries_due ON deliveries (destination, due, sequence) WHERE state IN ('pending', 'leased');
CREATE INDEX deliveries_held ON deliveries (destination) WHERE held = 1;
CREATE TABLE pauses (destination TEXT PRIMARY KEY, until INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE parked (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    destinations TEXT,
    body TEXT NOT NULL,
    record_id TEXT
);
CREATE INDEX parked_by_key ON parked (kind, key) WHERE record_id IS NULL;
"""

# The accounts are kept by triggers, so that no statement can forget them, and outlive the rows that are pruned. A
# leased delivery still waits, so it counts as pending.
_SECOND = """
ALTER TABLE keys ADD COLUMN bound_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX keys_by_age ON keys (bound_at);
ALTER TABLE records ADD COLUMN put_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX records_by_age ON records (put_at) WHERE revision = 0;
ALTER TABLE deliveries ADD COLUMN span INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN standing TEXT;
ALTER TABLE deliveries ADD COLUMN body TEXT;
ALTER TABLE pauses ADD COLUMN probe INTEGER NOT NULL DEFAULT 0;
ALTER TABLE parked ADD COLUMN recorded_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX deliveries_by_span ON deliveries (destination, span, sequence) WHERE state IN ('pending', 'leased');
CREATE INDEX deliveries_by_age ON deliveries (destination, accepted_at) WHERE state IN ('pending', 'leased');
CREATE INDEX parked_by_age ON parked (recorded_at) WHERE record_id IS NULL;
CREATE INDEX parked_by_record ON parked (record_id) WHERE record_id IS NOT NULL;
CREATE TABLE tallies (
    destination TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (destination, state, reason)
) WITHOUT ROWID;
INSERT INTO tallies
SELECT
    destination,
    CASE state WHEN 'leased' THEN 'pending' ELSE state END,
    CASE state WHEN 'skipped' THEN coalesce(reason, '') ELSE '' END,
    count(*)
FROM deliveries GROUP BY 1, 2, 3;
UPDATE records SET put_at = coalesce(json_extract(body, '$.recorded_at_unix_nano'), 0);
UPDATE keys SET bound_at = started_at;
UPDATE parked SET recorded_at = coalesce(json_extract(body, '$.recorded_at_unix_nano'), 0);
CREATE TRIGGER deliveries_enter AFTER INSERT ON deliveries BEGIN
    INSERT INTO tallies VALUES (
        NEW.destination,
        CASE NEW.state WHEN 'leased' THEN 'pending' ELSE NEW.state END,
        CASE NEW.state WHEN 'skipped' THEN coalesce(NEW.reason, '') ELSE '' END,
        1
    ) ON CONFLICT (destination, state, reason) DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER deliveries_leave AFTER UPDATE OF state ON deliveries
WHEN OLD.state IN ('pending', 'leased') AND NEW.state NOT IN ('pending', 'leased') BEGIN
    UPDATE tallies SET count = count - 1
    WHERE destination = OLD.destination AND state = 'pending' AND reason = '';
    INSERT INTO tallies VALUES (
        NEW.destination, NEW.state, CASE NEW.state WHEN 'skipped' THEN coalesce(NEW.reason, '') ELSE '' END, 1
    ) ON CONFLICT (destination, state, reason) DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER deliveries_return AFTER UPDATE OF state ON deliveries
WHEN OLD.state = 'dead' AND NEW.state <> 'dead' BEGIN
    UPDATE tallies SET count = count - 1 WHERE destination = OLD.destination AND state = 'dead' AND reason = '';
    INSERT INTO tallies VALUES (NEW.destination, NEW.state, '', 1)
    ON CONFLICT (destination, state, reason) DO UPDATE SET count = count + 1;
END;
"""


# Which store a file is, whatever its name, and how often it was put back or saved from damage: of two files of one
# store the later one has all that the other had.
_THIRD = """
CREATE TABLE origin (id TEXT NOT NULL, generation INTEGER NOT NULL);
INSERT INTO origin VALUES (lower(hex(randomblob(16))), 0);
"""


def _script(text: str) -> Callable[[sqlite3.Connection], None]:
    """Make a migration of statements; `executescript` would commit before it began."""

    def run(connection: sqlite3.Connection) -> None:
        statement = ""
        for line in text.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):  # which knows where a trigger ends
                connection.execute(statement)
                statement = ""

    return run


def _fill_second(connection: sqlite3.Connection) -> None:
    """Work out what the first schema did not keep: the span, and what stands of the earlier revisions."""
    standing: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}  # whether it is unclear, and the revisions
    rows = connection.execute(
        "SELECT d.destination, d.sequence, d.id, d.parts, r.call, r.revision, r.retracts FROM deliveries AS d "
        "JOIN records AS r ON r.sequence = d.sequence ORDER BY d.destination, d.sequence"
    ).fetchall()
    for destination, sequence, record_id, parts, call, revision, retracts in rows:
        stands = standing.setdefault((destination, record_id), {})
        for kind, (state, _) in pydantic_core.from_json(parts or "{}").items():
            if state in ("delivered", "unclear"):
                _, *before = stands.pop(kind, (False,))
                said = () if retracts else (revision,)
                after = (*said, *before) if state == "unclear" else said
                if after:
                    stands[kind] = (state == "unclear", *after)
        connection.execute(
            "UPDATE deliveries SET span = ?, standing = ? WHERE destination = ? AND sequence = ?",
            (span_of(call), pydantic_core.to_json(stands).decode() if parts else None, destination, sequence),
        )


# From an empty file to the newest schema; the version of a file is how many of them it has.
MIGRATIONS: Sequence[Sequence[Callable[[sqlite3.Connection], None]]] = (
    (_script(_FIRST),),
    (_script(_SECOND), _fill_second),
    (_script(_THIRD),),
)
SCHEMA_VERSION = len(MIGRATIONS)


def span_of(call: str) -> int:
    """Read the span's id at the end of a call's text as the signed number that SQLite keeps in 8 bytes."""
    return int.from_bytes(bytes.fromhex(call[-16:]), "big", signed=True)


def migrate(connection: sqlite3.Connection, version: int, to: int = SCHEMA_VERSION) -> None:
    """Bring an open transaction's file from a version to a newer one, and mark it."""
    for steps in MIGRATIONS[version:to]:
        for step in steps:
            step(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    # Written each time: a transaction in a file that can only be read succeeds until something is written.
    connection.execute(f"PRAGMA user_version = {to}")


def descend(connection: sqlite3.Connection, store: str, generation: int) -> None:
    """Mark a file as what has become of another one of a store."""
    connection.execute("UPDATE origin SET id = ?, generation = ?", (store, generation + 1))


def claim(connection: sqlite3.Connection, path: Path, url: str) -> None:
    """Migrate an empty or an older file in an open transaction; refuse one that is not ours or is newer.

    Raises:
        StoreError: when it is refused.
    """
    application_id = scalar(connection, "PRAGMA application_id")
    is_empty = application_id == 0 and scalar(connection, "SELECT count(*) FROM sqlite_master") == 0
    if not is_empty and application_id != APPLICATION_ID:
        raise StoreError(f"{path} is another program's database; give the store a file of its own", store=url)
    refuse_newer(connection, path, url)
    migrate(connection, scalar(connection, "PRAGMA user_version"))


def refuse_newer(connection: sqlite3.Connection, path: Path, url: str) -> None:
    """Refuse a file that a newer release has migrated, be it while this process had it open.

    Raises:
        StoreError: when it is newer.
    """
    version = scalar(connection, "PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer release of otel-feedback (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade this process too",
            store=url,
        )


def scalar(connection: sqlite3.Connection, sql: str) -> Any:
    """Read the first column of the first row."""
    return connection.execute(sql).fetchone()[0]
