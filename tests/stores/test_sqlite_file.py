"""The life of the store's file: commits that are shared, and what becomes of it when it is full, damaged or moved."""

from __future__ import annotations

import ast
import contextlib
import errno
import gc
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry.trace import SpanContext
from sqlite_files import (
    PAGE,
    Caller,
    Disk,
    Script,
    Watched,
    Worker,
    checkpoint,
    destroy,
    kept_aside,
    leaves,
    make_file,
    note,
    notes,
    root_page,
    rows_in,
    together,
    until,
    watched_by,
)

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback._time import SystemClock
from otel_feedback.exceptions import OutboxFullError, StoreError
from otel_feedback.stores import (
    APP,
    UNROUTED,
    Binding,
    Entry,
    Lease,
    Parked,
    Settlement,
    _sqlite_file,
    _sqlite_rescue,
    _sqlite_salvage,
)
from otel_feedback.stores._sqlite_file import BALLAST_BYTES, CHECK_BYTES, MAX_MOVES, SQLiteFile
from otel_feedback.stores._sqlite_rescue import Connect
from otel_feedback.stores._sqlite_schema import SCHEMA_VERSION
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

RecordMaker = Callable[..., FeedbackRecord]

DELIVERED = Settlement("deliver", {})
MINUTE = 60_000


# For a process that coverage may not be in: one of another user, who may not write its data here, or one that forks in
# the middle of other threads, which it takes locks in.
UNCOVERED = {name: value for name, value in os.environ.items() if not name.startswith("COV")}

_made: list[SQLiteStore | SQLiteFile] = []


def store_at(path: Path, **options: Any) -> SQLiteStore:
    """Make a store that is closed when the test ends, however it ends."""
    store = SQLiteStore(path, **options)
    _made.append(store)
    return store


def file_at(path: Path, connect: Connect = sqlite3.connect) -> SQLiteFile:
    """Make a file that is closed when the test ends, however it ends."""
    file = make_file(path, connect)
    _made.append(file)
    return file


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def ballast_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-ballast")


def leased(store: SQLiteStore, destination: str = "a") -> list[Lease]:
    return list(store.lease(destination, limit=10_000, duration_millis=MINUTE))


def ids(leases: list[Lease]) -> list[int]:
    return sorted(int(lease.record.id[-12:]) for lease in leases)


def fill(store: SQLiteStore, make_record: RecordMaker, count: int, destinations: tuple[str, ...] = ("a",)) -> None:
    """Put records that take some room, so that each table has several pages."""
    store.put_many([Entry(make_record(n, comment=f"{n} was good. " * 20), destinations) for n in range(1, count + 1)])


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """List what the stores' own loggers said."""
    ours = [record for record in caplog.records if record.name.startswith("otel_feedback.stores.")]
    return [record.getMessage() for record in ours if record.levelno == level]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def file(path: Path, script: Script) -> Iterator[SQLiteFile]:
    """A file on its own, whose statements can be watched."""
    file = file_at(path, watched_by(script))
    yield file
    file.close()


@pytest.fixture
def watched_store(path: Path, clock: FakeClock, script: Script) -> Iterator[SQLiteStore]:
    """An open store whose statements can be watched."""
    store = store_at(path, clock=clock, connect=watched_by(script))
    store.open()
    yield store
    store.close()


# --- group commit --------------------------------------------------------------------------------------------------


@contextmanager
def busy(file: SQLiteFile) -> Iterator[None]:
    """Keep the file in a transaction of another thread; when it ends, so does that."""
    entered, leave = threading.Event(), threading.Event()

    def wait(connection: Any) -> None:
        entered.set()
        leave.wait()

    leader = Caller(lambda: file.write(wait))
    until(lambda: entered.is_set() or not leader.is_alive())
    assert leader.error is None
    try:
        yield
    finally:
        leave.set()
    assert leader.ended()


def queued(file: SQLiteFile, actions: list[Callable[[Any], Any]]) -> list[Caller]:
    """Let a thread ask for each action, in this order; answer when all of them wait."""
    before = len(file._jobs)
    callers = []
    for number, action in enumerate(actions, start=1):
        callers.append(Caller(lambda action=action: file.write(action)))
        until(lambda number=number: len(file._jobs) == before + number)
    return callers


def test_what_many_threads_write_at_once_shares_one_commit(file: SQLiteFile, script: Script) -> None:
    """
    What twenty threads ask for while a transaction runs is committed by one more.
    """
    before = script.seen["COMMIT"]
    with busy(file):
        callers = queued(file, [note(number) for number in range(20)])

    assert all(caller.ended() and caller.error is None for caller in callers)
    assert (before + 2, list(range(20))) == (script.seen["COMMIT"], notes(file))


def test_each_caller_gets_what_its_own_action_answered(file: SQLiteFile) -> None:
    """
    Whoever commits, an answer goes to who asked for it.
    """
    with busy(file):
        callers = queued(file, [lambda _, number=number: number for number in range(5)])

    assert [0, 1, 2, 3, 4] == [caller.ended() and caller.result for caller in callers]


def test_an_action_that_raises_undoes_its_own_part_alone(file: SQLiteFile, script: Script) -> None:
    """
    Its caller gets the error, the others of the group are committed all the same, and together.
    """

    def fail(connection: Any) -> None:
        note("undone")(connection)
        raise LookupError("a fault")

    before = script.seen["COMMIT"]
    with busy(file):
        callers = queued(file, [note("before"), fail, note("after")])

    assert all(caller.ended() for caller in callers)
    assert [None, "a fault", None] == [caller.error and str(caller.error) for caller in callers]
    assert (before + 2, ["after", "before"]) == (script.seen["COMMIT"], notes(file))


def test_a_row_that_the_database_refuses_fails_its_own_caller_alone(file: SQLiteFile) -> None:
    """
    An error of SQLite's takes the group's transaction with it; then each is tried in its own.
    """
    file.write(lambda connection: connection.execute("CREATE UNIQUE INDEX once ON notes (note)"))
    file.write(note("there"))
    with busy(file):
        callers = queued(file, [note("before"), note("there"), note("after")])

    assert all(caller.ended() for caller in callers)
    assert [None, StoreError, None] == [caller.error and type(caller.error) for caller in callers]
    assert ["after", "before", "there"] == notes(file)


def test_a_group_that_cannot_be_committed_is_tried_one_by_one(file: SQLiteFile, script: Script) -> None:
    """
    When the commit of three fails, three commits follow, and nobody hears of it.
    """
    with busy(file):
        callers = queued(file, [note(number) for number in range(3)])
        before = script.seen["COMMIT"]
        script.on("COMMIT", lambda: script.fail("COMMIT", "disk I/O error"))  # the leader's succeeds, the group's fails

    assert all(caller.ended() and caller.error is None for caller in callers)
    assert (before + 5, [0, 1, 2]) == (script.seen["COMMIT"], notes(file))


def test_a_group_that_finds_the_file_locked_has_waited_long_enough(file: SQLiteFile, script: Script) -> None:
    """
    Each alone would wait as long once more: all of them are refused at once.
    """
    with busy(file):
        callers = queued(file, [note(number) for number in range(3)])
        script.on("COMMIT", lambda: script.fail("BEGIN", "database is locked"))  # the leader's succeeds

    assert all(caller.ended() and isinstance(caller.error, StoreError) for caller in callers)
    assert [] == notes(file)


def test_an_interrupt_of_the_leader_leaves_the_others_jobs_to_be_done(file: SQLiteFile) -> None:
    """
    A thread that is interrupted while it commits for others takes only its own job with it.
    """
    interrupts = [KeyboardInterrupt()]

    def interrupted(connection: Any) -> None:
        note(0)(connection)
        if interrupts:
            raise interrupts.pop()

    with busy(file):
        callers = queued(file, [interrupted, note(1), note(2)])
    assert all(caller.ended() for caller in callers)
    (led,) = [number for number, caller in enumerate(callers) if isinstance(caller.error, KeyboardInterrupt)]

    assert [number for number in range(3) if number != led] == notes(file)


def test_an_interrupt_before_the_commit_leaves_the_others_jobs_to_be_done(file: SQLiteFile, script: Script) -> None:
    """
    What was run and never committed is not taken to be done.
    """
    with busy(file):
        interrupted, other = queued(file, [note("interrupted"), note("other")])

        def interrupt() -> None:
            raise KeyboardInterrupt

        script.on("COMMIT", lambda: script.on("COMMIT", interrupt))

    assert (interrupted.ended(), other.ended()) == (True, True)
    assert "other" in notes(file) or isinstance(other.error, KeyboardInterrupt)
    assert 1 == [type(each.error) for each in (interrupted, other)].count(KeyboardInterrupt)


def test_an_interrupt_after_the_commit_does_no_job_twice(path: Path) -> None:
    """
    What was committed before the thread was interrupted is done, for everybody who had asked for it.
    """
    interrupts = 0

    class Interrupting(Watched):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            nonlocal interrupts
            cursor = super().execute(sql, parameters)
            if sql == "COMMIT" and interrupts:
                interrupts -= 1
                if interrupts == 0:
                    raise KeyboardInterrupt
            return cursor

    file = file_at(path, lambda *args, **kwargs: Interrupting(sqlite3.connect(*args, **kwargs), lambda sql: None))
    with busy(file):
        callers = queued(file, [note("one"), note("other")])
        interrupts = 2  # the commit of whoever keeps the file busy comes first

    assert [True, True] == [each.ended() for each in callers]
    assert ["one", "other"] == notes(file)
    assert 1 == [type(each.error) for each in callers].count(KeyboardInterrupt)


def test_a_job_that_an_interrupted_leader_had_in_hand_is_done(file: SQLiteFile) -> None:
    """
    Taken from the queue and noted nowhere: the thread that waits for it has it still.
    """

    class TakenAway(deque[Any]):
        def append(self, job: Any) -> None:
            """Lose it, as a thread does that is interrupted between taking a job and noting it."""

    file._jobs = TakenAway()
    file.write(note("lost"))

    assert ["lost"] == notes(file)


