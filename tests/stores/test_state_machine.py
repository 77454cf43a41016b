"""Every arrow of `TRANSITIONS` and no other; and both stores agree, whatever is done to them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.stores import (
    APP,
    RESPONSE,
    STATES,
    TRANSITIONS,
    UNROUTED,
    Binding,
    Entry,
    Event,
    Lease,
    Parked,
    PartState,
    Settlement,
    State,
)
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

AnyStore = MemoryStore | SQLiteStore
LEASE_MILLIS = 1_000

# --- every arrow -------------------------------------------------------------------------------------------------


def lease_one(store: AnyStore) -> Lease:
    (lease,) = store.lease("a", limit=1, duration_millis=LEASE_MILLIS)
    return lease


def settle(store: AnyStore, lease: Lease, event: Event) -> bool:
    return store.settle(lease, Settlement(event, {}))


def first_state(store: AnyStore) -> str:
    """Look up the state of the first delivery at `a`, which `status` shows only while there is no newer one."""
    if isinstance(store, MemoryStore):
        return store._outbox.deliveries["a", 0].state
    with store._reading() as connection:
        found = connection.execute("SELECT state FROM deliveries WHERE destination = 'a' ORDER BY sequence").fetchone()
    return cast("str", found[0])


def reach(store: AnyStore, state: State, record: FeedbackRecord) -> Lease:
    """Bring the first delivery into a state; answer the lease that it had last."""
    ends: dict[State, Event] = {
        "pending": "retry",
        "delivered": "deliver",
        "dead": "bury",
        "skipped": "skip",
        "retracted": "retract",
    }
    store.put(record, ["a"])
    lease = lease_one(store)
    if state == "superseded":
        store.put(record, ["a"])
        settle(store, lease, "retry")
    elif state in ends:
        settle(store, lease, ends[state])
    return lease


def bring_back(store: AnyStore, lease: Lease) -> None:
    """Ask for it again in both ways that there are."""
    settle(store, lease, "retry")
    store.requeue(lease.record.id, "a")


def supersede(store: AnyStore, lease: Lease, clock: FakeClock) -> None:
    store.put(replace(lease.record, value=False), ["a"])
    bring_back(store, lease)


def take_back(store: AnyStore, lease: Lease, clock: FakeClock) -> None:
    store.put(replace(lease.record, value=None, retracts=True), ["a"])
    bring_back(store, lease)


def lease_again(store: AnyStore, lease: Lease, clock: FakeClock) -> None:
    clock.advance(millis=LEASE_MILLIS)
    store.lease("a", limit=10, duration_millis=LEASE_MILLIS)


def requeue(store: AnyStore, lease: Lease, clock: FakeClock) -> None:
    store.requeue(lease.record.id, "a")


# What is done from outside, and the event of the table that it is; settling is an event of leased deliveries alone.
ACTIONS: dict[str, tuple[str, Callable[[AnyStore, Lease, FakeClock], None]]] = {
    "lease": ("lease", lease_again),
    "supersede": ("supersede", supersede),
    "retract": ("retract", take_back),
    "requeue": ("requeue", requeue),
}
SETTLEMENTS: tuple[Event, ...] = ("deliver", "bury", "skip", "retry", "retract")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_walks_the_arrow_of_the_table_or_none(
    store: AnyStore, clock: FakeClock, make_record: Callable[..., FeedbackRecord], state: State, action: str
) -> None:
    """
    Whatever is done to a delivery in a state, it goes where the table says, and where it says nothing it stays.
    """
    event, act = ACTIONS[action]
    lease = reach(store, state, make_record())
    before = first_state(store)
    act(store, lease, clock)

    assert (state, TRANSITIONS.get((state, event), state)) == (before, first_state(store))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", SETTLEMENTS)
def test_only_what_is_leased_can_be_settled(
    store: AnyStore, make_record: Callable[..., FeedbackRecord], state: State, event: Event
) -> None:
    """
    A settlement ends a lease as the table says; of a delivery in any other state it changes nothing.
    """
    lease = reach(store, state, make_record())
    is_settled = settle(store, lease, event)

    expected = TRANSITIONS["leased", event] if state == "leased" else state
    assert (state == "leased", expected) == (is_settled, first_state(store))


@pytest.mark.parametrize(("skipped", "event"), [({}, "accept"), ({"a": "unsampled"}, "skip")])
def test_a_record_begins_where_the_table_says(
    store: AnyStore, make_record: Callable[..., FeedbackRecord], skipped: dict[str, str], event: str
) -> None:
    """
    A record is pending, or skipped at once.
    """
    store.put(make_record(), ["a"], skipped=skipped)

    assert TRANSITIONS["recorded", event] == first_state(store)


def test_every_arrow_of_the_table_is_walked_here() -> None:
    """
    The tests above know every arrow that there is.
    """
    by_action = {(state, event) for state in STATES for event, _ in ACTIONS.values() if (state, event) in TRANSITIONS}
    by_settling = {("leased", event) for event in SETTLEMENTS}

    assert set(TRANSITIONS) == by_action | by_settling | {("recorded", "accept"), ("recorded", "skip")}


@pytest.mark.parametrize("event", ["accept", "requeue", "nonsense"])
def test_an_event_that_ends_no_lease_leaves_it(
    store: AnyStore, make_record: Callable[..., FeedbackRecord], event: Any
) -> None:
    """
    A settlement with an event that the table does not know for leases fails and changes nothing.
    """
    lease = reach(store, "leased", make_record())
    with pytest.raises(KeyError):
        settle(store, lease, event)

    assert ("leased", True) == (first_state(store), settle(store, lease, "deliver"))


# --- both stores side by side ------------------------------------------------------------------------------------

DESTINATIONS = ("a", "b", UNROUTED)
IDS = tuple(f"00000000-0000-7000-8000-{number:012}" for number in range(3))
PARTS = st.dictionaries(
    st.sampled_from(["value", "comment"]),
    st.builds(PartState, st.sampled_from(["delivered", "unclear", "dead", "skipped"]), st.none() | st.just("why")),
)


def handle(span_id: int, started_at: int | None = None) -> FeedbackHandle:
    return FeedbackHandle(SpanContext(1, span_id, is_remote=True, trace_flags=TraceFlags(1)), started_at=started_at)


RECORDS = st.builds(
    FeedbackRecord,
    id=st.sampled_from(IDS),
    handle=st.sampled_from([handle(1), handle(2)]),
    name=st.sampled_from(["rating", "other"]),
    value=st.booleans(),
    recorded_at_unix_nano=st.integers(0, 3),
    retracts=st.sampled_from([False, False, True]),
)
ENTRIES = st.builds(
    Entry,
    RECORDS,
    st.lists(st.sampled_from(DESTINATIONS), max_size=3),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["unsampled", "filtered"]), max_size=1),
)
HANDLES = st.builds(handle, st.integers(1, 3), st.none() | st.integers(1, 2))
BINDINGS = st.builds(Binding, st.sampled_from([APP, RESPONSE]), st.sampled_from(["k1", "k2"]), HANDLES)


def seen(lease: Lease) -> tuple[object, ...]:
    """Write a lease as what a worker sees: everything but the place, which is a store's own."""
    earlier = [(revision.record, dict(revision.parts)) for revision in lease.earlier]
    return replace(lease, sequence=0, parts=dict(lease.parts), earlier=()), earlier


