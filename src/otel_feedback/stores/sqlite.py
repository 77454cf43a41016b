"""The embedded store: one SQLite file that any number of processes share."""

from __future__ import annotations

import os
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pydantic_core

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import (
    DeliveryStatus,
    FeedbackRecord,
    handle_from_json,
    handle_to_json,
    record_from_json,
    record_to_json,
)
from otel_feedback._time import NANOS_PER_MILLI, Clock, SystemClock
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import (
    TRANSITIONS,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Lease,
    Parked,
    PartState,
    Revision,
    Settlement,
)

# "otfb": marks a file as ours (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x6F746662
SCHEMA_VERSION = 1

# A writer holds the lock for one small transaction; whoever waits this long has found a stuck process.
BUSY_TIMEOUT_MILLIS = 10_000

SCHEMA = """
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

BIND = """
INSERT INTO keys (kind, key, call, started_at, handle) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, key, call) DO UPDATE SET started_at = excluded.started_at, handle = excluded.handle
"""
FIND = "SELECT handle FROM keys WHERE kind = ? AND key = ? ORDER BY started_at DESC, rowid DESC"

NEXT_REVISION = "SELECT coalesce(max(revision) + 1, 0) FROM records WHERE id = ?"
INSERT_RECORD = "INSERT INTO records (id, revision, call, name, retracts, body) VALUES (?, ?, ?, ?, ?, ?)"
REPLACE_PENDING = "UPDATE deliveries SET state = ? WHERE id = ? AND destination = ? AND state = 'pending'"
INSERT_DELIVERY = """
INSERT INTO deliveries (destination, sequence, id, state, due, accepted_at, reason) VALUES (?, ?, ?, ?, ?, ?, ?)
"""

LEASABLE = """
SELECT d.sequence, d.fence, d.attempts, d.accepted_at, d.parts, r.body, r.revision
FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.destination = :destination AND d.state IN ('pending', 'leased') AND d.due <= :now
AND (r.revision = 0 OR NOT EXISTS (
    SELECT 1 FROM deliveries AS older
    WHERE older.id = d.id AND older.destination = d.destination AND older.sequence < d.sequence
    AND older.state = 'leased'
))
ORDER BY d.due, d.sequence LIMIT :limit
"""
LEASE = """
UPDATE deliveries SET state = 'leased', fence = fence + 1, due = ? WHERE destination = ? AND sequence = ?
"""
EARLIER = """
SELECT r.body, r.revision, d.parts FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.id = ? AND d.destination = ? AND d.sequence < ? ORDER BY d.sequence
"""
HELD_LEASE = "SELECT attempts FROM deliveries WHERE destination = ? AND sequence = ? AND fence = ? AND state = 'leased'"
NEWER = """
SELECT r.retracts FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.id = ? AND d.destination = ? AND d.sequence > ? ORDER BY d.sequence DESC LIMIT 1
"""
SETTLE = """
UPDATE deliveries SET state = ?, due = ?, attempts = ?, reason = ?, parts = ?, held = ?
WHERE destination = ? AND sequence = ?
"""
NEXT_DUE = """
SELECT d.due FROM deliveries AS d
WHERE d.destination = ? AND d.state IN ('pending', 'leased')
AND NOT EXISTS (
    SELECT 1 FROM deliveries AS older
    WHERE older.id = d.id AND older.destination = d.destination AND older.sequence < d.sequence
    AND older.state = 'leased'
)
ORDER BY d.due LIMIT 1
"""
DEAD = """
SELECT sequence, parts FROM deliveries WHERE id = ? AND destination = ? AND state = 'dead'
ORDER BY sequence DESC LIMIT 1
"""
REQUEUE = """
UPDATE deliveries SET state = ?, due = ?, accepted_at = ?, attempts = 0, parts = ?
WHERE destination = ? AND sequence = ?
"""

PAUSE = """
INSERT INTO pauses (destination, until, reason) VALUES (?, ?, ?)
ON CONFLICT (destination) DO UPDATE SET until = excluded.until, reason = excluded.reason
"""
PAUSES = "SELECT destination, until, reason FROM pauses WHERE until > ?"
RELEASE = "UPDATE deliveries SET due = ?, held = 0 WHERE destination = ? AND held = 1 AND state = 'pending'"
RESUME = "DELETE FROM pauses WHERE destination = ?"

WAITING = """
SELECT d.sequence, d.id, d.accepted_at, r.retracts FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.destination = ? AND d.state = 'pending'
"""
IS_AT = "SELECT 1 FROM deliveries WHERE destination = ? AND sequence = ?"
STOP_WAITING = "DELETE FROM deliveries WHERE destination = ? AND state = 'pending'"

LATEST = "SELECT sequence, body, revision FROM records WHERE id = ? ORDER BY revision DESC LIMIT 1"
STANDING = """
SELECT r.body, r.revision FROM records AS r
WHERE r.call = ? AND r.name = ? AND r.id <> ?
AND r.revision = (SELECT max(revision) FROM records AS same WHERE same.id = r.id)
ORDER BY r.sequence DESC
"""
DESTINATIONS = "SELECT DISTINCT destination FROM deliveries WHERE id = ? ORDER BY destination"
STATUS = "SELECT destination, state, reason, attempts FROM deliveries WHERE id = ? AND sequence = ?"
COUNTS = """
SELECT destination, state, CASE WHEN state = 'skipped' THEN reason END, count(*), min(accepted_at)
FROM deliveries GROUP BY 1, 2, 3
"""

PARK = "INSERT OR REPLACE INTO parked (id, kind, key, destinations, body) VALUES (?, ?, ?, ?, ?)"
PARKED = """
SELECT kind, key, destinations, body FROM parked WHERE kind = ? AND key = ? AND record_id IS NULL ORDER BY rowid
"""
UNPARK = "UPDATE parked SET record_id = ? WHERE id = ? AND record_id IS NULL"
JOINED = "SELECT record_id, body FROM parked WHERE id = ?"


class SQLiteStore:
    """The index and the outbox in one SQLite file in WAL mode, one transaction a method.

    Args:
        path: the file; it and its directory are made when they are missing.

        durability: `disk` syncs each commit (`synchronous=FULL`), `process` leaves that to checkpoints (`NORMAL`).

        clock: what tells the time.

    The path is taken as it was when the store was made, so a later change of directory does not move it.
    """

    def __init__(
        self, path: str | Path, *, durability: Literal["disk", "process"] = "disk", clock: Clock | None = None
    ) -> None:
        self._connection: sqlite3.Connection | None = None
        self.path = Path(path).absolute()
        self.url = f"sqlite:///{self.path}"
        self.durability: str = durability
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        _STORES.add(self)

    def __del__(self) -> None:
        """Warn when the file was left open, and close it."""
        if self._connection is not None:
            warnings.warn(f"{self!r} was collected open; close it", ResourceWarning, source=self, stacklevel=2)
            self._connection.close()

    def __repr__(self) -> str:
        """Name the file and whether it is open."""
        return f"<SQLiteStore path={str(self.path)!r} {'closed' if self._connection is None else 'open'}>"

    # --- life cycle ---

    def open(self) -> None:
        """Open the file, making it when it is missing.

        Raises:
            StoreError: when it cannot be made or written, is not ours, or was written by a newer release.
        """
        with self._transaction():
            pass

    def close(self) -> None:
        """Close the file; using the store again opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _before_fork(self) -> None:
        """Close the file and let no thread open it again before the fork."""
        self._lock.acquire()
        self.close()

    def _after_fork(self) -> None:
        """Let the file be used again; whoever does opens it."""
        self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one write transaction and translate SQLite's errors, here and nowhere else."""
        with self._lock:
            try:
                connection = self._connection = self._connection or self._connect()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.url} failed: {error}", store=self.url) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Read without taking the writers' lock."""
        with self._lock:
            try:
                connection = self._connection = self._connection or self._connect()
                yield connection
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.url} failed: {error}", store=self.url) from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file, making it when it is missing; say what to do where that fails."""
        self._make_directory()
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_MILLIS / 1_000, isolation_level=None, check_same_thread=False
            )
            return self._prepare(connection)
        except sqlite3.Error as error:
            raise StoreError(
                f"the store {self.url} cannot be opened: {error}; give it a file of its own, in a directory that this "
                "process can write",
                store=self.url,
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Check whose file it is, and bring its schema and its mode up."""
        try:
            # Under one lock, so that of two processes that start together one makes the tables and the other
            # finds them. Changing the journal mode inside of it is not possible, and does not need to be.
            connection.execute("BEGIN IMMEDIATE")
            self._check_or_create(connection)
            connection.execute("COMMIT")
            self._use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'disk' else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_directory(self) -> None:
        """Make the file's directory; our own default one gets a `.gitignore`, as pytest's cache does."""
        directory = self.path.parent
        try:
            if directory.is_dir():
                return
            directory.mkdir(parents=True, exist_ok=True)
            if directory.name == ".otel_feedback":
                (directory / ".gitignore").write_text("# made by otel-feedback\n*\n", encoding="utf-8")
        except OSError as error:
            raise StoreError(
                f"the directory of the store {self.url} cannot be made: {error}; give the store another path",
                store=self.url,
            ) from error

    def _check_or_create(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that is not ours or is newer than this release; fill an empty one."""
        application_id = _scalar(connection, "PRAGMA application_id")
        version = _scalar(connection, "PRAGMA user_version")
        if application_id == 0 and version == 0 and _scalar(connection, "SELECT count(*) FROM sqlite_master") == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        elif application_id != APPLICATION_ID:
            raise StoreError(
                f"{self.path} is another program's database; give the store a file of its own", store=self.url
            )
        elif version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer release of otel-feedback (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); upgrade this process too",
                store=self.url,
            )
        # Written each time: a transaction in a file that can only be read succeeds until something is written.
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL; where others open the file at once SQLite may fail without waiting, so this waits."""
        connection.execute("PRAGMA busy_timeout = 0")
        deadline = self._clock.monotonic_nano() + BUSY_TIMEOUT_MILLIS * NANOS_PER_MILLI
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if self._clock.monotonic_nano() > deadline:
                    raise
                threading.Event().wait(0.01)
            else:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MILLIS}")
                return

    # --- the index ---

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Keep several bindings at once."""
        rows = [
            (b.kind, b.key, call_of(b.handle), b.handle.started_at or 0, handle_to_json(b.handle)) for b in bindings
        ]
        with self._transaction() as connection:
            connection.executemany(BIND, rows)

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first."""
        with self._reading() as connection:
            return [handle_from_json(row[0]) for row in connection.execute(FIND, (kind, key))]

    # --- the outbox ---

    def put(
        self, record: FeedbackRecord, destinations: Sequence[str], *, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Accept one record."""
        self.put_many([Entry(record, destinations, skipped or {})])

    def put_many(self, entries: Sequence[Entry]) -> None:
        """Accept several records, all or none."""
        now = self._clock.time_unix_nano()
        with self._transaction() as connection:
            for entry in entries:
                self._put(connection, entry, now)

    def _put(self, connection: sqlite3.Connection, entry: Entry, now: int) -> None:
        record = entry.record
        revision = _scalar(connection, NEXT_REVISION, (record.id,))
        sequence = connection.execute(
            INSERT_RECORD,
            (
                record.id,
                revision,
                call_of(record.handle),
                record.name,
                record.retracts,
                record_to_json(record),
            ),
        ).lastrowid
        replaced = _replaced(retracts=record.retracts)
        for destination in dict.fromkeys(entry.destinations):
            if revision:
                connection.execute(REPLACE_PENDING, (replaced, record.id, destination))
            reason = entry.skipped.get(destination)
            state = TRANSITIONS["recorded", "accept" if reason is None else "skip"]
            connection.execute(INSERT_DELIVERY, (destination, sequence, record.id, state, now, now, reason))

    def lease(self, destination: str, *, limit: int, duration_millis: int) -> Sequence[Lease]:
        """Take what is due at one destination."""
        now = self._clock.time_unix_nano()
        expires_at = now + duration_millis * NANOS_PER_MILLI
        with self._transaction() as connection:
            if destination in self._pauses(connection, now):
                return []
            found = connection.execute(LEASABLE, {"destination": destination, "now": now, "limit": limit}).fetchall()
            leases = []
            for sequence, fence, attempts, accepted_at, parts, body, revision in found:
                connection.execute(LEASE, (expires_at, destination, sequence))
                record = record_from_json(body, revision=revision)
                if record.retracts:
                    record = replace(record, stands=_standing(connection, record))
                leases.append(
                    Lease(
                        record=record,
                        destination=destination,
                        sequence=sequence,
                        fence=fence + 1,
                        attempts=attempts,
                        accepted_at_unix_nano=accepted_at,
                        expires_at_unix_nano=expires_at,
                        parts=_parts(parts),
                        earlier=_earlier(connection, record, destination, sequence) if revision else (),
                    )
                )
            return leases

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        """End a lease; answer whether it was still the newest."""
        place = (lease.destination, lease.sequence)
        with self._transaction() as connection:
            if connection.execute(HELD_LEASE, (*place, lease.fence)).fetchone() is None:
                return False
            event: str = settlement.event
            if event == "retry":
                event = _event_after_newer(connection, lease.record.id, *place) or event
            connection.execute(
                SETTLE,
                (
                    TRANSITIONS["leased", event],
                    settlement.due_unix_nano,
                    lease.attempts + settlement.counts,
                    settlement.reason,
                    _parts_to_json(settlement.parts),
                    settlement.held,
                    *place,
                ),
            )
            return True

    def next_due(self, destination: str) -> int | None:
        """Say when something will be due at a destination."""
        with self._reading() as connection:
            due: int | None = _scalar(connection, NEXT_DUE, (destination,))
            pause = self._pauses(connection, self._clock.time_unix_nano()).get(destination)
            return due if due is None or pause is None else max(due, pause[0])

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        """Offer nothing of a destination until then."""
        with self._transaction() as connection:
            connection.execute(PAUSE, (destination, until_unix_nano, reason))

    def resume(self, destination: str) -> None:
        """End a pause."""
        with self._transaction() as connection:
            connection.execute(RESUME, (destination,))

    def release(self, destination: str) -> None:
        """Make due now what was settled as held."""
        now = self._clock.time_unix_nano()
        with self._transaction() as connection:
            connection.execute(RELEASE, (now, destination))

    def requeue(self, record_id: str, destination: str) -> bool:
        """Make a dead delivery pending again, or superseded where a newer judgement came since."""
        now = self._clock.time_unix_nano()
        with self._transaction() as connection:
            joined_id = _joined_id(connection, record_id)
            found = connection.execute(DEAD, (joined_id, destination)).fetchone()
            if found is None:
                return False
            sequence, parts = found[0], {kind: part for kind, part in _parts(found[1]).items() if part.state != "dead"}
            event = _event_after_newer(connection, joined_id, destination, sequence) or "requeue"
            connection.execute(
                REQUEUE, (TRANSITIONS["dead", event], now, now, _parts_to_json(parts), destination, sequence)
            )
            return True

    def route(self, destinations: Sequence[str]) -> int:
        """Give the records that wait as unrouted to these destinations."""
        given = dict.fromkeys(destinations)
        if not given:
            return 0
        with self._transaction() as connection:
            waiting = connection.execute(WAITING, (UNROUTED,)).fetchall()
            connection.execute(STOP_WAITING, (UNROUTED,))
            for sequence, record_id, accepted_at, retracts in waiting:
                for destination in given:
                    _route(connection, (destination, sequence, record_id), accepted_at, retracts=retracts)
            return len(waiting)

    def latest(self, record_id: str) -> FeedbackRecord | None:
        """Answer the newest record under an id."""
        with self._reading() as connection:
            found = connection.execute(LATEST, (_joined_id(connection, record_id),)).fetchone()
            return None if found is None else record_from_json(found[1], revision=found[2])

    def standing(self, record: FeedbackRecord) -> FeedbackRecord | None:
        """Answer the newest judgement with a value of the same span and name that somebody else's id holds."""
        with self._reading() as connection:
            return _standing(connection, record)

    def destinations(self, record_id: str) -> Sequence[str]:
        """Name every destination that any revision under an id was put for."""
        with self._reading() as connection:
            return [name for (name,) in connection.execute(DESTINATIONS, (_joined_id(connection, record_id),))]

    def status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Answer what became of the newest record under an id, by destination."""
        with self._reading() as connection:
            joined_id = _joined_id(connection, record_id)
            found = connection.execute(LATEST, (joined_id,)).fetchone()
            if found is None:
                return {} if connection.execute(JOINED, (record_id,)).fetchone() else None
            rows = connection.execute(STATUS, (joined_id, found[0])).fetchall()
            return {name: DeliveryStatus(state, reason, attempts) for name, state, reason, attempts in rows}

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination that ever got a record."""
        with self._reading() as connection:
            pauses = self._pauses(connection, self._clock.time_unix_nano())
            rows = connection.execute(COUNTS).fetchall()
        return {
            destination: _account(
                [row[1:] for row in rows if row[0] == destination], pauses.get(destination, (0, None))[1]
            )
            for destination in dict.fromkeys(row[0] for row in rows)
        }

    def _pauses(self, connection: sqlite3.Connection, now: int) -> dict[str, tuple[int, str]]:
        return {name: (until, reason) for name, until, reason in connection.execute(PAUSES, (now,))}

    # --- judgements that wait for their key ---

    def park(self, parked: Parked) -> None:
        """Keep a judgement whose key is not known yet."""
        to = None if parked.to is None else pydantic_core.to_json(parked.to).decode()
        with self._transaction() as connection:
            connection.execute(PARK, (parked.record.id, parked.kind, parked.key, to, record_to_json(parked.record)))

    def parked(self, kind: str, key: str) -> Sequence[Parked]:
        """Answer the judgements that wait for a key, oldest first."""
        with self._reading() as connection:
            return [
                Parked(
                    record_from_json(body),
                    kind,
                    key,
                    None if to is None else tuple(pydantic_core.from_json(to)),
                )
                for kind, key, to, body in connection.execute(PARKED, (kind, key)).fetchall()
            ]

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        """Put a parked judgement's record; from now on its parked id means the record."""
        now = self._clock.time_unix_nano()
        with self._transaction() as connection:
            if connection.execute(UNPARK, (entry.record.id, parked_id)).rowcount == 0:
                return False
            self._put(connection, entry, now)
            return True


