"""What a file of an earlier release becomes, and what an earlier release may still write into it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags
from sqlite_files import Script, destroy, kept_aside, leaves, root_page, watched_by

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord, handle_to_json, record_to_json
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import APP, PARKED, Parked, PartState, Settlement, Standing
from otel_feedback.stores._sqlite_schema import APPLICATION_ID, SCHEMA_VERSION, span_of
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

NOW = 1_767_225_600_000_000_000
HOUR = 3_600_000_000_000

# As the first release wrote it, to the letter.
FIRST_SCHEMA = """
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

# The statements of the first release that write.
PUT_RECORD = "INSERT INTO records (id, revision, call, name, retracts, body) VALUES (?, ?, ?, ?, ?, ?)"
PUT_DELIVERY = """
INSERT INTO deliveries (destination, sequence, id, state, due, accepted_at, reason) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
BIND = """
INSERT INTO keys (kind, key, call, started_at, handle) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, key, call) DO UPDATE SET started_at = excluded.started_at, handle = excluded.handle
"""
LEASE = "UPDATE deliveries SET state = 'leased', fence = fence + 1, due = ? WHERE destination = ? AND sequence = ?"
SETTLE = """
UPDATE deliveries SET state = ?, due = ?, attempts = ?, reason = ?, parts = ?, held = ?
WHERE destination = ? AND sequence = ?
"""
REQUEUE = """
UPDATE deliveries SET state = ?, due = ?, accepted_at = ?, attempts = 0, parts = ?
WHERE destination = ? AND sequence = ?
"""
SUPERSEDE = "UPDATE deliveries SET state = ? WHERE id = ? AND destination = ? AND state = 'pending'"
PARK = "INSERT OR REPLACE INTO parked (id, kind, key, destinations, body) VALUES (?, ?, ?, ?, ?)"
STOP_WAITING = "DELETE FROM deliveries WHERE destination = ? AND state = 'pending'"


def handle(span: int) -> FeedbackHandle:
    return FeedbackHandle(SpanContext(0xABC, span, is_remote=True, trace_flags=TraceFlags(1)))


def judgement(number: int, **changes: Any) -> FeedbackRecord:
    given = {"handle": handle(number), "recorded_at_unix_nano": NOW - number * HOUR, "value": True, **changes}
    return FeedbackRecord(id=str(number), name="rating", **given)


def call(record: FeedbackRecord) -> str:
    return f"{record.handle.trace_id}{record.handle.span_id}"


@dataclass
class FirstRelease:
    """A process of the first release, with a connection that stays open."""

    connection: sqlite3.Connection

    @classmethod
    def at(cls, path: Path) -> FirstRelease:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.executescript(FIRST_SCHEMA)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        return cls(connection)

    def put(self, record: FeedbackRecord, states: dict[str, str], *, reason: str | None = None) -> int:
        revisions = self.connection.execute("SELECT count(*) FROM records WHERE id = ?", (record.id,)).fetchone()[0]
        row = (record.id, revisions, call(record), record.name, record.retracts, record_to_json(record))
        sequence = self.connection.execute(PUT_RECORD, row).lastrowid
        assert sequence is not None
        for destination, state in states.items():
            self.connection.execute(SUPERSEDE, ("superseded", record.id, destination))
            given = reason if state == "skipped" else None
            self.connection.execute(PUT_DELIVERY, (destination, sequence, record.id, state, NOW, NOW, given))
        return sequence

    def settle(self, destination: str, sequence: int, state: str, parts: dict[str, list[str | None]]) -> None:
        self.connection.execute(SETTLE, (state, NOW, 1, None, json.dumps(parts), 0, destination, sequence))


@pytest.fixture
def old(path: Path) -> Iterator[FirstRelease]:
    """A file of the first release, open in a process of it."""
    release = FirstRelease.at(path)
    yield release
    release.connection.close()


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[SQLiteStore]:
    """Our store at the same place, not opened yet."""
    store = SQLiteStore(path, clock=clock)
    yield store
    store.close()


def rows(store: SQLiteStore, query: str, *parameters: object) -> list[Any]:
    return store._file.read(lambda connection: connection.execute(query, parameters).fetchall())


# --- migration -----------------------------------------------------------------------------------------------------


def test_a_file_of_the_first_release_becomes_one_of_this(old: FirstRelease, store: SQLiteStore) -> None:
    """
    It has the newest schema's number, and the same tables, columns, indices and triggers as a file that is made new.
    """
    store.open()
    fresh = SQLiteStore(store.path.with_name("fresh.db"))
    fresh.open()
    shape = """
    SELECT m.type, m.name, c.name FROM sqlite_master AS m LEFT JOIN pragma_table_info(m.name) AS c ORDER BY 1, 2, 3
    """
    found, expected = rows(store, shape), rows(fresh, shape)
    fresh.close()

    assert expected == found
    assert [(SCHEMA_VERSION,)] == rows(store, "PRAGMA user_version")


def test_every_state_is_counted(old: FirstRelease, store: SQLiteStore) -> None:
    """
    The accounts of a migrated file say what its rows say, and what waits is leased as before.
    """
    states = ["pending", "leased", "delivered", "dead", "superseded", "retracted", "skipped"]
    for number, state in enumerate(states, start=1):
        old.put(judgement(number), {"a": state}, reason="muted")
    old.put(judgement(8), {"a": "pending", "b": "pending"})
    old.put(judgement(9), {"a": "skipped"})
    stats = store.stats()

    assert (9, 3, 1, 1, 1, 1) == (
        stats["a"].recorded,
        stats["a"].pending,
        stats["a"].delivered,
        stats["a"].dead,
        stats["a"].superseded,
        stats["a"].retracted,
    )
    assert {"muted": 1, "": 1} == stats["a"].skipped
    assert (1, NOW, True) == (stats["b"].pending, stats["b"].oldest_unix_nano, stats["a"].is_conserved)
    leases = store.lease("a", limit=9, duration_millis=1_000)
    assert [judgement(n) for n in (1, 2, 8)] == [lease.record for lease in leases]
    assert [True] * 3 == list(store.settle_many([(lease, Settlement("deliver", {})) for lease in leases]))
    assert (0, 4) == (store.stats()["a"].pending, store.stats()["a"].delivered)


def test_keys_and_parked_judgements_are_there(old: FirstRelease, store: SQLiteStore) -> None:
    """
    A key names its calls, a parked judgement waits for its key, and each has the age that the first release knew.
    """
    for span in (1, 2):
        row = (APP, "m-1", call(judgement(span)), NOW - span * HOUR, handle_to_json(handle(span)))
        old.connection.execute(BIND, row)
    old.connection.execute(PARK, ("3", APP, "m-2", '["a"]', record_to_json(judgement(3))))

    assert [handle(1), handle(2)] == list(store.find(APP, "m-1"))
    assert [Parked(judgement(3), APP, "m-2", ("a",))] == list(store.parked(APP, "m-2"))
    assert (1, NOW - 3 * HOUR) == (store.stats()[PARKED].pending, store.stats()[PARKED].oldest_unix_nano)
    assert 1 == store.prune(NOW - HOUR)  # the older key


def test_pauses_go_on(old: FirstRelease, store: SQLiteStore, clock: FakeClock) -> None:
    """
    A paused destination stays paused for its time, and is then tried with one record.
    """
    until = clock.time_unix_nano() + 1_000_000_000
    old.connection.execute("INSERT INTO pauses (destination, until, reason) VALUES ('a', ?, '401')", (until,))
    for number in (1, 2):
        old.put(judgement(number), {"a": "pending"})

    assert [] == store.lease("a", limit=9, duration_millis=1_000)
    assert ("401", until) == (store.stats()["a"].paused, store.next_due("a"))
    clock.advance(seconds=1)
    assert [True] == [lease.is_probe for lease in store.lease("a", limit=9, duration_millis=1_000)]


def test_records_have_the_age_at_which_they_were_recorded(old: FirstRelease, store: SQLiteStore) -> None:
    """
    What was delivered long ago is pruned by its own time, not by that of the migration.
    """
    for number in (1, 2, 3):
        old.put(judgement(number), {"a": "delivered"})

    assert 2 == store.prune(NOW - HOUR)
    assert (None, judgement(1)) == (store.latest("3"), store.latest("1"))


def test_deliveries_stand_in_the_line_of_their_span(old: FirstRelease, store: SQLiteStore) -> None:
    """
    Leased by call, two people's judgements of one span go one after the other, that of another span at once.
    """
    old.put(judgement(1, handle=handle(2**63 + 5)), {"a": "pending"})
    old.put(judgement(2, handle=handle(2**63 + 5)), {"a": "pending"})
    old.put(judgement(3), {"a": "pending"})
    leases = store.lease("a", limit=9, duration_millis=1_000, by_call=True)

    assert ["1", "3"] == [lease.record.id for lease in leases]
    assert [5 - 2**63, 5 - 2**63, 3] == [row[0] for row in rows(store, "SELECT span FROM deliveries ORDER BY sequence")]


@pytest.mark.parametrize(("span", "number"), [("0" * 15 + "1", 1), ("f" * 16, -1), ("7" + "f" * 15, 2**63 - 1)])
def test_a_span_is_kept_as_a_signed_number(span: str, number: int) -> None:
    """
    SQLite's integers have 64 bits and a sign; every span has one of its own.
    """
    assert number == span_of("a" * 32 + span)


RATED, SAID = {"rating": ["delivered", "ok"]}, {"comment": ["delivered", None]}


@pytest.mark.parametrize(
    ("revisions", "standing"),
    [
        ([({}, {})], {}),
        ([({}, {**RATED, **SAID})], {"rating": (0, False, ()), "comment": (0, False, ())}),
        ([({}, {**RATED, **SAID}), ({}, RATED)], {"rating": (1, False, ()), "comment": (0, False, ())}),
        ([({}, {"rating": ["unclear", "reset"]})], {"rating": (0, True, ())}),
        ([({}, RATED), ({}, {"rating": ["unclear", "reset"]})], {"rating": (1, True, (0,))}),
        ([({}, RATED), ({}, {"rating": ["dead", "400"]})], {"rating": (0, False, ())}),
        ([({}, {**RATED, **SAID}), ({"retracts": True}, RATED)], {"comment": (0, False, ())}),
        ([({}, RATED), ({"retracts": True}, {"rating": ["unclear", "reset"]})], {"rating": (0, True, ())}),
    ],
    ids=[
        "nothing",
        "delivered",
        "half changed",
        "unclear",
        "unclear change",
        "dead",
        "retracted",
        "unclear retraction",
    ],
)
def test_what_stands_at_a_destination_is_worked_out(
    old: FirstRelease,
    store: SQLiteStore,
    revisions: list[tuple[dict[str, Any], dict[str, list[str | None]]]],
    standing: dict[str, tuple[int, bool, tuple[int, ...]]],
) -> None:
    """
    From the parts of the earlier revisions, the next one's lease tells what the destination has of the judgement.
    """
    for changes, parts in revisions:
        sequence = old.put(judgement(1, **changes), {"a": "delivered"})
        if parts:
            old.settle("a", sequence, "delivered", parts)
    old.put(judgement(1), {"a": "pending"})
    (lease,) = store.lease("a", limit=9, duration_millis=1_000)

    assert len(revisions) == lease.record.revision
    assert standing == {
        kind: (each.record.revision, each.is_unclear, each.others) for kind, each in lease.standing.items()
    }
    assert all(isinstance(each, Standing) for each in lease.standing.values())


def test_parts_that_were_settled_stay_settled(old: FirstRelease, store: SQLiteStore) -> None:
    """
    A half delivered judgement goes on with the other half.
    """
    sequence = old.put(judgement(1), {"a": "pending"})
    old.settle("a", sequence, "pending", {"comment": ["delivered", "fine"], "rating": ["unclear", "reset"]})
    (lease,) = store.lease("a", limit=9, duration_millis=1_000)

    assert {"comment": PartState("delivered", "fine"), "rating": PartState("unclear", "reset")} == lease.parts
    assert 1 == lease.attempts


# --- an old process beside us --------------------------------------------------------------------------------------


def test_an_old_process_that_goes_on_writing_keeps_the_accounts(old: FirstRelease, store: SQLiteStore) -> None:
    """
    What a process of the first release puts, leases, settles and requeues after the migration is counted.
    """
    store.open()
    first = old.put(judgement(1), {"a": "pending"})
    second = old.put(judgement(2), {"a": "pending"})
    old.put(judgement(2, comment="newer"), {"a": "pending"})
    old.put(judgement(4), {"a": "skipped"}, reason="muted")
    old.connection.execute(LEASE, (NOW, "a", first))
    old.settle("a", first, "dead", {"rating": ["dead", "400"]})
    dead = store.stats()["a"]
    old.connection.execute(REQUEUE, ("pending", NOW, NOW, None, "a", first))
    again = store.stats()["a"]

    assert (4, 1, 1, 1, {"muted": 1}) == (dead.recorded, dead.pending, dead.dead, dead.superseded, dead.skipped)
    assert (4, 2, 0) == (again.recorded, again.pending, again.dead)
    assert first < second
    leases = store.lease("a", limit=9, duration_millis=1_000)
    assert ["1", "2"] == sorted(lease.record.id for lease in leases)


# --- files that are not for us -------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_untouched(old: FirstRelease, store: SQLiteStore) -> None:
    """
    A file of a newer release is left alone, and the message says which schema it has and what to do.
    """
    old.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(
        StoreError, match=f"schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}.*upgrade"
    ) as caught:
        store.open()

    assert str(caught.value).startswith(f"{store.path} was written by a newer release")
    assert store.url == caught.value.store
    assert SCHEMA_VERSION + 1 == old.connection.execute("PRAGMA user_version").fetchone()[0]
    assert [] == old.connection.execute("SELECT * FROM sqlite_master WHERE name = 'tallies'").fetchall()


def test_an_empty_file_becomes_a_store(path: Path, store: SQLiteStore) -> None:
    """
    A file without anything in it, as `touch` or a mount makes it, is nobody's yet.
    """
    path.touch()
    store.put(judgement(1), ["a"])

    assert judgement(1) == store.latest("1")
    store.close()
    assert b"otfb" == path.read_bytes()[68:72]  # as `file` and others read it: what makes it ours


def test_a_migration_that_fails_leaves_the_file_as_it_was(old: FirstRelease, path: Path, clock: FakeClock) -> None:
    """
    It is one transaction: after a fault in its middle the old process goes on, and the next try succeeds.
    """
    old.put(judgement(1), {"a": "pending"})
    script = Script()
    script.fail("CREATE TRIGGER deliveries_return", "disk I/O error")
    store = SQLiteStore(path, clock=clock, connect=watched_by(script))
    with pytest.raises(StoreError, match="disk I/O error"):
        store.open()

    assert 1 == old.connection.execute("PRAGMA user_version").fetchone()[0]
    old.put(judgement(2), {"a": "pending"})
    assert 2 == store.stats()["a"].pending
    store.close()


def test_what_stands_of_one_judgement_is_not_another_s(old: FirstRelease, store: SQLiteStore) -> None:
    """
    Several judgements at one destination, and one judgement at several, are told apart.
    """
    for number, parts in ((1, RATED), (2, SAID)):
        sequence = old.put(judgement(number), {"a": "delivered", "b": "delivered"})
        old.settle("a", sequence, "delivered", parts)
        old.settle("b", sequence, "delivered", {**RATED, **SAID})
        old.put(judgement(number), {"a": "pending", "b": "pending"})
    leases = {name: store.lease(name, limit=9, duration_millis=1_000) for name in "ab"}

    assert [["rating"], ["comment"]] == [list(lease.standing) for lease in leases["a"]]
    assert [["comment", "rating"]] * 2 == [sorted(lease.standing) for lease in leases["b"]]


def test_a_dead_letter_of_the_first_release_is_sent_anew(old: FirstRelease, store: SQLiteStore) -> None:
    """
    It was refused, so that nothing of it may have arrived.
    """
    sequence = old.put(judgement(1), {"a": "pending"})
    old.settle("a", sequence, "dead", {"rating": ["dead", "HTTP 400"]})
    assert store.requeue("1", "a")
    (lease,) = store.lease("a", limit=9, duration_millis=1_000)

    assert ({}, 0) == (dict(lease.parts), lease.attempts)


# --- damage of an old file -----------------------------------------------------------------------------------------


def test_a_damaged_file_of_the_first_release_is_saved_and_migrated(
    old: FirstRelease, store: SQLiteStore, path: Path
) -> None:
    """
    What can be read of it has its ages, its spans and what stands, as if it had been migrated whole.
    """
    for number in (1, 2):
        sequence = old.put(judgement(number), {"a": "delivered"})
        old.settle("a", sequence, "delivered", RATED)
        old.put(judgement(number, comment="more"), {"a": "pending"})
    old.connection.execute(BIND, (APP, "m-1", call(judgement(1)), NOW, handle_to_json(handle(1))))
    old.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old.connection.close()
    destroy(path, root_page(path, "records_by_call"))

    assert (4, 2, 2) == (store.stats()["a"].recorded, store.stats()["a"].pending, store.stats()["a"].delivered)
    assert 0 == store.prune(NOW - 3 * HOUR)
    leases = store.lease("a", limit=9, duration_millis=1_000, by_call=True)
    assert [("1", (0,)), ("2", (0,))] == [(lease.record.id, lease.standing["rating"].revisions) for lease in leases]


def test_a_file_of_the_first_release_that_cannot_be_migrated_for_damage_is_saved(
    old: FirstRelease, store: SQLiteStore, path: Path
) -> None:
    """
    Where the migration itself meets the damage, what can be read still has its ages and its spans.
    """
    for number in range(1, 101):
        old.put(judgement(number, comment="It was good. " * 20, recorded_at_unix_nano=NOW), {"a": "delivered"})
    for number in range(101, 104):
        old.put(judgement(number), {"a": "pending"})
    old.connection.execute(BIND, (APP, "m-1", call(judgement(1)), NOW, handle_to_json(handle(1))))
    old.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old.connection.close()
    destroy(path, leaves(path, root_page(path, "records"))[3])
    store.open()

    assert 1 == len(kept_aside(path))
    assert 3 == len(store.lease("a", limit=9, duration_millis=1_000, by_call=True))
    assert 0 == store.prune(NOW - HOUR)
    assert [handle(1)] == list(store.find(APP, "m-1"))