class StoresAgree(RuleBasedStateMachine):
    """Does the same to a memory store and to an SQLite store, and compares everything that can be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.directory = Path(tempfile.mkdtemp())
        self.memory = MemoryStore(clock=self.clock)
        self.sqlite = SQLiteStore(self.directory / "feedback.db", durability="process", clock=self.clock)
        self.leases: list[tuple[Lease, Lease]] = []
        self.delivered: dict[tuple[str, str], int] = {}
        self.recorded = dict.fromkeys(DESTINATIONS, 0)

    def teardown(self) -> None:
        self.sqlite.close()
        shutil.rmtree(self.directory)

    def both(self, ask: Callable[[AnyStore], Any]) -> Any:
        """Ask both stores; they must say the same."""
        expected, actual = ask(self.memory), ask(self.sqlite)

        assert expected == actual
        return expected

    def note_recorded(self, entry: Entry) -> None:
        for destination in set(entry.destinations):
            self.recorded[destination] += 1

    @rule(entries=st.lists(ENTRIES, min_size=1, max_size=3))
    def put(self, entries: list[Entry]) -> None:
        self.both(lambda store: store.put_many(entries))
        for entry in entries:
            self.note_recorded(entry)

    @rule(destination=st.sampled_from(["a", "a", "b"]), limit=st.integers(1, 3))
    def lease(self, destination: str, limit: int) -> None:
        memory, sqlite = (
            store.lease(destination, limit=limit, duration_millis=LEASE_MILLIS) for store in (self.memory, self.sqlite)
        )
        self.leases += zip(memory, sqlite, strict=True)

        assert [seen(lease) for lease in memory] == [seen(lease) for lease in sqlite]
        # Of one judgement never two revisions at once.
        assert len(memory) == len({lease.record.id for lease in memory})

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        event=st.sampled_from(SETTLEMENTS),
        parts=PARTS,
        wait_millis=st.integers(-1, 1_500),
        counts=st.booleans(),
        held=st.booleans(),
    )
    def settle(
        self, data: st.DataObject, event: Event, parts: dict[str, PartState], wait_millis: int, counts: bool, held: bool
    ) -> None:
        memory, sqlite = data.draw(st.sampled_from(self.leases))
        due = self.clock.time_unix_nano() + wait_millis * NANOS_PER_MILLI
        settlement = Settlement(event, parts, reason=event, due_unix_nano=due, counts=counts, held=held)
        is_settled = self.memory.settle(memory, settlement)

        assert is_settled == self.sqlite.settle(sqlite, settlement)
        if is_settled and event == "deliver":
            place = memory.destination, memory.record.id
            # A newer judgement is never followed by an older one.
            assert self.delivered.get(place, -1) < memory.record.revision
            self.delivered[place] = memory.record.revision

    @rule(record_id=st.sampled_from(IDS), destination=st.sampled_from(DESTINATIONS))
    def requeue(self, record_id: str, destination: str) -> None:
        self.both(lambda store: store.requeue(record_id, destination))

    @rule(destinations=st.lists(st.sampled_from(["a", "b"]), max_size=2))
    def route(self, destinations: list[str]) -> None:
        self.both(lambda store: store.route(destinations))
        stats = self.memory.stats()
        for destination in DESTINATIONS:
            now = stats[destination].recorded if destination in stats else 0
            # What is routed is new there, or was there already; nothing vanishes but from the unrouted.
            assert destination == UNROUTED or now >= self.recorded[destination]
            self.recorded[destination] = now

    @rule(destination=st.sampled_from(["a", "b"]), millis=st.integers(0, 2_000), reason=st.sampled_from(["401", "403"]))
    def pause(self, destination: str, millis: int, reason: str) -> None:
        until = self.clock.time_unix_nano() + millis * NANOS_PER_MILLI
        self.both(lambda store: store.pause(destination, reason=reason, until_unix_nano=until))

    @rule(destination=st.sampled_from(["a", "b"]))
    def resume(self, destination: str) -> None:
        self.both(lambda store: store.resume(destination))

    @rule(destination=st.sampled_from(["a", "b"]))
    def release(self, destination: str) -> None:
        self.both(lambda store: store.release(destination))

    @rule(record=RECORDS, key=st.sampled_from(["k1", "k2"]), to=st.none() | st.just(("a",)))
    def park(self, record: FeedbackRecord, key: str, to: tuple[str, ...] | None) -> None:
        self.both(lambda store: store.park(Parked(record, APP, key, to)))

    @rule(parked_id=st.sampled_from(IDS), entry=ENTRIES)
    def unpark(self, parked_id: str, entry: Entry) -> None:
        if self.both(lambda store: store.unpark(parked_id, entry)):
            self.note_recorded(entry)

    @rule(bindings=st.lists(BINDINGS, max_size=3))
    def bind(self, bindings: list[Binding]) -> None:
        self.both(lambda store: store.bind(bindings))

    @rule(millis=st.sampled_from([1, LEASE_MILLIS - 1, LEASE_MILLIS]))
    def advance(self, millis: int) -> None:
        self.clock.advance(millis=millis)

    @rule(seconds=st.sampled_from([-3_600, -1, 1, 3_600]))
    def jump(self, seconds: int) -> None:
        self.clock.jump(seconds=seconds)

    @rule()
    def reopen(self) -> None:
        self.sqlite.close()

    @invariant()
    def everything_that_can_be_asked_is_the_same(self) -> None:
        for record_id in IDS:
            self.both(lambda store: store.latest(record_id))  # noqa: B023 (called at once)
            self.both(lambda store: store.status(record_id))  # noqa: B023
        for destination in DESTINATIONS:
            self.both(lambda store: store.next_due(destination))  # noqa: B023
        for key in ("k1", "k2"):
            self.both(lambda store: [list(store.find(kind, key)) for kind in (APP, RESPONSE)])  # noqa: B023
            self.both(lambda store: list(store.parked(APP, key)))  # noqa: B023
        about = FeedbackRecord(id=IDS[0], handle=handle(1), name="rating")
        self.both(lambda store: store.standing(about))

    @invariant()
    def every_record_is_accounted_for(self) -> None:
        stats = self.both(
            lambda store: {
                name: replace(account, skipped=dict(account.skipped)) for name, account in store.stats().items()
            }
        )

        assert all(account.is_conserved for account in stats.values())
        assert {name: count for name, count in self.recorded.items() if count} == {
            name: account.recorded for name, account in stats.items()
        }


TestStoresAgree = StoresAgree.TestCase
TestStoresAgree.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    # The working directory that conftest gives is not one for each example, and need not be.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