def call_of(handle: FeedbackHandle) -> str:
    """Write a call's place as one text: trace id and span id."""
    return f"{handle.trace_id}{handle.span_id}"


def _scalar(connection: sqlite3.Connection, sql: str, parameters: Sequence[object] = ()) -> Any:
    """Read the first column of the first row."""
    row = connection.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


def _route(connection: sqlite3.Connection, place: tuple[str, int, str], accepted_at: int, *, retracts: bool) -> None:
    """Let a record that waited go to a destination that it does not go to already, in its judgement's order."""
    destination, sequence, record_id = place
    if _scalar(connection, IS_AT, (destination, sequence)) is not None:
        return
    event = _event_after_newer(connection, record_id, destination, sequence)
    if event is None:  # then whatever is pending there is older
        connection.execute(REPLACE_PENDING, (_replaced(retracts=retracts), record_id, destination))
    state = "pending" if event is None else TRANSITIONS["pending", event]
    connection.execute(INSERT_DELIVERY, (*place, state, accepted_at, accepted_at, None))


def _replaced(*, retracts: bool) -> str:
    """Name the state of what is pending when a newer revision comes."""
    return TRANSITIONS["pending", "retract" if retracts else "supersede"]


def _event_after_newer(connection: sqlite3.Connection, record_id: str, destination: str, sequence: int) -> str | None:
    """Name what happens to a delivery that would wait again, when a newer revision came."""
    newer = connection.execute(NEWER, (record_id, destination, sequence)).fetchone()
    if newer is None:
        return None
    return "retract" if newer[0] else "supersede"


