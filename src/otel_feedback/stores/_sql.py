"""The index and the outbox as SQL: every statement, and what is done with it.

Everything about what is kept and how it is asked for lives here; this file does not know where the database is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import pydantic_core

from otel_feedback._dialects import USER_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import (
    DeliveryStatus,
    FeedbackRecord,
    handle_from_json,
    handle_to_json,
    record_from_json,
    record_to_json,
)
from otel_feedback._time import LATEST_UNIX_NANO, NANOS_PER_MILLI, Clock
from otel_feedback.exceptions import OutboxFullError
from otel_feedback.stores import (
    PARKED,
    PROBE_MILLIS,
    SET_BACK_MILLIS,
    TRANSITIONS,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Lease,
    Parked,
    PartState,
    Settlement,
    Standing,
)
from otel_feedback.stores._sqlite_schema import span_of

logger = logging.getLogger(__name__)

# What a text that was damaged, or written by a release that is not known here, makes of being read.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)

T = TypeVar("T")
Connection = Any  # sqlite3's, or what `connect` answers

# Python's SQLite gives up the interpreter's lock at each step of a statement, and among busy threads waits milliseconds
# to have it back; so many rows make one statement. SQLite takes 32,766 variables in one.
ROWS_AT_ONCE = 1_000
BIND = """
INSERT INTO keys (kind, key, call, started_at, handle, bound_at) VALUES {rows}
ON CONFLICT (kind, key, call)
DO UPDATE SET started_at = excluded.started_at, handle = excluded.handle, bound_at = excluded.bound_at
"""
FIND = "SELECT handle FROM keys WHERE kind = ? AND key = ? ORDER BY started_at DESC, rowid DESC"

NEXT_REVISION = "SELECT coalesce(max(revision) + 1, 0) FROM records WHERE id = ?"
INSERT_RECORD = "INSERT INTO records (id, revision, call, name, retracts, body, put_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
# Here too the index is named: without it SQLite goes through all that the destination ever got.
REPLACE_PENDING = """
UPDATE deliveries INDEXED BY deliveries_by_id SET state = ? WHERE id = ? AND destination = ? AND state = 'pending'
"""
INSERT_DELIVERY = """
INSERT INTO deliveries (destination, sequence, id, span, state, due, accepted_at, reason, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
COUNT_PENDING = "SELECT count FROM tallies WHERE destination = ? AND state = 'pending'"

# A delivery may go when it is the first in its line that waits or is leased: the line of its judgement, or of its span.
# A judgement's first revision has none before it. The indices are named, because SQLite guesses others for them.
_FIRST_IN_LINE = {
    False: """(r.revision = 0 OR NOT EXISTS (
    SELECT 1 FROM deliveries AS older INDEXED BY deliveries_by_id
    WHERE older.id = d.id AND older.destination = d.destination AND older.sequence < d.sequence
    AND older.state IN ('pending', 'leased')
))""",
    True: """NOT EXISTS (
    SELECT 1 FROM deliveries AS older INDEXED BY deliveries_by_span
    WHERE older.destination = d.destination AND older.span = d.span AND older.sequence < d.sequence
    AND older.state IN ('pending', 'leased')
)""",
}
_DUE = """
FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.destination = ? AND d.state IN ('pending', 'leased') AND d.due BETWEEN ? AND ? AND {first}
ORDER BY d.due, d.sequence LIMIT ?
"""
LEASABLE = {
    by_call: "SELECT d.sequence, d.fence, d.attempts, d.accepted_at, d.parts, d.state, coalesce(d.body, r.body), "
    f"r.revision {_DUE.format(first=first)}"
    for by_call, first in _FIRST_IN_LINE.items()
}
NEXT_DUE = {by_call: f"SELECT d.due {_DUE.format(first=first)}" for by_call, first in _FIRST_IN_LINE.items()}
LEASE = """
UPDATE deliveries SET state = 'leased', fence = fence + 1, due = ? WHERE destination = ? AND sequence = ?
"""
STANDS = """
SELECT standing FROM deliveries WHERE id = ? AND destination = ? AND sequence < ? AND standing IS NOT NULL
ORDER BY sequence DESC LIMIT 1
"""
REVISION = """
SELECT coalesce(d.body, r.body) FROM records AS r
LEFT JOIN deliveries AS d ON d.sequence = r.sequence AND d.destination = ?
WHERE r.id = ? AND r.revision = ?
"""
# The id too: in another file that has taken this one's place the number may be another's.
HELD_LEASE = """
SELECT attempts FROM deliveries WHERE destination = ? AND sequence = ? AND fence = ? AND id = ? AND state = 'leased'
"""
NEWER = """
SELECT r.retracts FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.id = ? AND d.destination = ? AND d.sequence > ? ORDER BY d.sequence DESC LIMIT 1
"""
SETTLE = """
UPDATE deliveries SET state = ?, due = ?, attempts = ?, reason = ?, parts = ?, held = ?, standing = ?
WHERE destination = ? AND sequence = ?
"""
BURY = "UPDATE deliveries SET state = ?, reason = ? WHERE destination = ? AND sequence = ?"
COUNT_RETRY = """
INSERT INTO tallies (destination, state, reason, count) VALUES (?, 'retried', '', 1)
ON CONFLICT (destination, state, reason) DO UPDATE SET count = count + 1
"""
DEAD = """
SELECT sequence, parts FROM deliveries INDEXED BY deliveries_by_id WHERE id = ? AND destination = ? AND state = 'dead'
ORDER BY sequence DESC LIMIT 1
"""
REQUEUE = """
UPDATE deliveries SET state = ?, due = ?, accepted_at = ?, attempts = 0, parts = ?
WHERE destination = ? AND sequence = ?
"""

PAUSE = """
INSERT INTO pauses (destination, until, reason) VALUES (?, ?, ?)
ON CONFLICT (destination) DO UPDATE SET until = excluded.until, reason = excluded.reason, probe = 0
"""
PAUSES = "SELECT destination, reason FROM pauses"
PAUSED = "SELECT until, probe FROM pauses WHERE destination = ?"
PROBE = "UPDATE pauses SET probe = ? WHERE destination = ?"
RELEASE = """
UPDATE deliveries INDEXED BY deliveries_held SET due = ?, held = 0
WHERE destination = ? AND held = 1 AND state = 'pending'
"""
RESUME = "DELETE FROM pauses WHERE destination = ?"

WAITING = """
SELECT d.sequence, d.id, d.span, d.accepted_at, d.body, r.retracts
FROM deliveries AS d JOIN records AS r ON r.sequence = d.sequence
WHERE d.destination = ? AND d.state = 'pending' ORDER BY d.sequence LIMIT ?
"""
IS_AT = "SELECT 1 FROM deliveries WHERE destination = ? AND sequence = ?"
STOP_WAITING = "DELETE FROM deliveries WHERE destination = ? AND sequence = ?"
COUNT_LESS = "UPDATE tallies SET count = count - ? WHERE destination = ? AND state = 'pending'"

OLD_KEYS = "DELETE FROM keys WHERE rowid IN (SELECT rowid FROM keys WHERE bound_at < ? ORDER BY bound_at LIMIT ?)"
OLD_JUDGEMENTS = """
SELECT r.id FROM records AS r WHERE r.revision = 0 AND r.put_at < :before
AND NOT EXISTS (SELECT 1 FROM records AS newer WHERE newer.id = r.id AND newer.put_at >= :before)
AND NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.id = r.id AND d.state IN ('pending', 'leased', 'dead'))
ORDER BY r.put_at LIMIT :limit
"""
REMOVE = (
    "DELETE FROM deliveries WHERE id = ?",
    "DELETE FROM parked WHERE record_id = ?",
    "DELETE FROM records WHERE id = ?",
)

# A JSON text that has a person's id in it somewhere; whether it is theirs is then read.
NAMING_RECORDS = "SELECT sequence, id, body FROM records WHERE instr(body, ?) > 0"
NAMING_DELIVERIES = "SELECT destination, sequence, id, body FROM deliveries WHERE instr(body, ?) > 0"
NAMING_PARKED = "SELECT id, body FROM parked WHERE instr(body, ?) > 0"
NAMING_KEYS = "SELECT rowid, handle FROM keys WHERE instr(handle, ?) > 0"
TAKE_BACK = "UPDATE deliveries SET state = 'retracted' WHERE id = ? AND state IN ('pending', 'leased')"
COUNT_REVISIONS = "SELECT count(*) FROM records WHERE id = ?"
REWRITE_RECORD = "UPDATE records SET body = ? WHERE sequence = ?"
REWRITE_DELIVERY = "UPDATE deliveries SET body = ? WHERE destination = ? AND sequence = ?"
DROP_PARKED = "DELETE FROM parked WHERE id = ?"
DROP_KEY = "DELETE FROM keys WHERE rowid = ?"

LATEST = "SELECT sequence, body, revision FROM records WHERE id = ? ORDER BY revision DESC LIMIT 1"
STANDING = """
SELECT coalesce(d.body, r.body), r.revision
FROM records AS r JOIN deliveries AS d ON d.sequence = r.sequence AND d.destination = :destination
WHERE r.call = :call AND r.name = :name AND r.id <> :id AND r.revision = (
    SELECT max(newest.revision) FROM records AS newest
    JOIN deliveries AS same ON same.sequence = newest.sequence AND same.destination = :destination
    WHERE newest.id = r.id AND same.state NOT IN ('skipped', 'dead')
)
ORDER BY r.sequence DESC
"""
DESTINATIONS = "SELECT DISTINCT destination FROM deliveries WHERE id = ? ORDER BY destination"
STATUS = "SELECT destination, state, reason, attempts FROM deliveries WHERE id = ? AND sequence = ?"
TALLIES = "SELECT destination, state, reason, count FROM tallies WHERE count > 0 ORDER BY destination"
OLDEST = "SELECT min(accepted_at) FROM deliveries WHERE destination = ? AND state IN ('pending', 'leased')"

PARK = "INSERT OR REPLACE INTO parked (id, kind, key, destinations, body, recorded_at) VALUES (?, ?, ?, ?, ?, ?)"
IS_PARKED = "SELECT 1 FROM parked WHERE id = ? AND record_id IS NULL"
COUNT_PARKED = "SELECT count(*), min(recorded_at) FROM parked WHERE record_id IS NULL"
WAITING_FOR = """
SELECT kind, key, destinations, body FROM parked WHERE kind = ? AND key = ? AND record_id IS NULL ORDER BY rowid
"""
AWAITED = """
WITH named (kind, key) AS (VALUES {rows})
SELECT DISTINCT n.kind, n.key FROM named AS n CROSS JOIN parked AS p ON p.kind = n.kind AND p.key = n.key
WHERE p.record_id IS NULL
"""
OVERLOOKED = """
SELECT DISTINCT p.kind, p.key FROM parked AS p
WHERE p.record_id IS NULL AND (
    EXISTS (SELECT 1 FROM keys AS k WHERE k.kind = p.kind AND k.key = p.key)
    OR p.kind = :any_kind AND EXISTS (
        SELECT 1 FROM keys AS k WHERE k.kind IN (SELECT value FROM json_each(:kinds)) AND k.key = p.key
    )
)
"""
UNPARK = "UPDATE parked SET record_id = ? WHERE id = ? AND record_id IS NULL"
JOINED = "SELECT record_id, body FROM parked WHERE id = ?"


class Database(Protocol):
    """What runs transactions, as `SQLiteFile` does."""

    url: str

    def write(self, action: Callable[[Any], T], *, is_vital: bool = False) -> T:
        """Run an action in a transaction and commit it."""
        ...

    def read(self, action: Callable[[Any], T]) -> T:
        """Run an action that only reads."""
        ...

    def erase_traces(self) -> None:
        """Leave nothing of what was deleted in a log, and tell of every other place that may still have it."""
        ...

    def discard_aside(self, before_unix_nano: int) -> None:
        """Delete the damaged files that were kept, if nothing in them is newer."""
        ...


class SQLStore:
    """The index and the outbox in SQL, one transaction a method.

    Args:
        database: what runs the transactions.

        max_queue_size: how many records may wait at a destination; more are refused. By default, any number.

        clock: what tells the time.
    """

    def __init__(self, database: Database, *, max_queue_size: int | None, clock: Clock) -> None:
        self._database = database
        self._max_queue_size = max_queue_size
        self._clock = clock
        self.url = database.url

    # --- the index ---

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Keep several bindings at once."""
        now = self._clock.time_unix_nano()
        statements = _many(
            BIND,
            [
                (b.kind, b.key, call_of(b.handle), b.handle.started_at or 0, handle_to_json(b.handle), now)
                for b in bindings
            ],
        )

        def bind(connection: Connection) -> None:
            for statement, values in statements:
                connection.execute(statement, values)

        self._database.write(bind)

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first."""
        rows = self._database.read(lambda connection: connection.execute(FIND, (kind, key)).fetchall())
        return [handle_from_json(text) for (text,) in rows]

    # --- the outbox ---

    def put(
        self, record: FeedbackRecord, destinations: Sequence[str], *, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Accept one record."""
        self.put_many([Entry(record, destinations, skipped or {})])

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        """Accept several records, all or none."""
        now = self._clock.time_unix_nano()
        # Written before the transaction: others wait for its end.
        rows = [_ParkedRow(each) if isinstance(each, Parked) else _EntryRows.of(each) for each in entries]

        def put(connection: Connection) -> None:
            for row in rows:
                if isinstance(row, _EntryRows):
                    row.put(connection, now, self._check_room)
                else:
                    row.put(connection, self._check_room)

        self._database.write(put)

    def lease(self, destination: str, *, limit: int, duration_millis: int, by_call: bool = False) -> Sequence[Lease]:
        """Take what is due at one destination."""
        now = self._clock.time_unix_nano()
        expires_at = now + duration_millis * NANOS_PER_MILLI

        def lease(connection: Connection) -> list[Lease]:
            pause = _pause(connection, destination, now)
            room = limit if pause is None else int(pause <= now)  # one, to see whether it is over
            rows = _due(connection, LEASABLE[by_call], destination, now, room)
            if rows and pause is not None:
                connection.execute(PROBE, (now + PROBE_MILLIS * NANOS_PER_MILLI, destination))
            taken = (_lease(connection, destination, row, expires_at, is_probe=pause is not None) for row in rows)
            return [lease for lease in taken if lease is not None]

        # Most rounds find nothing, and need not wait for a writer to learn it.
        due = self._database.read(lambda connection: _next_due(connection, destination, now, by_call=by_call))
        return [] if due is None or due > now else self._database.write(lease, is_vital=True)

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        """End a lease; answer whether it was still the newest."""
        return self.settle_many([(lease, settlement)])[0]

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
        """End several leases at once."""
        return self._database.write(
            lambda connection: [_settle(connection, lease, settlement) for lease, settlement in endings], is_vital=True
        )

    def next_due(self, destination: str, *, by_call: bool = False) -> int | None:
        """Say when something will be due at a destination."""
        now = self._clock.time_unix_nano()
        return self._database.read(lambda connection: _next_due(connection, destination, now, by_call=by_call))

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        """Offer nothing of a destination until then, and then one record now and again."""
        self._database.write(
            lambda connection: _done(connection.execute(PAUSE, (destination, until_unix_nano, reason))), is_vital=True
        )

    def resume(self, destination: str) -> None:
        """End a pause."""
        self._database.write(lambda connection: _done(connection.execute(RESUME, (destination,))), is_vital=True)

    def release(self, destination: str) -> None:
        """Make due now what was settled as held."""
        now = self._clock.time_unix_nano()
        self._database.write(lambda connection: _done(connection.execute(RELEASE, (now, destination))), is_vital=True)

    def requeue(self, record_id: str, destination: str) -> bool:
        """Make a dead delivery pending again, or superseded where a newer judgement came since."""
        now = self._clock.time_unix_nano()

        def requeue(connection: Connection) -> bool:
            joined_id = _joined_id(connection, record_id)
            found = connection.execute(DEAD, (joined_id, destination)).fetchone()
            if found is None:
                return False
            sequence, parts = found[0], _reopened(_parts(found[1]))
            event = _event_after_newer(connection, joined_id, destination, sequence) or "requeue"
            connection.execute(
                REQUEUE, (TRANSITIONS["dead", event], now, now, _parts_to_json(parts), destination, sequence)
            )
            return True

        return self._database.write(requeue, is_vital=True)

    def route(self, destinations: Sequence[str], *, limit: int = 1_000) -> int:
        """Give the oldest records that wait as unrouted to these destinations."""
        given = dict.fromkeys(destinations)
        if not given:
            return 0

        def route(connection: Connection) -> int:
            waiting = connection.execute(WAITING, (UNROUTED, limit)).fetchall()
            for row in waiting:
                connection.execute(STOP_WAITING, (UNROUTED, row[0]))
                for destination in given:
                    _route(connection, destination, row)
            connection.execute(COUNT_LESS, (len(waiting), UNROUTED))
            return len(waiting)

        return self._database.write(route, is_vital=True)

    def prune(self, before_unix_nano: int, *, limit: int = 1_000) -> int:
        """Remove keys and judgements that are older and done."""

        def prune(connection: Connection) -> int:
            keys: int = connection.execute(OLD_KEYS, (before_unix_nano, limit)).rowcount
            old = connection.execute(OLD_JUDGEMENTS, {"before": before_unix_nano, "limit": limit}).fetchall()
            for (record_id,) in old:
                _remove(connection, record_id)
            return keys + len(old)

        self._database.discard_aside(before_unix_nano)
        return self._database.write(prune, is_vital=True)

    def forget(self, user_id: str) -> int:
        """Erase what one person judged, and every key and handle that names them."""
        erased = self._database.write(lambda connection: _forget(connection, user_id), is_vital=True)
        self._database.erase_traces()
        return erased

    def latest(self, record_id: str) -> FeedbackRecord | None:
        """Answer the newest record under an id."""
        found = self._database.read(
            lambda connection: connection.execute(LATEST, (_joined_id(connection, record_id),)).fetchone()
        )
        return None if found is None else record_from_json(found[1], revision=found[2])

    def standing(self, record: FeedbackRecord, destination: str) -> FeedbackRecord | None:
        """Answer the newest judgement with a value of the same span and name that somebody else's id holds there."""
        return self._database.read(lambda connection: _standing(connection, record, destination))

    def destinations(self, record_id: str) -> Sequence[str]:
        """Name every destination that any revision under an id was put for."""
        rows = self._database.read(
            lambda connection: connection.execute(DESTINATIONS, (_joined_id(connection, record_id),)).fetchall()
        )
        return [name for (name,) in rows]

    def status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Answer what became of the newest record under an id, by destination."""

        def status(connection: Connection) -> Mapping[str, DeliveryStatus] | None:
            joined_id = _joined_id(connection, record_id)
            found = connection.execute(LATEST, (joined_id,)).fetchone()
            if found is None:
                return {} if connection.execute(JOINED, (record_id,)).fetchone() else None
            rows = connection.execute(STATUS, (joined_id, found[0])).fetchall()
            return {name: DeliveryStatus(state, reason, attempts) for name, state, reason, attempts in rows}

        return self._database.read(status)

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination that ever got a record."""
        return self._database.read(_accounts)

    def _check_room(self, waiting: int, what: str) -> None:
        """Refuse what would make more wait than there may."""
        limit = self._max_queue_size
        if limit is not None and waiting > limit:
            held = (
                f"{limit} judgements that wait for keys and refuses another one; do these keys ever turn up?"
                if what == PARKED
                else f"{limit} undelivered records for {what} and refuses another one; is something delivering them?"
            )
            raise OutboxFullError(
                f"the store {self.url} holds {held}",
                store=self.url,
                limit=limit,
            )

    # --- judgements that wait for their key ---

    def parked(self, kind: str, key: str) -> Sequence[Parked]:
        """Answer the judgements that wait for a key, oldest first."""
        rows = self._database.read(lambda connection: connection.execute(WAITING_FOR, (kind, key)).fetchall())
        return [
            Parked(record_from_json(body), kind, key, None if to is None else tuple(pydantic_core.from_json(to)))
            for kind, key, to, body in rows
        ]

    def awaited(self, names: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """Answer those of some kinds and keys that judgements wait for."""
        statements = _many(AWAITED, names)
        rows: list[tuple[str, str]] = self._database.read(
            lambda connection: [row for statement in statements for row in connection.execute(*statement).fetchall()]
        )
        return rows

    def overlooked(self, any_kind: str, kinds: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Answer the kinds and keys that judgements wait for though they are bound."""
        about = {"any_kind": any_kind, "kinds": pydantic_core.to_json(kinds).decode()}
        rows: list[tuple[str, str]] = self._database.read(
            lambda connection: connection.execute(OVERLOOKED, about).fetchall()
        )
        return rows

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        """Put a parked judgement's record; from now on its parked id means the record."""
        now = self._clock.time_unix_nano()
        rows = _EntryRows.of(entry)

        def unpark(connection: Connection) -> bool:
            if connection.execute(UNPARK, (entry.record.id, parked_id)).rowcount == 0:
                return False
            rows.put(connection, now, _unlimited)  # it has been accepted already
            return True

        return self._database.write(unpark, is_vital=True)


def _many(statement: str, rows: Sequence[Sequence[object]]) -> Sequence[tuple[str, Sequence[object]]]:
    """Write a statement about many rows, with the values that it takes, `ROWS_AT_ONCE` at a time."""
    groups = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    return [
        (
            statement.format(rows=", ".join([f"({', '.join('?' * len(group[0]))})"] * len(group))),
            [value for row in group for value in row],
        )
        for group in groups
    ]


def _done(_: object) -> None:
    """Answer nothing: a cursor that outlives its transaction may keep the file open across a fork (Python 3.11)."""


# --- put ---------------------------------------------------------------------------------------------------------


def call_of(handle: FeedbackHandle) -> str:
    """Write a call's place as one text: trace id and span id."""
    return f"{handle.trace_id}{handle.span_id}"


def _unlimited(waiting: int, what: str) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, slots=True)
class _EntryRows:
    """An entry as it is written."""

    record: FeedbackRecord
    call: str
    body: str
    destinations: tuple[str, ...]
    skipped: Mapping[str, str]
    variants: Mapping[str, str]

    @classmethod
    def of(cls, entry: Entry) -> _EntryRows:
        """Write an entry's texts."""
        return cls(
            entry.record,
            call_of(entry.record.handle),
            record_to_json(entry.record),
            tuple(dict.fromkeys(entry.destinations)),
            dict(entry.skipped),
            {name: record_to_json(record) for name, record in entry.variants.items()},
        )

    def put(self, connection: Connection, now: int, check: Callable[[int, str], None]) -> None:
        """Insert the record and its deliveries; what is pending of it before makes way."""
        record = self.record
        revision = _scalar(connection, NEXT_REVISION, (record.id,))
        sequence = connection.execute(
            INSERT_RECORD, (record.id, revision, self.call, record.name, record.retracts, self.body, now)
        ).lastrowid
        replaced, span = _replaced(retracts=record.retracts), span_of(self.call)
        for name in self.destinations:
            gone = connection.execute(REPLACE_PENDING, (replaced, record.id, name)).rowcount if revision else 0
            reason = self.skipped.get(name)
            state = TRANSITIONS["recorded", "accept" if reason is None else "skip"]
            body = self.variants.get(name)
            connection.execute(INSERT_DELIVERY, (name, sequence, record.id, span, state, now, now, reason, body))
            if state == "pending" and not gone:
                check(_scalar(connection, COUNT_PENDING, (name,)), name)


@dataclass(frozen=True, slots=True)
class _ParkedRow:
    """A parked judgement as it is written."""

    parked: Parked

    def put(self, connection: Connection, check: Callable[[int, str], None]) -> None:
        """Insert it, in the place of one under the same id."""
        parked = self.parked
        to = None if parked.to is None else pydantic_core.to_json(parked.to).decode()
        body, recorded_at = record_to_json(parked.record), parked.record.recorded_at_unix_nano
        was_there = connection.execute(IS_PARKED, (parked.record.id,)).fetchone()
        connection.execute(PARK, (parked.record.id, parked.kind, parked.key, to, body, recorded_at))
        if not was_there:
            check(_scalar(connection, COUNT_PARKED), PARKED)


# --- lease and settle --------------------------------------------------------------------------------------------


def _due(connection: Connection, query: str, destination: str, now: int, limit: int) -> list[Any]:
    """Read what is due, and then what a clock that has been set back since has put off."""
    rows: list[Any] = connection.execute(query, (destination, 0, now, limit)).fetchall()
    if len(rows) < limit:
        horizon = now + SET_BACK_MILLIS * NANOS_PER_MILLI
        ahead = (destination, horizon + 1, LATEST_UNIX_NANO, limit - len(rows))
        rows += connection.execute(query, ahead).fetchall()
    return rows


def _next_due(connection: Connection, destination: str, now: int, *, by_call: bool) -> int | None:
    """Say when something will be due at a destination."""
    horizon = now + SET_BACK_MILLIS * NANOS_PER_MILLI
    due: int | None = _scalar(connection, NEXT_DUE[by_call], (destination, 0, horizon, 1))
    is_ahead = (destination, horizon + 1, LATEST_UNIX_NANO, 1)
    if (due is None or due > now) and _scalar(connection, NEXT_DUE[by_call], is_ahead):
        due = now
    pause = _pause(connection, destination, now)
    return due if due is None or pause is None else max(due, pause)


def _pause(connection: Connection, destination: str, now: int) -> int | None:
    """Say until when a destination is paused, or not to be tried again; `None` when it is not paused."""
    found = connection.execute(PAUSED, (destination,)).fetchone()
    if found is None:
        return None
    horizon = now + SET_BACK_MILLIS * NANOS_PER_MILLI
    return max(0 if time > horizon else time for time in found)


def _lease(connection: Connection, destination: str, row: Any, expires_at: int, *, is_probe: bool) -> Lease | None:
    """Take one delivery; one that cannot be read is a dead letter, and keeps nobody waiting."""
    sequence = row[0]
    connection.execute(LEASE, (expires_at, destination, sequence))
    try:
        return _read_lease(connection, destination, row, expires_at, is_probe=is_probe)
    except _UNREADABLE as error:
        reason = f"it cannot be read from the store ({type(error).__name__})"
        logger.error("a judgement is dead at %s: %s", destination, reason)  # noqa: TRY400 (the text may quote it)
        connection.execute(BURY, (TRANSITIONS["leased", "bury"], reason, destination, sequence))
        return None


def _read_lease(connection: Connection, destination: str, row: Any, expires_at: int, *, is_probe: bool) -> Lease:
    """Read one delivery."""
    sequence, fence, attempts, accepted_at, parts, state, body, revision = row
    record = record_from_json(body, revision=revision)
    if record.retracts:
        record = replace(record, stands=_standing(connection, record, destination))
    return Lease(
        record=record,
        destination=destination,
        sequence=sequence,
        fence=fence + 1,
        attempts=attempts,
        accepted_at_unix_nano=accepted_at,
        expires_at_unix_nano=expires_at,
        parts=_parts(parts),
        standing=_stands(connection, record.id, destination, sequence) if revision else {},
        lapsed=state == "leased",
        is_probe=is_probe,
    )


def _stands(connection: Connection, record_id: str, destination: str, sequence: int) -> dict[str, Standing]:
    """Read what a destination has of the earlier revisions of a judgement."""
    text = _scalar(connection, STANDS, (record_id, destination, sequence))
    standing = {}
    for kind, (is_unclear, revision, *others) in pydantic_core.from_json(text or "{}").items():
        body = _scalar(connection, REVISION, (destination, record_id, revision))
        standing[kind] = Standing(record_from_json(body, revision=revision), is_unclear, tuple(others))
    return standing


def _settle(connection: Connection, lease: Lease, settlement: Settlement) -> bool:
    """End a lease; answer whether it was still the newest."""
    place = (lease.destination, lease.sequence)
    if connection.execute(HELD_LEASE, (*place, lease.fence, lease.record.id)).fetchone() is None:
        return False
    event: str = settlement.event
    if event == "retry":
        event = _event_after_newer(connection, lease.record.id, *place) or event
    if event == "retry" and settlement.counts:
        connection.execute(COUNT_RETRY, (lease.destination,))
    standing = {kind: (each.is_unclear, *each.revisions) for kind, each in settlement.standing.items()}
    connection.execute(
        SETTLE,
        (
            TRANSITIONS["leased", event],
            settlement.due_unix_nano,
            lease.attempts + settlement.counts,
            settlement.reason,
            _parts_to_json(settlement.parts),
            settlement.held,
            pydantic_core.to_json(standing).decode(),
            *place,
        ),
    )
    return True


def _route(connection: Connection, destination: str, row: Any) -> None:
    """Let a record that waited go to a destination that it does not go to already, in its judgement's order."""
    sequence, record_id, span, accepted_at, body, retracts = row
    if _scalar(connection, IS_AT, (destination, sequence)) is not None:
        return
    event = _event_after_newer(connection, record_id, destination, sequence)
    if event is None:  # then whatever is pending there is older
        connection.execute(REPLACE_PENDING, (_replaced(retracts=retracts), record_id, destination))
    state = "pending" if event is None else TRANSITIONS["pending", event]
    connection.execute(
        INSERT_DELIVERY, (destination, sequence, record_id, span, state, accepted_at, accepted_at, None, body)
    )


def _replaced(*, retracts: bool) -> str:
    """Name the state of what is pending when a newer revision comes."""
    return TRANSITIONS["pending", "retract" if retracts else "supersede"]


def _event_after_newer(connection: Connection, record_id: str, destination: str, sequence: int) -> str | None:
    """Name what happens to a delivery that would wait again, when a newer revision came."""
    newer = connection.execute(NEWER, (record_id, destination, sequence)).fetchone()
    if newer is None:
        return None
    return "retract" if newer[0] else "supersede"


def _standing(connection: Connection, record: FeedbackRecord, destination: str) -> FeedbackRecord | None:
    """Read the newest judgement with a value of the same span and name that somebody else's id holds there."""
    about = {"call": call_of(record.handle), "name": record.name, "id": record.id, "destination": destination}
    others = connection.execute(STANDING, about)
    records = (record_from_json(body, revision=revision) for body, revision in others)
    return next((other for other in records if other.value is not None), None)


def _parts(text: str | None) -> dict[str, PartState]:
    """Read the settled parts of a delivery."""
    return {kind: _part_state(*state) for kind, state in pydantic_core.from_json(text or "{}").items()}


def _part_state(state: Any, reason: str | None, *more: Any) -> PartState:
    """Read one; the first schema kept no more of it."""
    was_unclear, *removed = more or (False,)
    return PartState(state, reason, was_unclear, tuple(removed))


def _reopened(parts: Mapping[str, PartState]) -> dict[str, PartState]:
    """Open the dead parts of a delivery again; of one that may have arrived that is still not known."""
    return {
        kind: PartState("unclear", part.reason) if part.state == "dead" else part
        for kind, part in parts.items()
        if part.state != "dead" or part.was_unclear
    }


def _parts_to_json(parts: Mapping[str, PartState]) -> str | None:
    """Write the settled parts of a delivery."""
    written = {kind: (part.state, part.reason, part.was_unclear, *part.removed) for kind, part in parts.items()}
    return pydantic_core.to_json(written).decode() if written else None


# --- erase -------------------------------------------------------------------------------------------------------


def _remove(connection: Connection, record_id: str) -> None:
    """Remove a judgement with all its revisions; the accounts stay."""
    for statement in REMOVE:
        connection.execute(statement, (record_id,))


def _forget(connection: Connection, user_id: str) -> int:
    """Erase one person; answer how many records there were."""
    named = pydantic_core.to_json(user_id).decode()
    theirs: dict[str, None] = {}
    for sequence, record_id, body in connection.execute(NAMING_RECORDS, (named,)).fetchall():
        if (rest := _without(body, user_id)) is None:
            theirs[record_id] = None
        else:
            connection.execute(REWRITE_RECORD, (rest, sequence))
    for destination, sequence, record_id, body in connection.execute(NAMING_DELIVERIES, (named,)).fetchall():
        if (rest := _without(body, user_id)) is None:
            theirs[record_id] = None
        else:
            connection.execute(REWRITE_DELIVERY, (rest, destination, sequence))
    erased = 0
    for record_id in theirs:
        erased += _scalar(connection, COUNT_REVISIONS, (record_id,))
        connection.execute(TAKE_BACK, (record_id,))
        _remove(connection, record_id)
    for parked_id, body in connection.execute(NAMING_PARKED, (named,)).fetchall():
        if _without(body, user_id) is None:
            erased += connection.execute(IS_PARKED, (parked_id,)).fetchone() is not None
            connection.execute(DROP_PARKED, (parked_id,))
    for rowid, text in connection.execute(NAMING_KEYS, (named,)).fetchall():
        if handle_from_json(text).attributes.get(USER_ID) == user_id:
            connection.execute(DROP_KEY, (rowid,))
    return erased


def _without(body: str, user_id: str) -> str | None:
    """Write somebody else's record without a person's name in its handle; the person's own is none."""
    record = record_from_json(body)
    if record.user_id == user_id:
        return None
    handle = record.handle
    attributes = {name: value for name, value in handle.attributes.items() if (name, value) != (USER_ID, user_id)}
    return record_to_json(replace(record, handle=replace(handle, attributes=attributes)))


# --- accounts ----------------------------------------------------------------------------------------------------


def _scalar(connection: Connection, sql: str, parameters: Sequence[object] = ()) -> Any:
    """Read the first column of the first row."""
    row = connection.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


def _joined_id(connection: Connection, record_id: str) -> str:
    """Follow a parked judgement's id to its record."""
    return _scalar(connection, JOINED, (record_id,)) or record_id


def _accounts(connection: Connection) -> dict[str, DestinationStats]:
    """Read the accounts of all destinations."""
    paused = dict(connection.execute(PAUSES).fetchall())
    counts: dict[str, dict[str, int]] = {}
    skipped: dict[str, dict[str, int]] = {}
    for destination, state, reason, count in connection.execute(TALLIES).fetchall():
        counts.setdefault(destination, {})[state] = count
        if state == "skipped":
            skipped.setdefault(destination, {})[reason] = count
    accounts = {
        destination: DestinationStats(
            recorded=sum(count for state, count in of.items() if state not in ("retried", "skipped"))
            + sum(skipped.get(destination, {}).values()),
            pending=of.get("pending", 0),
            delivered=of.get("delivered", 0),
            dead=of.get("dead", 0),
            superseded=of.get("superseded", 0),
            retracted=of.get("retracted", 0),
            skipped=skipped.get(destination, {}),
            retried=of.get("retried", 0),
            oldest_unix_nano=_scalar(connection, OLDEST, (destination,)),
            paused=paused.get(destination),
        )
        for destination, of in counts.items()
    }
    waiting, oldest = connection.execute(COUNT_PARKED).fetchone()
    if waiting:
        accounts[PARKED] = DestinationStats(recorded=waiting, pending=waiting, oldest_unix_nano=oldest)
    return accounts