def test_an_interrupt_at_any_moment_harms_no_other_thread(file: SQLiteFile) -> None:
    """
    Wherever between two calls a thread is interrupted that leads, what others ask for is committed, and once.
    """
    harmed, interrupted = [], 0
    for step in range(1, 61):  # more than there are; now and then it is another thread that leads
        is_interrupted, others = led_and_interrupted(file, step)
        interrupted += is_interrupted
        assert all(other.ended() for other in others), f"another hangs after an interrupt at step {step}"
        written = notes(file)
        for number, other in enumerate(others):
            if other.error is not None or written.count(f"{step}.{number}") != 1:
                harmed.append((step, number, other.error))

    assert [] == harmed
    assert interrupted > 20


def led_and_interrupted(file: SQLiteFile, step: int) -> tuple[bool, list[Caller]]:
    """Interrupt a thread at its n-th step of a write while another's waits, then write; say whether it came so far."""
    with busy(file):
        leading = Caller(lambda: interrupt_at(step, lambda: file.write(note(f"own {step}"))))
        until(lambda: file._jobs or not leading.is_alive())
        others = queued(file, [note(f"{step}.0")])
    assert leading.ended(), f"the leader hangs when interrupted at step {step}"
    others.append(Caller(lambda: file.write(note(f"{step}.1"))))
    assert others[1].ended()
    return isinstance(leading.error, KeyboardInterrupt), others


def interrupt_at(step: int, call: Callable[[], object]) -> None:
    """Call something and raise `KeyboardInterrupt` at its n-th call or return, as a signal's handler would."""
    left = step

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        # No signal's handler comes between a decision to call C and the call, as at the end of a `with`.
        if frame.f_code.co_filename != _sqlite_file.__file__ or event == "c_call":
            return
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    gc.disable()  # another test's store, collected meanwhile, would be interrupted in its finaliser
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()


def test_a_write_within_a_read_does_not_wait_for_ever(path: Path) -> None:
    """
    A finaliser that writes in the middle of its thread's read ends, while another thread closes the file.
    """
    file = make_file(path)  # no fixture's: one that hangs could not be closed
    closing: list[Caller] = []

    def read(connection: Any) -> None:
        closing.append(Caller(file.close))
        until(lambda: not can_be_had(file._write_lock))
        file.write(note("from a finaliser"))

    notes(file)
    reader = Caller(lambda: file.read(read))

    assert (True, True) == (reader.ended(5), closing[0].ended(5))
    file.close()


def can_be_had(lock: Any) -> bool:
    if lock.acquire(blocking=False):
        lock.release()
        return True
    return False


def test_a_use_within_a_transaction_is_refused_and_harms_nothing(path: Path, make_record: RecordMaker) -> None:
    """
    A finaliser that writes in the middle of a transaction of its own thread fails, and the transaction does not.
    """
    file = file_at(path)

    def write(connection: Any) -> None:
        note("written")(connection)
        with pytest.raises(StoreError, match="within a transaction") as caught:
            file.write(note("refused"))
        assert file.url == caught.value.store

    file.write(write)

    assert ["written"] == notes(file)
    file.close()


def test_a_close_within_a_use_leaves_the_use_alone(path: Path) -> None:
    """
    A signal's handler that closes the file in the middle of its thread's write does not take the write with it.
    """
    file = file_at(path)

    def close_within(connection: Any) -> None:
        file.close()
        note(1)(connection)

    file.write(close_within)

    assert [1] == notes(file)
    file.close()
    assert not file.is_open


def test_a_use_while_the_file_is_mended_ends(path: Path) -> None:
    """
    A finaliser that writes while its thread opens, mends or puts back the file is refused or done; it does not hang.
    """
    script = Script()
    file = file_at(path, watched_by(script))
    notes(file)
    checkpoint(path)
    destroy(path, root_page(path, "notes"))
    said: list[object] = []

    def use() -> None:
        try:
            said.append(file.write(lambda _: "done"))
        except StoreError as error:
            said.append(str(error))

    script.on("PRAGMA secure_delete", use)
    reader = Caller(lambda: file.read(lambda c: c.execute("SELECT * FROM notes").fetchall()))

    assert reader.ended(5)
    assert 1 == len(said)


# --- reading -------------------------------------------------------------------------------------------------------


def test_readers_do_not_wait_for_a_writer(file: SQLiteFile) -> None:
    """
    While a transaction runs, another thread reads what was committed before it.
    """
    file.write(note("before"))
    notes(file)
    with busy(file):
        reader = Caller(lambda: notes(file))

        assert reader.ended()
    assert ["before"] == reader.result


def test_reading_can_write_nothing(file: SQLiteFile) -> None:
    """
    The connection that reads is `query_only`.
    """
    with pytest.raises(StoreError, match="readonly"):
        file.read(note("never"))

    assert [] == notes(file)


@pytest.mark.parametrize("use", ["write", "read"])
def test_what_is_deleted_is_overwritten(file: SQLiteFile, use: str) -> None:
    """
    Both connections have `secure_delete` on, as whichever closes last may write the file.
    """
    assert (1,) == getattr(file, use)(lambda connection: connection.execute("PRAGMA secure_delete").fetchone())


def test_an_error_of_reading_is_translated_and_passes(file: SQLiteFile, script: Script) -> None:
    """
    A read that fails is tried again on a connection of its own, then it is a `StoreError`; later reads succeed.
    """
    file.write(note("there"))
    notes(file)
    script.fail("SELECT note", "disk I/O error")

    assert ["there"] == notes(file)  # the second try
    for _ in range(2):
        script.fail("SELECT note", "disk I/O error")
    with pytest.raises(StoreError, match="disk I/O error") as caught:
        notes(file)
    assert file.url == caught.value.store
    assert ["there"] == notes(file)


# --- opening -------------------------------------------------------------------------------------------------------


def test_two_uses_in_a_row_open_the_file_once(path: Path) -> None:
    """
    What is open is used.
    """
    opened: list[None] = []

    def connect(*args: Any, **kwargs: Any) -> Any:
        opened.append(None)
        return sqlite3.connect(*args, **kwargs)

    file = file_at(path, connect)
    before = len(opened)
    file.write(note(1))
    file.write(note(2))

    assert before == len(opened) > 0
    file.close()


def test_a_large_file_is_not_checked_when_it_is_opened(path: Path) -> None:
    """
    Where reading all of it would take long, damage is found when it is met.
    """
    file = file_at(path)
    file.write(lambda connection: connection.execute("INSERT INTO notes VALUES (zeroblob(?))", (CHECK_BYTES,)))
    file.write(lambda connection: connection.execute("CREATE TABLE other (note)"))
    file.close()
    checkpoint(path)
    destroy(path, root_page(path, "notes"))
    file = SQLiteFile(path, durability="process", clock=SystemClock(), connect=sqlite3.connect)

    assert [] == file.read(lambda connection: connection.execute("SELECT * FROM other").fetchall())
    assert [] == kept_aside(path)
    with pytest.raises(StoreError, match="no such table"):
        notes(file)
    assert 1 == len(kept_aside(path))
    file.close()


def test_a_directory_that_somebody_else_has_locked_is_an_error(tmp_path: Path) -> None:
    """
    Whoever keeps the lock, a stopped process or a caller of this very thread, is not waited for without end.
    """
    with (
        _sqlite_rescue.alone(tmp_path),
        pytest.raises(TimeoutError) as caught,
        _sqlite_rescue.alone(tmp_path, seconds=0.02),
    ):
        pass

    assert (errno.ETIMEDOUT, "somebody holds the directory's lock", str(tmp_path)) == (
        caught.value.errno,
        caught.value.strerror,
        caught.value.filename,
    )


def test_threads_that_make_a_directory_at_once_all_have_it(tmp_path: Path) -> None:
    """
    Processes that start together find it missing together; whoever comes second is not told that it is there.
    """
    directories = [tmp_path / str(number) for number in range(100)]
    start = threading.Barrier(4)

    def make_all() -> None:
        for directory in directories:
            start.wait()
            _sqlite_rescue.make_directory(directory)

    callers = [Caller(make_all) for _ in range(4)]

    assert [(True, None)] * 4 == [(caller.ended(), caller.error) for caller in callers]
    assert all(directory.is_dir() for directory in directories)


def test_the_directory_of_a_new_file_is_synced_or_left(tmp_path: Path) -> None:
    """
    Each new directory above the file is made, and nobody else may look into the one that it is in.
    """
    file = file_at(tmp_path / "a" / "b" / "c.db")
    file.write(note(1))

    assert [1] == notes(file)
    if sys.platform != "win32":
        assert 0o700 == (tmp_path / "a" / "b").stat().st_mode & 0o777
    file.close()


# --- a damaged file ------------------------------------------------------------------------------------------------


def tear_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xab" * 100)