def _standing(connection: sqlite3.Connection, record: FeedbackRecord) -> FeedbackRecord | None:
    """Read the newest judgement with a value of the same span and name that somebody else's id holds."""
    others = connection.execute(STANDING, (call_of(record.handle), record.name, record.id))
    records = (record_from_json(body, revision=revision) for body, revision in others)
    return next((other for other in records if other.value is not None), None)


def _earlier(connection: sqlite3.Connection, record: FeedbackRecord, destination: str, sequence: int) -> list[Revision]:
    """Read the earlier revisions at one destination, oldest first."""
    rows = connection.execute(EARLIER, (record.id, destination, sequence)).fetchall()
    return [Revision(record_from_json(body, revision=revision), _parts(parts)) for body, revision, parts in rows]


def _parts(text: str | None) -> dict[str, PartState]:
    """Read the settled parts of a delivery."""
    return {} if text is None else {kind: PartState(*state) for kind, state in pydantic_core.from_json(text).items()}


def _parts_to_json(parts: Mapping[str, PartState]) -> str | None:
    """Write the settled parts of a delivery."""
    written = {kind: (part.state, part.reason) for kind, part in parts.items()}
    return pydantic_core.to_json(written).decode() if written else None


def _joined_id(connection: sqlite3.Connection, record_id: str) -> str:
    """Follow a parked judgement's id to its record."""
    return _scalar(connection, JOINED, (record_id,)) or record_id


