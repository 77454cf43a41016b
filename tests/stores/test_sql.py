"""What the statements ask of whoever runs them: few writers, and room for those that make room."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_feedback._record import FeedbackRecord
from otel_feedback.stores import APP, Binding, Entry, Parked, Settlement, _sql
from otel_feedback.stores._sql import SQLStore
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

RecordMaker = Callable[..., FeedbackRecord]

DELIVERED = Settlement("deliver", {})


class NotingDatabase:
    """A database in memory that notes of each transaction whether it was said to be vital."""

    url = "memory:"

    def __init__(self) -> None:
        self._memory = MemoryStore()._database
        self.writes: list[bool] = []

    def write(self, action: Callable[[Any], Any], *, is_vital: bool = False) -> Any:
        self.writes.append(is_vital)
        return self._memory.write(action)

    def read(self, action: Callable[[Any], Any]) -> Any:
        return self._memory.read(action)

    def erase_traces(self) -> None:
        pass

    def discard_aside(self, before_unix_nano: int) -> None:
        pass


@pytest.fixture
def database() -> NotingDatabase:
    return NotingDatabase()


@pytest.fixture
def store(database: NotingDatabase, clock: FakeClock) -> SQLStore:
    return SQLStore(database, max_queue_size=None, clock=clock)


@pytest.mark.parametrize(
    ("use", "is_vital"),
    [
        # what adds
        (lambda store, record, _: store.bind([Binding(APP, "m-1", record.handle)]), False),
        (lambda store, record, _: store.put(record, ["a"]), False),
        (lambda store, record, _: store.put_many([Parked(record, APP, "m-1")]), False),
        # what was accepted goes on
        (lambda store, record, _: store.unpark("p", Entry(record, ["a"])), True),
        (lambda store, *_: store.lease("a", limit=1, duration_millis=1), True),
        (lambda store, _, lease: store.settle(lease, DELIVERED), True),
        (lambda store, _, lease: store.settle_many([(lease, DELIVERED)]), True),
        (lambda store, *_: store.pause("a", reason="401", until_unix_nano=1), True),
        (lambda store, *_: store.resume("a"), True),
        (lambda store, *_: store.release("a"), True),
        (lambda store, record, _: store.requeue(record.id, "a"), True),
        (lambda store, *_: store.route(["a"]), True),
        # what makes room
        (lambda store, *_: store.prune(1), True),
        (lambda store, *_: store.forget("u-1"), True),
    ],
)
def test_whatever_ends_in_less_being_kept_is_vital(
    store: SQLStore,
    database: NotingDatabase,
    clock: FakeClock,
    make_record: RecordMaker,
    use: Callable[..., Any],
    is_vital: bool,
) -> None:
    """
    On a full disk the ballast is given up for what delivers or erases, and for nothing that adds.
    """
    store.put(make_record(1), ["a"])
    (lease,) = store.lease("a", limit=1, duration_millis=0)
    database.writes.clear()
    use(store, make_record(2), lease)

    assert [is_vital] == database.writes


def test_a_round_that_finds_nothing_waits_for_no_writer(
    store: SQLStore, database: NotingDatabase, clock: FakeClock, make_record: RecordMaker
) -> None:
    """
    Whether nothing is there or nothing is due yet, that is read and not written.
    """
    store.put(make_record(), ["a"])
    store.lease("a", limit=1, duration_millis=1)
    database.writes.clear()

    assert [[], []] == [list(store.lease(name, limit=1, duration_millis=1)) for name in "ab"]
    assert [] == database.writes


def test_a_judgement_that_cannot_be_read_is_a_dead_letter_and_keeps_nobody_waiting(
    path: Path, make_record: Callable[..., FeedbackRecord], caplog: pytest.LogCaptureFixture
) -> None:
    """
    A damaged text, or one of a release that is not known here, is told of without being quoted; the others go.
    """
    store = SQLiteStore(path)
    store.put_many([Entry(make_record(number), ["a"]) for number in (1, 2, 3)])
    store._file.write(lambda connection: connection.execute(TEAR).rowcount)
    leases = store.lease("a", limit=9, duration_millis=60_000)

    assert [make_record(number).id for number in (1, 3)] == [lease.record.id for lease in leases]
    assert (1, 2, True) == (
        (stats := store.stats()["a"]).dead,
        stats.pending,
        stats.is_conserved,
    )
    assert ["a judgement is dead at a: it cannot be read from the store (ValueError)"] == caplog.messages
    store.close()


TEAR = "UPDATE records SET body = '{\"torn' WHERE sequence = 2"


# --- what is read for an answer ------------------------------------------------------------------------------------

# What reads a table from its first row to its last: asked by `forget`, or of what has a row for each destination only.
SCANNING = {"NAMING_RECORDS", "NAMING_DELIVERIES", "NAMING_PARKED", "NAMING_KEYS", "PAUSES", "TALLIES"}


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file of an empty store."""
    store = SQLiteStore(path)
    store.open()
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def plans(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Tell how SQLite finds the rows of each statement (https://www.sqlite.org/eqp.html)."""
    found: dict[str, list[str]] = {}
    for name, value in vars(_sql).items():
        for statement in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]:
            if name.isupper() and name[0] != "_" and str(statement).lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
                named = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", named or [1] * statement.count("?"))
                found.setdefault(name, []).extend(row[3] for row in rows)
    return found


def test_no_statement_but_those_named_reads_a_whole_table(connection: sqlite3.Connection) -> None:
    """
    However many judgements are kept, an answer costs as much as what it is about.
    """
    found = {name for name, steps in plans(connection).items() for step in steps if re.match(r"SCAN \w+$", step)}

    assert SCANNING == found


def test_every_index_is_read_by_some_statement(connection: sqlite3.Connection) -> None:
    """
    One that is not would cost each write and give nothing.
    """
    indexes = {
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql <> ''")
    }
    used = {
        index for steps in plans(connection).values() for step in steps for index in re.findall(r"INDEX (\w+)", step)
    }

    assert indexes == used & indexes
    assert len(indexes) > 5