def test_damage_of_an_index_loses_nothing(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Found at the opening: the damaged file is kept aside, two critical lines say so, and every row goes on.
    """
    store = store_at(path)
    store.bind([Binding(APP, "m-1", make_record().handle)])
    fill(store, make_record, 300)
    first = store.lease("a", limit=100, duration_millis=MINUTE)
    store.settle_many([(lease, DELIVERED) for lease in first])
    before = store.stats()
    store.close()
    damaged = leaves(path, root_page(path, "deliveries_by_id"))[1]
    destroy(path, damaged)
    page = path.read_bytes()[(damaged - 1) * PAGE : damaged * PAGE]
    again = store_at(path)
    again.open()

    (aside,) = kept_aside(path)
    assert page in aside.read_bytes()
    lines = logged(caplog, logging.CRITICAL)
    assert f"it is kept as {aside}" in lines[0]
    saved = "1 keys, 300 records, 300 deliveries, 0 parked, 0 deliveries that are made again"
    assert f"goes on with what could be read: {saved}" in lines[1]
    assert before == again.stats()
    assert list(range(101, 301)) == ids(leased(again))
    assert [make_record().handle] == list(again.find(APP, "m-1"))


@pytest.mark.parametrize("use", ["read", "write"])
def test_damage_that_is_met_later_is_mended_there(path: Path, make_record: RecordMaker, use: str) -> None:
    """
    A file that is damaged while it is open is replaced by what can be read of it when somebody comes to the damage.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    store.open()
    destroy(path, leaves(path, root_page(path, "records_by_call"))[-1])
    destroy(path, leaves(path, root_page(path, "sqlite_autoindex_records_1"))[-1])
    if use == "read":
        assert make_record(300).id == store.latest(make_record(300).id).id
    else:
        store.put(make_record(301), ["a"])

    assert 1 == len(kept_aside(path))
    assert 300 + (use == "write") == store.stats()["a"].pending


def test_what_is_lost_is_what_cannot_be_read(path: Path, make_record: RecordMaker) -> None:
    """
    A page in the middle of the records takes its own rows with it, no other; the accounts are of what is left.
    """
    store = store_at(path)
    fill(store, make_record, 400)
    store.close()
    pages = leaves(path, root_page(path, "records"))
    middle = pages[len(pages) // 2]
    lost = rows_in(path, middle)
    destroy(path, middle)
    store = store_at(path)

    assert 0 < lost < 100
    assert 400 - lost == store.stats()["a"].pending
    assert store.stats()["a"].is_conserved
    assert 400 - lost == len(leased(store))


def test_what_lies_between_two_damaged_pages_is_saved(path: Path, make_record: RecordMaker) -> None:
    """
    Two damaged pages take their own rows with them, not those between.
    """
    store = store_at(path)
    fill(store, make_record, 400)
    store.close()
    pages = leaves(path, root_page(path, "records"))
    two = (pages[3], pages[-3])
    lost = sum(rows_in(path, page) for page in two)
    for page in two:
        destroy(path, page)
    store = store_at(path)

    assert 400 - lost == store.stats()["a"].pending


def test_a_delivery_that_cannot_be_read_is_made_again(path: Path, make_record: RecordMaker) -> None:
    """
    A record that is there still goes to each of its destinations when the page of one delivery is lost.
    """
    store = store_at(path)
    fill(store, make_record, 400, ("a", "b"))
    store.close()
    pages = leaves(path, root_page(path, "deliveries"))
    destroy(path, pages[len(pages) // 4])
    store = store_at(path)

    assert [list(range(1, 401))] * 2 == [ids(leased(store, name)) for name in ("a", "b")]


def test_a_record_without_any_delivery_goes_everywhere_once_more(path: Path, make_record: RecordMaker) -> None:
    """
    When no delivery of a judgement can be read, its newest revision waits as unrouted, with a line of its own span.
    """
    store = store_at(path)
    fill(store, make_record, 3)
    store.put(make_record(3, comment="newer"), ["a"])
    store.close()
    for tree in ("deliveries", "deliveries_by_id"):
        destroy(path, root_page(path, tree))
    store = store_at(path)

    assert {UNROUTED} == set(store.stats())
    assert 3 == store.route(["a"])
    assert [1, 2, 3] == ids(leased(store))
    assert "newer" == store.latest(make_record(3).id).comment


def test_records_made_to_go_once_more_stand_in_the_line_of_their_span(path: Path, make_record: RecordMaker) -> None:
    """
    Leased by call, judgements of different spans do not wait for each other after the damage either.
    """
    store = store_at(path)
    handles = [FeedbackHandle(SpanContext(0xABC, number, is_remote=True)) for number in (1, 2, 3)]
    store.put_many([Entry(make_record(n, handle=handle), ["a"]) for n, handle in enumerate(handles, start=1)])
    store.close()
    destroy(path, root_page(path, "deliveries"))
    store = store_at(path)

    assert [1, 2, 3] == ids(list(store.lease("a", limit=9, duration_millis=MINUTE, by_call=True)))


def test_deliveries_of_records_that_cannot_be_read_wait_for_nothing(path: Path, make_record: RecordMaker) -> None:
    """
    When no record can be read, nothing is pending, and a store with a limit accepts as many as before.
    """
    store = store_at(path, max_queue_size=20)
    fill(store, make_record, 20)
    store.close()
    destroy(path, root_page(path, "records"))
    store = store_at(path, max_queue_size=20)
    store.open()

    assert {} == store.stats()
    fill(store, make_record, 20)
    assert 20 == len(leased(store))


@pytest.mark.parametrize("has_mark", [True, False])
def test_a_destroyed_header_is_ours_by_the_ballast(path: Path, make_record: RecordMaker, has_mark: bool) -> None:
    """
    A file that SQLite cannot read at all was ours if its mark or its ballast is there: the store begins anew.
    """
    store = store_at(path)
    fill(store, make_record, 10)
    store.close()
    with path.open("r+b") as file:
        file.write(b"\xab" * (60 if has_mark else 100))
    if has_mark:
        ballast_of(path).unlink()
    store.put(make_record(11), ["a"])

    assert 1 == len(kept_aside(path))
    assert [11] == ids(leased(store))


def test_a_destroyed_header_without_ballast_is_refused_with_advice(path: Path, make_record: RecordMaker) -> None:
    """
    What cannot be told from another program's file is left alone.
    """
    store = store_at(path)
    fill(store, make_record, 10)
    store.close()
    tear_header(path)
    ballast_of(path).unlink()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="give it a file of its own"):
        store.open()

    assert (before, []) == (path.read_bytes(), kept_aside(path))


def test_a_file_that_is_emptied_while_it_is_open_is_damage(path: Path, make_record: RecordMaker) -> None:
    """
    A file that somebody truncates to nothing fails no use; what comes after is kept.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    store.open()
    os.truncate(path, 0)
    store.put(make_record(301), ["a"])

    assert 301 in ids(leased(store))


def test_a_log_that_is_damaged_loses_at_most_what_was_in_it(path: Path, make_record: RecordMaker) -> None:
    """
    After a kill and damage of the log, all that was in the file is there, and so is the log up to the damage.
    """
    with Worker(path) as worker:
        worker.ask(
            "store.put_many([__import__('otel_feedback.stores').stores.Entry(record(n), ['a']) for n in range(50)])"
        )
        checkpoint(path)
        for number in range(50, 60):
            worker.ask(f"store.put(record({number}), ['a'])")
        worker.kill()
    log = Path(f"{path}-wal")
    with log.open("r+b") as file:
        file.seek(log.stat().st_size * 3 // 4)
        file.write(b"\xab" * 64)
    store = store_at(path)
    found = sorted(int(lease.record.id) for lease in leased(store))

    assert found == list(range(len(found)))
    assert 50 < len(found) < 60
    assert store.stats()["a"].is_conserved


def test_a_process_that_has_a_damaged_file_open_goes_on_with_the_new_one(path: Path, make_record: RecordMaker) -> None:
    """
    One process mends the file, the other finds that it was replaced; both see what each of them writes.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    with Worker(path) as worker:
        assert "300" == worker.ask("store.stats()['a'].pending")
        destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])
        store = store_at(path)
        store.open()
        assert "None" == worker.ask("store.put(record(1000), ['b'])")
        store.put(make_record(301), ["a"])

        assert "301" == worker.ask("store.stats()['a'].pending")
        assert 1 == store.stats()["b"].pending
    assert 1 == len(kept_aside(path))


def test_processes_that_find_the_damage_at_once_mend_it_once(path: Path, make_record: RecordMaker) -> None:
    """
    Of several processes that meet the damage together one keeps the file aside, and all go on with one new file.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    with Worker(path) as first, Worker(path) as second, Worker(path) as third:
        workers = [first, second, third]
        together(workers, "store.next_due('a')")
        destroy(path, leaves(path, root_page(path, "sqlite_autoindex_records_1"))[-1])
        together(workers, f"store.latest({make_record(300).id!r}).id")

        assert ["300"] * 3 == together(workers, "store.stats()['a'].pending")
        assert ["None"] * 3 == [worker.ask(f"store.put(record({n}), ['b'])") for n, worker in enumerate(workers)]
        assert ["3"] * 3 == together(workers, "store.stats()['b'].pending")
    assert 1 == len(kept_aside(path))


def test_what_could_not_be_saved_at_first_is_saved_later(
    path: Path, clock: FakeClock, make_record: RecordMaker
) -> None:
    """
    When the disk is full in the middle of saving, an error says so, and the next use saves what can be read.
    """
    script = Script()
    store = store_at(path, clock=clock, connect=watched_by(script))
    fill(store, make_record, 300)
    store.close()
    destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])
    script.fail("INSERT OR IGNORE INTO deliveries", "database or disk is full")
    again = store_at(path, clock=clock, connect=watched_by(script))
    with pytest.raises(StoreError):
        again.open()

    assert list(range(1, 301)) == ids(leased(again))


def damaged_store(path: Path, make_record: RecordMaker, change: str = "") -> None:
    """Make a store with 300 records, all of which can be read, a change, and a damaged index."""
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(change)
    connection.close()
    destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])


def test_what_was_saved_and_where_the_rest_is_kept_is_told(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Two lines at the highest level: the file, what is wrong with it, its new name, and how much goes on.
    """
    damaged_store(path, make_record)
    store_at(path).open()
    first, second = logged(caplog, logging.CRITICAL)
    (aside,) = (each for each in kept_aside(path) if each.suffix != "-wal")

    assert first.startswith(f"the store {path} is damaged (database disk image is malformed")
    assert first.endswith(f"; it is kept as {aside}")
    said = f"the store {path} goes on with what could be read: 0 keys, 300 records, 300 deliveries, 0 parked, "
    assert f"{said}0 deliveries that are made again" == second


def test_a_record_that_has_lost_its_deliveries_alone_goes_everywhere_once_more(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The others go where they were to go.
    """
    damaged_store(path, make_record, "DELETE FROM deliveries WHERE sequence IN (7, 8)")
    store = store_at(path)

    assert (298, 2) == (store.stats()["a"].pending, store.stats()[UNROUTED].pending)
    assert logged(caplog, logging.CRITICAL)[1].endswith(" 298 deliveries, 0 parked, 2 deliveries that are made again")


def test_a_delivery_of_the_wrong_sort_is_made_again(path: Path, make_record: RecordMaker) -> None:
    """
    Whatever stands before the torn text in its row, nothing included.
    """
    torn = "UPDATE deliveries SET state = 'delivered', reason = NULL, parts = '{torn' WHERE sequence = 7"
    damaged_store(path, make_record, torn)

    assert list(range(1, 301)) == ids(leased(store_at(path)))


def test_what_waits_for_a_key_is_saved(path: Path, make_record: RecordMaker) -> None:
    """
    A judgement that nobody has joined yet is as good as any.
    """
    store = store_at(path)
    store.put_many([Parked(make_record(number), APP, "m-1") for number in range(1001, 1004)])
    store.close()
    damaged_store(path, make_record)
    store = store_at(path)

    assert [make_record(number).id for number in range(1001, 1004)] == [
        parked.record.id for parked in store.parked(APP, "m-1")
    ]
    assert 1 == len(kept_aside(path))


@pytest.mark.parametrize("change", ["SET put_at = 'soon'", "SET body = x'00'", "SET body = 'no record'"])
def test_a_row_of_the_wrong_sort_is_not_saved(path: Path, make_record: RecordMaker, change: str) -> None:
    """
    A damaged page may look like a good one; what is in it is not what it should be.
    """
    damaged_store(path, make_record)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"UPDATE records {change} WHERE id = ?", (make_record(5).id,))
    connection.close()

    assert [*range(1, 5), *range(6, 301)] == ids(leased(store_at(path)))


def test_nobody_writes_into_a_file_that_is_being_saved(path: Path, make_record: RecordMaker) -> None:
    """
    What another process would write after it was read would be accepted, and be in the file that is put aside.
    """
    damaged_store(path, make_record)
    script = Script()
    said: list[str] = []

    def write_too() -> None:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            said.append(str(error))
        connection.close()

    script.on("INSERT OR IGNORE INTO records", write_too)
    store_at(path, connect=watched_by(script)).open()

    assert ["database is locked"] == said


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("BEGIN", "database is locked"),
        ("SELECT sequence", "database is locked"),
        ("SELECT sequence", "unable to open database file"),
        ("SELECT sequence", "database or disk is full"),
        ("SELECT sequence", "interrupted"),
    ],
)
def test_what_keeps_from_reading_a_damaged_file_is_no_damage(
    path: Path, make_record: RecordMaker, start: str, words: str
) -> None:
    """
    A lock, or a lack of descriptors, passes: the file stays where it is until it can be read.
    """
    damaged_store(path, make_record)
    script = Script()
    script.on("PRAGMA quick_check", lambda: script.fail(start, words))
    store = store_at(path, connect=watched_by(script))
    with pytest.raises(StoreError, match=f"cannot be replaced: {words}"):
        store.open()

    assert [] == kept_aside(path)
    assert list(range(1, 301)) == ids(leased(store))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_while_it_saves_loses_nothing(path: Path, make_record: RecordMaker) -> None:
    """
    At whichever call it ends, the next process goes on with all that can be read, and the damaged file is kept.
    """
    damaged_store(path, make_record)
    connection = sqlite3.connect(path)  # something that is in the log only
    connection.execute("UPDATE pauses SET reason = ''")
    connection.execute("INSERT INTO keys VALUES ('app', 'm-1', 'c', 1, '{}', 1)")
    connection.commit()
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    connection.close()
    step, is_killed, lost = 0, True, []
    while is_killed:
        step += 1
        for each in path.parent.iterdir():
            each.unlink()
        for each, content in before.items():
            each.write_bytes(content)
        is_killed = killed_at(step, path)
        store = SQLiteStore(path)
        if list(range(1, 301)) != ids(leased(store)) or len(kept_aside(path)) != 1:
            lost.append(step)
        store.close()

    assert [] == lost
    assert step > 50  # it was killed at so many places


def killed_at(step: int, path: Path) -> bool:
    """Open a store in a child that ends at its n-th call in the rescue of the file; say whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def count(frame: FrameType, event: str, _: object) -> None:
            nonlocal left
            left -= frame.f_code.co_filename == _sqlite_rescue.__file__ and event in {"call", "c_call"}
            if left == 0:
                os._exit(9)

        logging.disable()
        store = SQLiteStore(path)
        try:
            sys.setprofile(count)
            store.open()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_no_sequence_number_is_given_twice(path: Path, make_record: RecordMaker) -> None:
    """
    A lease from before the damage cannot settle what has come after it, although its record is lost.
    """
    store = store_at(path)
    fill(store, make_record, 400)
    leases = leased(store)
    store.close()
    destroy(path, leaves(path, root_page(path, "records"))[-1])
    store = store_at(path)
    store.put(make_record(401), ["a"])
    (new,) = [lease for lease in leased(store) if lease.record.id == make_record(401).id]

    assert new.sequence > max(lease.sequence for lease in leases)


def test_what_is_left_of_an_account_is_saved(path: Path, make_record: RecordMaker) -> None:
    """
    Each row keeps its state and its reason, and what a process had in hand when it ended counts as pending.
    """
    store = store_at(path)
    fill(store, make_record, 300, ("a", "b"))
    for lease in store.lease("a", limit=150, duration_millis=MINUTE):
        store.settle(lease, Settlement("bury", {}, reason="400 no such field"))
    before = store.status(make_record(1).id)
    leased(store)
    counted = store.stats()
    store.close()
    destroy(path, root_page(path, "tallies"))
    store = store_at(path)

    assert before == store.status(make_record(1).id)
    assert (counted["a"].pending, counted["b"].pending) == (store.stats()["a"].pending, store.stats()["b"].pending)
    assert (150, 150) == (counted["a"].dead, store.stats()["a"].dead)


def test_damage_in_the_rows_of_one_destination_costs_no_other_one_its_account(
    path: Path, make_record: RecordMaker
) -> None:
    """
    What was delivered elsewhere is not sent there again.
    """
    store = store_at(path)
    fill(store, make_record, 400, ("a", "b"))
    for name in ("a", "b"):
        store.settle_many([(lease, DELIVERED) for lease in leased(store, name)])
    store.close()
    pages = leaves(path, root_page(path, "deliveries"))
    destroy(path, pages[len(pages) // 4])
    store = store_at(path)

    assert (400, 0) == (store.stats()["b"].delivered, store.stats()["b"].pending)
    assert 400 == store.stats()["a"].recorded
    assert 0 < store.stats()["a"].pending < 100


def test_what_was_saved_takes_its_place_although_the_rename_was_never_done(
    path: Path, make_record: RecordMaker
) -> None:
    """
    Whoever ends between the two renames leaves what was saved under another name; the next one finishes.
    """
    store = store_at(path)
    fill(store, make_record, 3)
    store.close()
    checkpoint(path)
    path.rename(path.with_name(f"{path.name}.saved"))

    assert [1, 2, 3] == ids(leased(store_at(path)))


def test_a_damaged_file_that_is_deleted_while_it_is_saved_loses_nothing(path: Path, make_record: RecordMaker) -> None:
    """
    There is nothing left to be put aside; what was read of it goes on.
    """
    damaged_store(path, make_record)
    script = Script()
    script.on("INSERT OR IGNORE INTO records", lambda: delete(path))

    assert list(range(1, 301)) == ids(leased(store_at(path, connect=watched_by(script))))
    assert [] == kept_aside(path)


def test_a_damaged_file_is_kept_under_the_time_at_which_it_was_found(
    path: Path, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    In UTC, and without any sign that a file system does not like.
    """
    damaged_store(path, make_record)
    store_at(path, clock=clock).open()
    (aside,) = kept_aside(path)

    assert re.fullmatch(rf"{path.name}\.damaged-\d{{4}}-\d\d-\d\dT\d+Z", aside.name)


def test_damage_that_the_check_meets_is_mended_at_the_opening(
    path: Path, make_record: RecordMaker, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A check that fails for damage says as much as one that lists it.
    """
    damaged_store(path, make_record)
    script.fail("PRAGMA quick_check", "database disk image is malformed: here", sqlite3.DatabaseError)
    store_at(path, connect=watched_by(script)).open()

    assert 1 == len(kept_aside(path))
    assert "malformed: here)" in logged(caplog, logging.CRITICAL)[0]


# What Python makes of it: the real thing here, and what other versions do.
UNTOLD = [None, sqlite3.DatabaseError(""), UnicodeDecodeError("utf-8", b"malformed database schema (\xff)", 27, 28, "")]


@pytest.mark.parametrize("untold", UNTOLD, ids=["here", "3.10", "later"])
def test_a_name_that_is_no_text_any_more_is_damage(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture, script: Script, untold: Exception | None
) -> None:
    """
    SQLite quotes it in its error, which Python then cannot decode, and 3.10 not even tell; all is saved.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    path.write_bytes(path.read_bytes().replace(b"indexkeys_by_agekeys", b"index\xff\xfeys_by_agekeys", 1))

    def fail() -> None:
        if untold is not None:
            raise untold

    script.on("BEGIN", fail)

    assert list(range(1, 301)) == ids(leased(store_at(path, connect=watched_by(script))))
    assert 1 == len(kept_aside(path))
    assert "malformed database schema" in logged(caplog, logging.CRITICAL)[0]


class Numbers:
    """Rows of a damaged tree: they have these numbers, whatever was asked for."""

    def __init__(self, numbers: list[Any], is_cut: bool) -> None:
        self._numbers = numbers
        self.is_cut = is_cut

    def __iter__(self) -> Iterator[tuple[Any]]:
        return iter([(number,) for number in self._numbers])


@pytest.mark.parametrize("number", [3, "torn", None, -1, 2**63 - 1])
def test_saving_ends_whatever_number_a_damaged_row_has(number: Any) -> None:
    """
    A row that is answered whatever is asked for is taken once at the most, and what follows is looked for behind it.
    """
    asked: list[int] = []

    def read(start: int, more: str = "") -> Any:
        asked.append(start)
        return Numbers([number], is_cut=not more)

    found = list(_sqlite_salvage._around_damage(read))

    assert found == ([(number,)] if number in {3, 2**63 - 1} else [])
    assert len(asked) < 10_000
    assert {int} == {type(start) for start in asked}


def test_a_row_whose_text_is_damaged_is_left_out(path: Path, make_record: RecordMaker) -> None:
    """
    A page may look whole and have lost what it says: such a record would be offered and never understood.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET body = '{\"torn' WHERE sequence = 7")
    connection.execute("UPDATE records SET call = 'torn' WHERE sequence = 8")
    connection.commit()
    connection.close()
    destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])

    assert [number for number in range(1, 301) if number not in (7, 8)] == ids(leased(store_at(path)))


def test_what_is_erased_while_somebody_reads_is_told(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The log cannot be emptied under a reader, and so may still have it.
    """
    opened: list[sqlite3.Connection] = []

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(sqlite3.connect(*args, **kwargs))
        return opened[-1]

    store = store_at(path, connect=connect)
    store.put(make_record(user_id="ann"), ["a"])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM records").fetchall()
    opened[-1].execute("PRAGMA busy_timeout = 0")
    store.forget("ann")
    reader.close()

    assert [f"the log of {store.url} may still have what was erased: somebody has it open and reads"] == logged(
        caplog, logging.WARNING
    )


@pytest.mark.parametrize("is_read", [False, True])
def test_a_text_that_cannot_be_decoded_is_damage_and_is_not_quoted(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture, is_read: bool
) -> None:
    """
    SQLite's error has what somebody wrote in it; neither the log nor an exception does, and the others go.
    """
    store = store_at(path)
    for number in (1, 2, 3):
        store.put(make_record(number, comment="a secret with text in it with text behind it"), ["a"])
    tear = "UPDATE records SET body = CAST(CAST(body AS BLOB) || x'ff' AS TEXT) WHERE sequence = 2"
    store._file.write(lambda connection: connection.execute(tear).rowcount)
    if is_read:
        store.latest(make_record(2).id)

    assert [1, 3] == ids(leased(store))
    assert 1 == len(kept_aside(path))
    assert "Could not decode to UTF-8 column" in caplog.text
    assert "secret" not in caplog.text


def test_a_damaged_file_is_kept_as_long_as_judgements_are(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Pruning deletes it when all that is in it is older; forgetting somebody tells that it may name them.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])
    store = store_at(path)
    store.open()
    (aside,) = kept_aside(path)
    store.forget("ann")
    store.prune(aside.stat().st_mtime_ns)
    (still,) = kept_aside(path)
    store.prune(aside.stat().st_mtime_ns + 1)
    path.with_name(f"{path.name}.damaged-by-hand").mkdir()
    store.prune(2**62)  # what is not ours to delete is left
    path.with_name(f"{path.name}.damaged-by-hand").rmdir()

    assert (aside, []) == (still, kept_aside(path))
    assert [
        f"the damaged file {aside} may still have what was erased; delete it",
        f"the damaged file {aside} is older than what is kept, and was deleted",
    ] == logged(caplog, logging.WARNING)


def test_damage_that_cannot_be_mended_is_an_error_that_names_the_store(
    path: Path, clock: FakeClock, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When no new file can be made, using the store fails, critically; once one can, it goes on.
    """
    may_connect = True

    def connect(*args: Any, **kwargs: Any) -> Any:
        if not may_connect and path != args[0]:
            raise sqlite3.OperationalError("unable to open database file")
        return sqlite3.connect(*args, **kwargs)

    store = store_at(path, clock=clock, connect=connect)
    fill(store, make_record, 300)
    store.close()
    destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])
    again = store_at(path, clock=clock, connect=connect)
    may_connect = False
    with pytest.raises(StoreError, match="damaged") as caught:
        again.open()
    may_connect = True

    assert again.url == caught.value.store
    assert any("cannot be replaced" in line for line in logged(caplog, logging.CRITICAL))
    again.put(make_record(301), ["a"])
    assert 301 in ids(leased(again))


@pytest.mark.parametrize("start", ["SELECT destination, state, reason, count FROM tallies", "BEGIN"])
def test_damage_that_another_process_has_mended_meanwhile_is_mended_once(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker, start: str
) -> None:
    """
    Who comes late to the damage uses the new file and keeps nothing aside.
    """
    path = watched_store.path
    fill(watched_store, make_record, 300)
    watched_store.stats()

    def let_another_mend_it() -> None:
        checkpoint(path)
        destroy(path, leaves(path, root_page(path, "deliveries_by_id"))[1])
        store_at(path).open()
        raise sqlite3.DatabaseError("database disk image is malformed")

    script.on(start, let_another_mend_it)
    if start == "BEGIN":
        watched_store.put(make_record(301), ["a"])

    assert 300 + (start == "BEGIN") == watched_store.stats()["a"].pending
    assert 1 == len(kept_aside(path))


def test_a_file_that_is_unreadable_and_gone_is_refused(path: Path) -> None:
    """
    Of what cannot even be looked at nobody knows whose it was.
    """

    def connect(*_: object, **__: object) -> Any:
        raise sqlite3.DatabaseError("file is not a database")

    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        store_at(path, connect=connect).open()


# --- deleted, moved, replaced --------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    """Delete a store's file and what belongs to it, as a user does."""
    for suffix in ("", "-wal", "-shm", "-ballast"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def delete_the_file_alone(path: Path) -> None:
    path.unlink()


def delete_the_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace_by_an_empty_file(path: Path) -> None:
    path.unlink()
    path.touch()


def delete_the_logs(path: Path) -> None:
    """Delete what looks like leftovers of a process that has ended."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def delete_the_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_the_index_of_the_log(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def empty(path: Path) -> None:
    """Empty the file itself, as `> feedback.db` does."""
    os.truncate(path, 0)


VANISHINGS = [
    empty,
    delete,
    delete_the_file_alone,
    delete_the_directory,
    move,
    replace_by_an_empty_file,
    delete_the_logs,
    delete_the_log,
    delete_the_index_of_the_log,
]


@pytest.mark.parametrize("use", ["read", "write"])
@pytest.mark.parametrize("vanish", VANISHINGS)
def test_a_file_that_vanishes_while_it_is_open_is_put_back(
    tmp_path: Path,
    make_record: RecordMaker,
    caplog: pytest.LogCaptureFixture,
    vanish: Callable[[Path], None],
    use: str,
) -> None:
    """
    However it went, the next use puts it back with all that was accepted, and says so critically.
    """
    path = tmp_path / "data" / "feedback.db"
    store = store_at(path)
    fill(store, make_record, 20)
    store.stats()
    vanish(path)
    if use == "write":
        store.put(make_record(21), ["a"])
    found = store.stats()["a"].pending
    store.close()

    assert 20 + (use == "write") == found
    said = f"a file of the store {path} has vanished; it was put back with all that it had"
    assert [said] == logged(caplog, logging.CRITICAL)
    again = store_at(path)
    assert found == len(leased(again))


@pytest.mark.parametrize("vanish", [delete_the_logs, delete_the_log, delete_the_index_of_the_log])
def test_a_file_that_has_lost_its_log_is_read(path: Path, vanish: Callable[[Path], None]) -> None:
    """
    A connection that is opened now would make a new log and look there for what the old one has.
    """
    file = file_at(path)
    file.write(note("before"))
    vanish(path)

    assert ["before"] == notes(file)
    file.write(note("after"))
    assert ["after", "before"] == notes(file)


def test_what_was_written_without_the_log_that_was_deleted_is_kept_aside(
    path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Who came later could not see what is in it: that goes on, with what they wrote, and both use one file again.
    """
    store = store_at(path)
    fill(store, make_record, 20)
    delete_the_logs(path)
    with Worker(path) as late:
        assert "None" == late.ask("store.put(record(77), ['a'])")
        store.put(make_record(21), ["a"])
        assert "None" == late.ask("store.put(record(78), ['a'])")

    first, second = logged(caplog, logging.CRITICAL)
    (aside,) = kept_aside(path)
    assert f"what others have written to the store {path} meanwhile is kept as {aside}" == first
    assert f"a file of the store {path} has vanished; it was put back with all that it had" == second
    assert [*range(1, 22), 77, 78] == sorted(int(lease.record.id[-12:]) for lease in leased(store))
    assert ["77"] == [lease.record.id for lease in leased(store_at(aside))]


@pytest.mark.parametrize("vanish", VANISHINGS)
def test_a_file_that_vanishes_in_the_middle_of_a_transaction_takes_nothing_with_it(
    tmp_path: Path, vanish: Callable[[Path], None]
) -> None:
    """
    What is committed into a file that has just lost its name is in the one that is put back.
    """
    path = tmp_path / "data" / "feedback.db"
    file = file_at(path)
    file.write(note("before"))

    def write(connection: Any) -> None:
        note("within")(connection)
        if "gone" not in gone:
            gone.append("gone")
            vanish(path)

    gone: list[str] = []
    file.write(write)
    file.close()

    again = file_at(path)
    assert ["before", "within"] == notes(again)


def test_a_file_that_is_deleted_after_a_write_failed_is_put_back(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    Where an error of the disk has closed the connection that writes, the one that reads still has the file.
    """
    watched_store.put(make_record(1), ["a"])
    watched_store.stats()
    script.fail("COMMIT", "disk I/O error")
    with pytest.raises(StoreError, match="disk I/O error"):
        watched_store.put(make_record(2), ["a"])
    delete(watched_store.path)
    watched_store.put(make_record(3), ["a"])

    assert [1, 3] == ids(leased(watched_store))


def test_a_file_that_is_deleted_while_a_write_fails_is_put_back(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    A write that fails in a file that has no name any more is done in the one that is put back.
    """
    watched_store.put(make_record(1), ["a"])

    def delete_and_fail() -> None:
        delete(watched_store.path)
        raise sqlite3.OperationalError("disk I/O error")

    script.on("INSERT INTO records", delete_and_fail)
    watched_store.put(make_record(2), ["a"])

    assert [1, 2] == ids(leased(watched_store))


def back_up(path: Path) -> Path:
    """Copy a store that is open, as an operator does."""
    backup = path.with_name("backup.db")
    with contextlib.closing(sqlite3.connect(path)) as copy:
        copy.execute("VACUUM INTO ?", (str(backup),))
    return backup


def test_a_backup_that_is_moved_over_the_open_file_is_not_mixed_with_it(path: Path, make_record: RecordMaker) -> None:
    """
    The log of the file that it replaces is not read into it: it is whole, and has what came since it was made.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    backup = back_up(path)
    store.put_many([Entry(make_record(number), ["a"]) for number in range(301, 700)])
    backup.rename(path)
    store.put(make_record(1_000), ["a"])

    assert [*range(1, 700), 1_000] == ids(leased(store))
    assert "ok" == store._file.read(lambda connection: connection.execute("PRAGMA integrity_check").fetchone()[0])


def test_a_file_that_is_deleted_and_damaged_is_put_back_as_far_as_it_can_be_read(
    path: Path, make_record: RecordMaker
) -> None:
    """
    Whoever has it open saves what can be read of it.
    """
    store = store_at(path)
    fill(store, make_record, 300)
    store.close()
    damaged = leaves(path, root_page(path, "deliveries_by_id"))[1]
    store.open()
    destroy(path, damaged)
    delete(path)
    store.put(make_record(301), ["a"])

    assert list(range(1, 302)) == ids(leased(store))


def test_a_file_that_is_never_there_when_it_is_opened_is_an_error(path: Path) -> None:
    """
    Whoever finds it gone each time it has been opened gives up.
    """

    def connect(*args: Any, **kwargs: Any) -> Any:
        connection = sqlite3.connect(*args, **kwargs)
        path.unlink()
        return connection

    with pytest.raises(StoreError, match="again and again") as raised:
        store_at(path, connect=connect).open()

    assert f"sqlite:///{path}" == raised.value.store


def test_a_connection_that_may_not_write_is_opened_anew(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    SQLite does not notice that it may write again: what it refused is of no use any more.
    """
    script.fail("INSERT INTO records", "attempt to write a readonly database")
    with pytest.raises(StoreError, match="readonly"):
        watched_store.put(make_record(1), ["a"])
    is_open = watched_store._file._writer is not None
    watched_store.put(make_record(2), ["a"])

    assert (False, [2]) == (is_open, ids(leased(watched_store)))


def test_a_file_that_is_deleted_while_it_is_opened_is_made_again(path: Path, make_record: RecordMaker) -> None:
    """
    Between opening it and looking which file that is, it may go: what is put is in the file that the path names.
    """
    is_armed = False

    def connect(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_armed
        connection = sqlite3.connect(*args, **kwargs)
        if is_armed:
            is_armed = False
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            delete(path)
        return connection

    store = store_at(path, connect=connect)
    store.put(make_record(1), ["a"])
    store.close()
    is_armed = True
    store.put(make_record(2), ["a"])
    store.close()

    again = store_at(path)
    assert 2 in ids(leased(again))


def test_a_file_that_is_deleted_under_two_processes_is_put_back_for_both(path: Path, make_record: RecordMaker) -> None:
    """
    Both go on with one file, in which is what each of them had been told was accepted.
    """
    with Worker(path) as first, Worker(path) as second:
        for number in range(5):
            first.ask(f"store.put(record({number}), ['a'])")
            second.ask(f"store.put(record({number + 100}), ['a'])")
        delete(path)
        together([first, second], "store.put(record(200 + __import__('os').getpid()), ['a'])")

        assert ["12", "12"] == together([first, second], "store.stats()['a'].pending")
        assert path.exists()


def test_a_file_that_is_deleted_again_and_again_under_writers_loses_nothing(path: Path) -> None:
    """
    Each of hundreds of puts of two processes is there in the end, whenever the file was deleted.
    """
    with Worker(path) as first, Worker(path) as second:
        for number in range(40):
            first.tell(f"store.put(record({number}), ['a'])")
            second.tell(f"store.put(record({number + 1000}), ['a'])")
            if number % 4 == 0:
                delete(path)
            assert ("None", "None") == (first.hear(), second.hear())

        expected = {str(n) for n in range(40)} | {str(n + 1000) for n in range(40)}
        assert expected == set(ast.literal_eval(first.ask("leased('a')")))


def test_a_file_that_is_replaced_by_another_store_is_used(
    tmp_path: Path, path: Path, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What it has is read, what is put goes there, what was accepted before is brought there, and the log says so.
    """
    backup = store_at(tmp_path / "backup.db")
    backup.put(make_record(7), ["a"])
    backup.close()
    store = store_at(path)
    store.put(make_record(1), ["a"])
    delete(path)
    backup.path.rename(path)
    store.put(make_record(2), ["a"])

    assert [1, 2, 7] == sorted(ids(leased(store)))
    assert [f"the store's file was replaced; {store.url} goes on with the new one"] == logged(caplog, logging.ERROR)
    (said,) = logged(caplog, logging.CRITICAL)
    assert f"{store.url} goes on with 1 records that only the file had that was replaced" == said


def test_a_file_that_is_replaced_by_another_program_s_database_is_refused(path: Path, make_record: RecordMaker) -> None:
    """
    It is left as it is; once it is gone the store goes on.
    """
    store = store_at(path)
    store.put(make_record(1), ["a"])
    delete(path)
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE theirs (x)")
    theirs.commit()
    theirs.close()
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="another program's database"):
            store.put(make_record(2), ["a"])

    assert before == path.read_bytes()
    path.unlink()
    store.put(make_record(3), ["a"])
    assert [1, 3] == ids(leased(store))


def test_a_file_that_is_replaced_each_time_it_is_written_is_an_error(tmp_path: Path, path: Path) -> None:
    """
    After so many moves the store says that its file does not stay.
    """
    spare = file_at(tmp_path / "spare.db")
    spare.close()
    file = file_at(path)
    runs = 0

    def write(connection: Any) -> None:
        nonlocal runs
        runs += 1
        delete(path)
        shutil.copy(spare.path, path)

    with pytest.raises(StoreError, match="again and again"):
        file.write(write)

    assert MAX_MOVES == runs
    file.write(note("it stays now"))
    assert ["it stays now"] == notes(file)
    file.close()


def test_a_file_that_is_never_there_when_it_is_read_is_an_error(path: Path, script: Script, file: SQLiteFile) -> None:
    """
    A reader that finds its file away each time it has opened it gives up.
    """
    for _ in range(MAX_MOVES):
        script.on("PRAGMA query_only", lambda: delete(path))

    with pytest.raises(StoreError, match="again and again"):
        notes(file)
    assert [] == notes(file)


def test_a_vanished_file_that_cannot_even_be_read_is_given_up(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    Where the open file has gone with its disk, one error says so, and a new file is made.
    """
    watched_store.put(make_record(1), ["a"])
    delete(watched_store.path)
    script.fail("VACUUM", "disk I/O error")
    script.fail("SELECT count(*) FROM sqlite_master", "disk I/O error")
    with pytest.raises(StoreError, match="has vanished and cannot be put back") as raised:
        watched_store.put(make_record(2), ["a"])
    watched_store.put(make_record(3), ["a"])

    assert watched_store.url == raised.value.store
    assert [3] == ids(leased(watched_store))


def test_a_file_that_cannot_be_put_back_is_an_error_until_it_can(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What was accepted stays in the deleted file that is open, and comes back when there is room for it.
    """
    watched_store.put(make_record(1), ["a"])
    delete(watched_store.path)
    script.fail("VACUUM", "database or disk is full")
    with pytest.raises(StoreError, match="has vanished and cannot be put back") as caught:
        watched_store.put(make_record(2), ["a"])

    assert watched_store.url == caught.value.store
    left = [each for each in watched_store.path.parent.iterdir() if each.name.startswith("feedback")]
    assert [ballast_of(watched_store.path)] == left
    assert any("cannot be put back" in line for line in logged(caplog, logging.CRITICAL))
    watched_store.put(make_record(3), ["a"])
    assert [1, 3] == ids(leased(watched_store))


def test_a_directory_that_becomes_a_file_is_an_error_until_it_is_gone(tmp_path: Path, make_record: RecordMaker) -> None:
    """
    The error says to give another path; when the way is free, all is put back.
    """
    path = tmp_path / "data" / "feedback.db"
    store = store_at(path)
    store.put(make_record(1), ["a"])
    shutil.rmtree(path.parent)
    path.parent.write_text("in the way")
    with pytest.raises(StoreError, match="another path"):
        store.put(make_record(2), ["a"])
    path.parent.unlink()
    store.put(make_record(3), ["a"])

    assert [1, 3] == ids(leased(store))


# A directory in which one may make files, but not see them: it cannot be opened, and so not be locked.
BLIND = """
import logging, os, sys
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import FeedbackError
from otel_feedback.stores.sqlite import SQLiteStore

logging.disable()
path = sys.argv[1]
if os.getuid() == 0:
    os.setuid(65534)
os.mkdir(os.path.dirname(path))
store = SQLiteStore(path)

def put(number):
    try:
        store.put(FeedbackRecord(id=str(number), handle=FeedbackHandle(SpanContext(1, 2, True)), name="rating"), ["a"])
    except Exception as error:
        return type(error).__name__
    return "accepted"

said = [put(1)]
os.chmod(os.path.dirname(path), 0o300)
os.unlink(path)
said.append(put(2))
os.chmod(os.path.dirname(path), 0o700)
said.append(put(3))
print(said, store.stats()["a"].pending)
store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has other rules of who may read")
def test_whatever_the_system_says_while_the_file_is_put_back_is_a_store_error() -> None:
    """
    A directory that cannot be locked makes a put fail as anything else does, until it can be.
    """
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        ran = subprocess.run(
            [sys.executable, "-c", BLIND, f"{name}/data/feedback.db"],
            env=UNCOVERED,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert ("['accepted', 'StoreError', 'accepted'] 2\n", "") == (ran.stdout, ran.stderr[-2_000:])


# --- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(path: Path) -> Disk:
    return Disk(ballast_of(path))


@pytest.fixture
def disk_store(path: Path, clock: FakeClock, disk: Disk, make_record: RecordMaker) -> Iterator[SQLiteStore]:
    """A store with five records, whose disk can be full."""
    store = store_at(path, clock=clock, connect=watched_by(disk))
    store.put_many([Entry(make_record(number), ["a"]) for number in range(1, 6)])
    yield store
    disk.is_full = False


def test_the_ballast_is_there_from_the_start(path: Path) -> None:
    """
    Opening sets aside what is given up when the disk is full: noise, as zeros may take no room.
    """
    file = file_at(path)

    assert BALLAST_BYTES == file.ballast.stat().st_size
    assert len(set(file.ballast.read_bytes()[:1_000])) > 100
    file.close()


def test_on_a_full_disk_nothing_is_accepted_and_what_was_accepted_goes_on(
    disk_store: SQLiteStore, disk: Disk, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A put is refused and leaves the ballast alone; a lease and its settling give it up, and say so once.
    """
    disk.is_full = True
    with pytest.raises(StoreError, match="full"):
        disk_store.put(make_record(6), ["a"])
    assert ballast_of(disk_store.path).exists()
    leases = leased(disk_store)

    assert [1, 2, 3, 4, 5] == ids(leases)
    assert not ballast_of(disk_store.path).exists()
    assert [True] * 5 == list(disk_store.settle_many([(lease, DELIVERED) for lease in leases]))
    assert 5 == disk_store.stats()["a"].delivered
    assert 1 == len([line for line in logged(caplog, logging.ERROR) if "is full" in line])


def test_reading_goes_on_while_the_disk_is_full(disk_store: SQLiteStore, disk: Disk, make_record: RecordMaker) -> None:
    """
    A refused put does not keep anybody from reading, however little was read before.
    """
    disk.is_full = True
    disk.has_room_behind_ballast = False
    for _ in range(2):
        with pytest.raises(StoreError, match="full"):
            disk_store.put(make_record(6), ["a"])

    assert 5 == disk_store.stats()["a"].pending


def test_reading_begins_on_a_full_disk_without_ballast(path: Path, make_record: RecordMaker) -> None:
    """
    Opening the connection that reads asks for no room.
    """
    file = file_at(path)
    file.write(note("there"))
    file.ballast.unlink()
    growing = file.ballast.with_name(f"{file.ballast.name}.{os.getpid()}")
    growing.symlink_to("/dev/full")

    assert ["there"] == notes(file)
    assert not file.ballast.exists()


def test_what_is_refused_on_a_full_disk_stays_refused_while_the_ballast_is_given_up(
    disk_store: SQLiteStore, disk: Disk, make_record: RecordMaker
) -> None:
    """
    The room that the ballast leaves is for what makes room: as long as it is not back, nothing is accepted.
    """
    disk.is_full = True
    leases = leased(disk_store)
    with pytest.raises(StoreError):
        disk_store.put(make_record(6), ["a"])

    assert [True] * 5 == list(disk_store.settle_many([(lease, DELIVERED) for lease in leases]))
    disk.is_full = False
    disk_store.prune(0)
    disk_store.put(make_record(6), ["a"])
    assert [6] == ids(leased(disk_store))


def test_a_process_that_starts_on_a_full_disk_delivers_what_is_there(
    disk_store: SQLiteStore, disk: Disk, path: Path, make_record: RecordMaker
) -> None:
    """
    Opening may use the ballast as well: what was accepted goes on after a restart.
    """
    disk_store.close()
    disk.is_full = True
    again = store_at(path, connect=watched_by(disk))
    again.open()

    assert [1, 2, 3, 4, 5] == ids(leased(again))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_without_room_for_the_ballast_nothing_is_accepted(path: Path) -> None:
    """
    What asks for more is refused before it is tried, and what makes room is not.
    """
    file = file_at(path)
    file.ballast.unlink()
    growing = file.ballast.with_name(f"{file.ballast.name}.{os.getpid()}")
    growing.symlink_to("/dev/full")
    file.write(note(1), is_vital=True)
    with pytest.raises(StoreError, match="database or disk is full"):
        file.write(note(2))
    file.write(note(3))  # the device has been removed with the attempt

    assert [1, 3] == notes(file)
    file.close()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no file system without room")
def test_where_there_is_hardly_room_none_is_taken() -> None:
    """
    Trying to set the ballast aside would take the room that whoever settles needs meanwhile.
    """
    file = SQLiteFile(Path("/proc/feedback.db"), durability="disk", clock=SystemClock(), connect=sqlite3.connect)

    assert not file._keep_ballast()


def test_a_disk_that_cannot_be_asked_is_not_full(tmp_path: Path) -> None:
    """
    What cannot be measured refuses nobody.
    """
    gone = SQLiteFile(
        tmp_path / "gone" / "feedback.db", durability="disk", clock=SystemClock(), connect=sqlite3.connect
    )

    assert not gone._has_no_room()


def test_a_full_disk_is_worked_on_without_ballast(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    The log may have taken what the ballast has left: it is brought into the file, and what settles goes on.
    """
    watched_store.put(make_record(1), ["a"])
    (lease,) = leased(watched_store)
    ballast_of(watched_store.path).unlink()
    script.fail("UPDATE deliveries", "database or disk is full")

    assert watched_store.settle(lease, DELIVERED)


def test_what_a_killed_process_left_half_made_is_swept(path: Path) -> None:
    """
    Its share of a new file, or of the ballast, takes no room for ever.
    """
    leftovers = [path.with_name(f"{path.name}{end}") for end in (".new", ".new-journal", "-ballast.123", ".saved")]
    file = file_at(path)
    file.close()
    for each in leftovers:
        each.write_text("half")
    file.write(note(1))

    assert [] == [each for each in leftovers if each.exists()]
    file.close()


def test_the_ballast_comes_back_when_there_is_room(
    disk_store: SQLiteStore, disk: Disk, make_record: RecordMaker
) -> None:
    """
    Before more is accepted, it is set aside again.
    """
    disk.is_full = True
    leased(disk_store)
    assert not ballast_of(disk_store.path).exists()
    disk.is_full = False
    disk_store.put(make_record(6), ["a"])

    assert BALLAST_BYTES == ballast_of(disk_store.path).stat().st_size


def test_without_ballast_a_full_disk_is_an_error_that_passes(
    disk_store: SQLiteStore, disk: Disk, make_record: RecordMaker
) -> None:
    """
    When there is nothing to give up, every write fails until there is room, and nothing is lost.
    """
    disk.is_full, disk.has_room_behind_ballast = True, False
    ballast_of(disk_store.path).unlink()
    with pytest.raises(StoreError, match="full"):
        leased(disk_store)
    with pytest.raises(StoreError, match="full"):
        disk_store.put(make_record(6), ["a"])
    disk.is_full = False

    assert [1, 2, 3, 4, 5] == ids(leased(disk_store))
    disk_store.put(make_record(6), ["a"])
    assert [6] == ids(leased(disk_store))


def test_a_ballast_that_does_not_help_is_an_error_that_passes(disk_store: SQLiteStore, disk: Disk) -> None:
    """
    When there is no room even without it, the write fails once more.
    """
    disk.is_full, disk.has_room_behind_ballast = True, False
    with pytest.raises(StoreError, match="full"):
        leased(disk_store)
    disk.is_full = False

    assert [1, 2, 3, 4, 5] == ids(leased(disk_store))


def test_what_else_fails_once_there_is_room_goes_to_the_caller(file: SQLiteFile, script: Script) -> None:
    """
    The second try of what met a full disk is like the first of anything else.
    """
    script.fail("INSERT", "database or disk is full")

    def fail(connection: Any) -> None:
        note("undone")(connection)
        raise OutboxFullError("it holds enough", store="here", limit=1)

    with pytest.raises(OutboxFullError, match="it holds enough"):
        file.write(fail, is_vital=True)
    assert [] == notes(file)


@pytest.mark.parametrize("is_room", [True, False])
def test_a_ballast_without_room_for_it_is_left_out(path: Path, is_room: bool) -> None:
    """
    Where it cannot be written whole, nothing of it is left, and the store works without.
    """
    file = file_at(path)
    file.ballast.unlink()
    growing = file.ballast.with_name(f"{file.ballast.name}.{os.getpid()}")
    if not is_room:
        growing.mkdir()  # what is in the way cannot be written, and not be unlinked
    file.write(note(1))

    assert (is_room, [1]) == (file.ballast.exists(), notes(file))
    file.close()


REAL_FULL_DISK = """
import os, subprocess, sys
directory, program = sys.argv[1:3]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", directory], check=True)
os.execv(sys.executable, [sys.executable, "-c", program, directory])
"""
ON_FULL_DISK = """
import logging, os, sys
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import Settlement
from otel_feedback.stores.sqlite import SQLiteStore

logging.disable()
directory = sys.argv[1]
store = SQLiteStore(f"{directory}/feedback.db")
numbers = iter(range(100_000))

def put():
    handle = FeedbackHandle(SpanContext(1, 2, True))
    try:
        store.put(FeedbackRecord(id=str(next(numbers)), handle=handle, name="rating", comment="x" * 500), ["a"])
    except StoreError:
        return 0
    return 1

def deliver(limit):
    leases = store.lease("a", limit=limit, duration_millis=60_000)
    return sum(store.settle_many([(lease, Settlement("deliver", {})) for lease in leases]))

accepted = sum(put() for _ in range(50))
filler = os.open(f"{directory}/filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, b"x" * 4096)
except OSError:
    pass
while put():
    accepted += 1
refused = 1 - put()
delivered = 0
for _ in range(200):  # whoever judges goes on judging while what was accepted is delivered
    delivered += deliver(1)
    accepted += put()
while (some := deliver(20)):
    delivered += some
store.close()
store = SQLiteStore(f"{directory}/feedback.db")
os.truncate(f"{directory}/filler", 0)
store.prune(0)
accepted += put()
delivered += deliver(20)
stats = store.stats()["a"]
print(refused, accepted == stats.recorded == delivered, os.path.exists(f"{directory}/feedback.db-ballast"))
"""


UNSHARE = shutil.which("unshare")


def can_mount() -> bool:
    """Tell whether this user may have a disk of their own: by a namespace, as containers do, or by being root."""
    if UNSHARE is None:
        return False
    probe = "import subprocess, sys; subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True)"
    with tempfile.TemporaryDirectory() as name:
        command = [UNSHARE, "-rm", sys.executable, "-c", probe, name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this user may not mount a disk to fill (unshare -rm, mount -t tmpfs)")
def test_on_a_disk_that_is_really_full_what_was_accepted_is_delivered(tmp_path: Path) -> None:
    """
    On a disk of 4 MiB that is filled, puts are refused, all that was accepted is delivered, and then it goes on.
    """
    ran = subprocess.run(
        [UNSHARE, "-rm", sys.executable, "-c", REAL_FULL_DISK, str(tmp_path), ON_FULL_DISK],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ("1 True True\n", "") == (ran.stdout, ran.stderr[-2_000:])


# --- errors that pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["BEGIN", "SAVEPOINT", "INSERT INTO records", "RELEASE", "COMMIT"])
def test_an_error_of_the_disk_is_the_caller_s_and_passes(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker, statement: str
) -> None:
    """
    Wherever it comes, that put is refused with a `StoreError`, and the next one is accepted.
    """
    watched_store.put(make_record(1), ["a"])
    script.fail(statement, "disk I/O error")
    with pytest.raises(StoreError, match="disk I/O error") as caught:
        watched_store.put(make_record(2), ["a"])
    watched_store.put(make_record(3), ["a"])

    assert f"the store {watched_store.url} failed: disk I/O error" == str(caught.value)
    assert watched_store.url == caught.value.store
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert [1, 3] == ids(leased(watched_store))


def test_an_error_of_the_disk_while_undoing_passes(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker
) -> None:
    """
    Where not even the rollback succeeds, the caller gets the first error, and the next use is not kept out by it.
    """
    script.fail("INSERT INTO records", "disk I/O error")
    script.fail("ROLLBACK", "another one")
    with pytest.raises(StoreError, match="disk I/O error"):
        watched_store.put(make_record(1), ["a"])
    watched_store.put(make_record(2), ["a"])

    assert [2] == ids(leased(watched_store))


@pytest.mark.parametrize("statement", ["SAVEPOINT", "INSERT INTO records", "RELEASE", "COMMIT"])
def test_a_failed_write_keeps_no_other_process_out(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker, statement: str
) -> None:
    """
    Whatever failed, the file's lock is free afterwards.
    """
    script.fail(statement, "disk I/O error")
    with pytest.raises(StoreError, match="disk I/O error"):
        watched_store.put(make_record(1), ["a"])

    assert can_be_written(watched_store.path)


def test_an_interrupt_keeps_no_other_process_out(path: Path) -> None:
    """
    Wherever between two calls a write is interrupted, the file's lock is free afterwards, and the next write succeeds.
    """
    file = file_at(path)
    step, is_interrupted, kept_out = 0, True, []
    while is_interrupted:
        step += 1
        writing = Caller(lambda step=step: interrupt_at(step, lambda: file.write(note(f"interrupted {step}"))))
        assert writing.ended()
        is_interrupted = isinstance(writing.error, KeyboardInterrupt)
        if not can_be_written(path):
            kept_out.append(step)
            break
        file.write(note(f"after {step}"))

    assert [] == kept_out
    file.close()


def can_be_written(path: Path) -> bool:
    """Tell whether another process could begin to write now."""
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        other.close()
    return True


def test_an_error_of_the_disk_while_opening_passes(path: Path, script: Script, make_record: RecordMaker) -> None:
    """
    Opening says that it cannot; the next use opens.
    """
    store = store_at(path, connect=watched_by(script))
    script.fail("PRAGMA secure_delete", "disk I/O error")
    with pytest.raises(StoreError, match="cannot be opened: disk I/O error"):
        store.put(make_record(1), ["a"])
    store.put(make_record(2), ["a"])

    assert [2] == ids(leased(store))


def test_an_error_of_the_disk_while_checking_is_no_damage(path: Path, script: Script, make_record: RecordMaker) -> None:
    """
    A check that could not be done has found nothing.
    """
    script.fail("PRAGMA quick_check", "disk I/O error")
    store = store_at(path, connect=watched_by(script))
    store.put(make_record(1), ["a"])

    assert ([1], []) == (ids(leased(store)), kept_aside(path))


def test_a_checkpoint_that_fails_is_no_error_and_told(
    watched_store: SQLiteStore, script: Script, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What was erased stays in the log for a while longer where it cannot be brought into the file.
    """
    watched_store.put(make_record(1, user_id="ann"), ["a"])
    script.fail("PRAGMA wal_checkpoint", "disk I/O error")

    assert 1 == watched_store.forget("ann")
    (warning,) = logged(caplog, logging.WARNING)
    assert warning.startswith(f"the log of {watched_store.url} may still have what was erased")


def test_a_connection_that_cannot_be_closed_is_left(path: Path) -> None:
    """
    Closing the file raises nothing; the next use opens another connection.
    """

    class Stubborn(Watched):
        def close(self) -> None:
            self._connection.close()
            raise sqlite3.OperationalError("unable to close due to unfinalized statements")

    file_at(path).write(note(1))
    file = SQLiteFile(
        path,
        durability="process",
        clock=SystemClock(),
        connect=lambda *args, **kwargs: Stubborn(sqlite3.connect(*args, **kwargs), lambda sql: None),
    )
    assert [1] == notes(file)
    file.close()

    assert [1] == notes(file)
    assert not any((file.close(), file.is_open))


def test_a_file_that_a_newer_release_migrates_while_it_is_open_is_refused(
    watched_store: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    A write would leave out what the newer release has added; the error names the file and says what to do.
    """
    watched_store.put(make_record(1), ["a"])
    newer = sqlite3.connect(watched_store.path, isolation_level=None)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(StoreError, match="upgrade this process too") as caught:
        watched_store.put(make_record(2), ["a"])

    assert str(caught.value).startswith(f"{watched_store.path} was written by a newer release")
    assert watched_store.url == caught.value.store


def test_switching_to_the_log_gives_up_at_once_where_waiting_does_not_help(
    path: Path, script: Script, make_record: RecordMaker
) -> None:
    """
    Only who is in the way is waited for; an error of the disk is one at once.
    """
    looks = 0

    class CountingClock(FakeClock):
        def monotonic_nano(self) -> int:
            nonlocal looks
            looks += 1
            self.advance(seconds=1)
            return super().monotonic_nano()

    for _ in range(100):
        script.fail("PRAGMA journal_mode", "disk I/O error")
    with pytest.raises(StoreError, match="disk I/O error"):
        store_at(path, clock=CountingClock(), connect=watched_by(script)).open()

    assert looks <= 2


LIMITED = """
import logging, resource, signal, sys
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores.sqlite import SQLiteStore

logging.disable()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SQLiteStore(sys.argv[1])
accepted = refused = 0

def put(number):
    global accepted, refused
    handle = FeedbackHandle(SpanContext(1, 2, True))
    try:
        store.put(FeedbackRecord(id=str(number), handle=handle, name="rating", comment="x" * 2_000), ["a"])
    except StoreError:
        refused += 1
    else:
        accepted += 1

put(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
for number in range(1, 2_000):
    put(number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
before = refused
for number in range(2_000, 2_010):
    put(number)
leases = store.lease("a", limit=10_000, duration_millis=60_000)
print(before > 0, refused == before, accepted == len(leases) == store.stats()["a"].pending)
store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_file_that_may_not_grow_refuses_and_recovers_without_a_restart(path: Path) -> None:
    """
    With the system's own limit: what was accepted is there to the last, and when the limit goes, all is accepted.
    """
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False, timeout=120
    )

    assert ("True True True\n", "") == (ran.stdout, ran.stderr[-2_000:])


READ_ONLY = """
import logging, os, sys
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores.sqlite import SQLiteStore

logging.disable()
path = sys.argv[1]
if os.getuid() == 0:
    os.setuid(65534)
store = SQLiteStore(path)

def put(number):
    try:
        store.put(FeedbackRecord(id=str(number), handle=FeedbackHandle(SpanContext(1, 2, True)), name="rating"), ["a"])
    except StoreError as error:
        return "with advice" if "a directory that this process can write" in str(error) else str(error)
    return "accepted"

said = [put(1)]
store.close()
os.chmod(path, 0o444)
said.append(put(2))
os.chmod(path, 0o644)
said.append(put(3))
print(said, store.stats()["a"].pending)
store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has other rules of who may write")
def test_a_file_that_could_only_be_read_is_written_once_it_can_be() -> None:
    """
    While it is read-only a put is refused with advice; made writable again, it goes on without a restart.
    """
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        ran = subprocess.run(
            [sys.executable, "-c", READ_ONLY, f"{name}/feedback.db"],
            env=UNCOVERED,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert ("['accepted', 'with advice', 'accepted'] 2\n", "") == (ran.stdout, ran.stderr[-2_000:])


# --- forks ---------------------------------------------------------------------------------------------------------

# The hook is registered before ours, so that it runs after it: when the file is closed and nobody can write.
FORK_WITH_JOBS = """
import os, signal, sys, threading, time
hooks = []
os.register_at_fork(before=lambda: [hook() for hook in hooks])
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])

def put(number):
    store.put(FeedbackRecord(id=str(number), handle=FeedbackHandle(SpanContext(1, 2, True)), name="rating"), ["a"])

put(0)
thread = threading.Thread(target=put, args=(1,))

def let_it_wait():
    thread.start()
    while not store._file._jobs:
        time.sleep(0.001)

hooks.append(let_it_wait)
child = os.fork()
if child == 0:
    signal.alarm(30)
    hooks.clear()
    put(2)
    store.close()
    sys.exit(0)
os.waitpid(child, 0)
thread.join(30)
print("parent", store.latest("1").revision, store.stats()["a"].recorded, flush=True)
store.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_do_what_its_parent_s_threads_have_asked_for(path: Path) -> None:
    """
    What waits for a commit while the process forks is committed once, by the parent.
    """
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK_WITH_JOBS, str(path)],
        env=UNCOVERED,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ("parent 0 3\n", "") == (ran.stdout, ran.stderr[-2_000:])


def test_files_that_are_made_while_a_process_forks_harm_nothing(path: Path) -> None:
    """
    Making stores in one thread while another forks leaves no hook that fails.
    """
    program = f"""
import os, sys, threading
from otel_feedback.stores.sqlite import SQLiteStore
sys.unraisablehook = lambda what: print("unraisable", what.exc_value, flush=True)
is_over = threading.Event()
kept = []
def make():
    while not is_over.is_set():
        kept.append(SQLiteStore({str(path)!r}))
        if len(kept) > 500:
            kept.clear()
threads = [threading.Thread(target=make) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
is_over.set()
for thread in threads:
    thread.join()
print("over")
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=UNCOVERED,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert "over\n" == ran.stdout, ran.stdout[-500:] + ran.stderr[-2_000:]