def _account(rows: Sequence[tuple[str, str | None, int, int]], paused: str | None) -> DestinationStats:
    """Add up one destination's counts by state and reason."""
    counts: dict[str, int] = {}
    for state, _, count, _ in rows:
        counts[state] = counts.get(state, 0) + count
    waiting = [oldest for state, _, _, oldest in rows if state in ("pending", "leased")]
    return DestinationStats(
        recorded=sum(counts.values()),
        pending=counts.get("pending", 0) + counts.get("leased", 0),
        delivered=counts.get("delivered", 0),
        dead=counts.get("dead", 0),
        superseded=counts.get("superseded", 0),
        retracted=counts.get("retracted", 0),
        skipped={reason or "": count for state, reason, count, _ in rows if state == "skipped"},
        oldest_unix_nano=min(waiting, default=None),
        paused=paused,
    )


# Every store of this process. A connection must not be carried across a fork
# (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_file_across_a_fork_): the child's own connection
# would rely on locks that only the parent holds, and lose what it wrote when the parent closed. So the files are
# closed before a fork, and opened again on both sides when they are next used.
_STORES: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()
_FORKING = threading.Lock()
_closed_for_fork: list[SQLiteStore] = []


def _before_fork() -> None:
    """Close every store; one fork at a time."""
    _FORKING.acquire()
    _closed_for_fork.extend(_STORES)
    for store in _closed_for_fork:
        store._before_fork()  # noqa: SLF001 (the hooks are one for the process, and part of the class)


def _after_fork() -> None:
    """Let every store be used again, in the parent and in the child."""
    while _closed_for_fork:
        _closed_for_fork.pop()._after_fork()  # noqa: SLF001 (as above)
    _FORKING.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
