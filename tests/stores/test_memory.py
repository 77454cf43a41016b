"""What is the memory store's own: it does not slow down, and a forked child starts anew."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from otel_feedback._record import FeedbackRecord
from otel_feedback.stores import APP, Binding, Settlement, memory
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
    Twenty thousand records, each of which fails once, take seconds and not hours.
    """
    store = MemoryStore(clock=clock)
    for number in range(20_000):
        store.put(make_record(number), ["a"])
    started = time.monotonic()
    for event in ("retry", "deliver"):
        while leases := store.lease("a", limit=100, duration_millis=60_000):
            due = clock.time_unix_nano() + 1
            for lease in leases:
                store.settle(lease, Settlement(event, {}, due_unix_nano=due))
        clock.advance(millis=1)

    assert 20_000 == store.stats()["a"].delivered
    assert time.monotonic() - started < 10


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
    with store._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a child that hangs ends all the same
            found = len(store.find(APP, "m-1")), len(store.lease("a", limit=1, duration_millis=1)), len(store.stats())
            is_free = store._lock.acquire(blocking=False)
            os._exit(0 if (found, is_free) == ((1, 0, 0), True) else 1)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 == len(store.lease("a", limit=1, duration_millis=1))


def test_the_parents_lock_and_outbox_are_given_up_after_a_fork(make_record: RecordMaker) -> None:
    """
    What runs first in a child leaves every store of the process with its keys, a free lock and nothing to deliver.
    """
    store = MemoryStore()
    store.bind([Binding(APP, "m-1", make_record().handle)])
    store.put(make_record(), ["a"])
    store._lock = held = threading.RLock()
    held.acquire()
    memory._leave_parent()

    assert (1, {}, None) == (len(store.find(APP, "m-1")), store.stats(), store.latest(make_record().id))
    assert held is not store._lock
