"""What is the memory store's own: it does not slow down, and a forked child starts anew."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import APP, PARKED, Binding, Entry, Parked, Settlement
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock

RecordMaker = Callable[..., FeedbackRecord]


def test_a_memory_store_keeps_what_it_has_when_it_is_closed(make_record: RecordMaker) -> None:
    """
    Opening and closing mean nothing to it.
    """
    store = MemoryStore()
    store.open()
    store.put(make_record(), ["a"])
    store.close()

    assert make_record() == store.latest(make_record().id)
    assert ("<MemoryStore>", "memory:", "memory") == (repr(store), store.url, store.durability)


def test_a_long_backlog_is_worked_off_in_linear_time(make_record: RecordMaker, clock: FakeClock) -> None:
    """
    Ten times as many records, each of which fails once, take about ten times as long, and not a hundred times.
    """
    few, many = (seconds_to_work_off(number, make_record, clock) for number in (2_000, 20_000))

    assert many < 40 * few


def seconds_to_work_off(number: int, make_record: RecordMaker, clock: FakeClock) -> float:
    """Put records and deliver each at the second attempt."""
    store = MemoryStore(clock=clock)
    for each in range(number):
        store.put(make_record(each), ["a"])
    started = time.perf_counter()
    for event in ("retry", "deliver"):
        while leases := store.lease("a", limit=100, duration_millis=60_000):
            due = clock.time_unix_nano() + 1
            for lease in leases:
                store.settle(lease, Settlement(event, {}, due_unix_nano=due))
        clock.advance(millis=1)
    assert number == store.stats()["a"].delivered
    return time.perf_counter() - started


def test_one_judgement_that_changes_often_leaves_one_to_deliver(make_record: RecordMaker, clock: FakeClock) -> None:
    """
    Of many revisions only the newest is offered, and the account has them all.
    """
    store = MemoryStore(clock=clock)
    for revision in range(200):
        store.put(make_record(value=revision % 2 == 0), ["a"])

    assert [199] == [lease.record.revision for lease in store.lease("a", limit=10, duration_millis=1)]
    assert (200, 199) == (store.stats()["a"].recorded, store.stats()["a"].superseded)


def test_a_lease_of_no_length_is_offered_once_a_round(make_record: RecordMaker, clock: FakeClock) -> None:
    """
    A lease that ends at once is due again, but not within the same call.
    """
    store = MemoryStore(clock=clock)
    store.put(make_record(), ["a"])

    assert [1, 1] == [len(store.lease("a", limit=10, duration_millis=0)) for _ in range(2)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_knows_the_keys_and_leaves_the_outbox_to_its_parent(make_record: RecordMaker) -> None:
    """
    A child finds calls that were bound before, delivers nothing of its parent's, and waits for no lock of its threads.
    """
    store = MemoryStore()
    store.bind([Binding(APP, "m-1", make_record().handle)])
    store.put(make_record(), ["a"])
    with store._memory._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a child that hangs ends all the same
            found = len(store.find(APP, "m-1")), len(store.lease("a", limit=1, duration_millis=1)), len(store.stats())
            is_free = store._memory._lock.acquire(blocking=False)
            os._exit(0 if (found, is_free) == ((1, 0, 0), True) else 1)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 == len(store.lease("a", limit=1, duration_millis=1))


def test_what_a_child_leaves_is_all_but_the_keys(make_record: RecordMaker) -> None:
    """
    After a fork the parent's memory is as it was, and the child's has only the keys.
    """
    store = MemoryStore()
    store.bind([Binding(APP, "m-1", make_record().handle)])
    store.put(make_record(), ["a"])
    store.put_many([Parked(make_record(2), APP, "m-2", to=("a",))])
    left = []
    for is_child in (False, True):
        store._memory.before_fork()
        store._memory.after_fork(is_child=is_child)
        left.append((len(store.find(APP, "m-1")), len(store.parked(APP, "m-2")), sorted(store.stats())))

    assert [(1, 1, ["a", PARKED]), (1, 0, [])] == left


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_whoever_is_in_the_store(make_record: RecordMaker) -> None:
    """
    The lock that a thread holds is not carried into the child: the fork waits until the thread is done.
    """
    store = MemoryStore()
    is_in, may_go = threading.Event(), threading.Event()

    def stay(_: object) -> None:
        is_in.set()
        may_go.wait()

    thread = threading.Thread(target=store._memory.write, args=(stay,))
    thread.start()
    is_in.wait()
    threading.Timer(0.05, may_go.set).start()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs ends all the same
        store.put(make_record(), ["a"])
        os._exit(len(store.lease("a", limit=1, duration_millis=1)))
    thread.join()

    assert may_go.is_set()
    assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_fails_in_a_transaction_leaves_nothing(make_record: RecordMaker) -> None:
    """
    An action that fails is undone; an error of the database is the store's, any other is the action's own.
    """
    store = MemoryStore()
    with pytest.raises(ValueError, match="serialize"):
        store.put_many([Entry(make_record(1), ["a"]), Entry(make_record(2, metadata={"x": object()}), ["a"])])
    with pytest.raises(StoreError, match="memory: failed: no such table") as caught:
        store._memory.write(lambda connection: connection.execute("DELETE FROM absent"))
    with pytest.raises(RuntimeError, match="mine"):
        store._memory.write(put_and_fail)

    assert ("memory:", {}) == (caught.value.store, store.stats())


def put_and_fail(connection: Any) -> None:
    connection.execute("INSERT INTO tallies VALUES ('a', 'dead', '', 1)")
    raise RuntimeError("mine")


def test_a_use_within_a_transaction_is_refused(make_record: RecordMaker) -> None:
    """
    A finaliser that binds a key in the middle of a transaction of its own thread fails, and the transaction does not.
    """
    store = MemoryStore()

    def bind_within(connection: Any) -> None:
        with pytest.raises(StoreError, match="within a transaction") as caught:
            store.bind([Binding(APP, "m-1", make_record().handle)])
        assert "memory:" == caught.value.store

    store._memory.write(bind_within)
    store.bind([Binding(APP, "m-2", make_record().handle)])

    assert [0, 1] == [len(store.find(APP, key)) for key in ("m-1", "m-2")]
