"""Each store does over long random histories what a model in plain lists does, clocks that jump included."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from opentelemetry.trace import SpanContext, TraceFlags
from store_model import StoreModel

from otel_feedback._dialects import USER_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.stores import (
    APP,
    RESPONSE,
    UNROUTED,
    Binding,
    Entry,
    Event,
    Lease,
    Parked,
    PartState,
    Settlement,
    Standing,
    Store,
)
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

LEASE_MILLIS = 1_000
DESTINATIONS = ("a", "b", UNROUTED)
SETTLEMENTS: tuple[Event, ...] = ("deliver", "bury", "skip", "retry", "retract")
IDS = tuple(f"00000000-0000-7000-8000-{number:012}" for number in range(4))
USERS = (None, "u-1", "u-2")


def handle(span_id: int, started_at: int | None = None, user_id: str | None = None) -> FeedbackHandle:
    context = SpanContext(1, span_id, is_remote=True, trace_flags=TraceFlags(1))
    return FeedbackHandle(context, started_at=started_at, attributes={USER_ID: user_id} if user_id else {})


@st.composite
def records(draw: st.DrawFn) -> FeedbackRecord:
    """Draw a judgement: an id is one person's on one call, as it is everywhere else."""
    number = draw(st.integers(0, len(IDS) - 1))
    retracts = draw(st.sampled_from([False, False, False, True]))
    return FeedbackRecord(
        id=IDS[number],
        handle=handle(1 + number % 2, user_id=draw(st.sampled_from(USERS))),
        name="rating" if number else "other",
        value=None if retracts else draw(st.booleans()),
        user_id=USERS[number % 3],
        recorded_at_unix_nano=draw(st.integers(1, 3)),
        retracts=retracts,
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Draw a record, where it goes, where it is skipped, and where it goes with less in it."""
    record = draw(records())
    return Entry(
        record,
        draw(st.lists(st.sampled_from(DESTINATIONS), max_size=3)),
        draw(st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["unsampled", "filtered"]), max_size=1)),
        draw(st.sampled_from([{}, {"a": replace(record, value=None, tags=("t",))}])),
    )


PARKED_ONES = st.builds(Parked, records(), st.just(APP), st.sampled_from(["k1", "k2"]), st.none() | st.just(("a",)))
PARTS = st.dictionaries(
    st.sampled_from(["value", "comment"]),
    st.builds(
        PartState,
        st.sampled_from(["delivered", "unclear", "dead", "skipped"]),
        st.none() | st.just("why"),
        st.booleans(),
    ),
)
HANDLES = st.builds(handle, st.integers(1, 3), st.none() | st.integers(1, 2), st.sampled_from(USERS))
BINDINGS = st.builds(Binding, st.sampled_from([APP, RESPONSE]), st.sampled_from(["k1", "k2"]), HANDLES)


def seen(lease: Lease) -> Lease:
    """Write a lease as what a worker sees."""
    return replace(lease, parts=dict(lease.parts), standing=dict(lease.standing))


class StoreFollowsTheModel(RuleBasedStateMachine):
    """Does the same to a store and to the model, and compares everything that can be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model = StoreModel(self.clock)
        self.store = self.make_store()
        self.leases: list[Lease] = []
        self.delivered: dict[tuple[str, str], int] = {}

    def make_store(self) -> Store:
        raise NotImplementedError

    def both(self, ask: Callable[[Any], Any]) -> Any:
        """Ask both; they must say the same."""
        expected, actual = ask(self.model), ask(self.store)

        assert expected == actual
        return expected

    @rule(entries=st.lists(entries() | PARKED_ONES, min_size=1, max_size=3))
    def put(self, entries: list[Entry | Parked]) -> None:
        self.both(lambda store: store.put_many(entries))

    @rule(destination=st.sampled_from(["a", "a", "b"]), limit=st.integers(1, 3), by_call=st.booleans())
    def lease(self, destination: str, limit: int, by_call: bool) -> None:
        leased = self.both(
            lambda store: [
                seen(each)
                for each in store.lease(destination, limit=limit, duration_millis=LEASE_MILLIS, by_call=by_call)
            ]
        )
        self.leases += leased

        # Of one judgement never two revisions at once.
        assert len(leased) == len({lease.record.id for lease in leased})

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
        chosen = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, max_size=2))
        due = self.clock.time_unix_nano() + wait_millis * NANOS_PER_MILLI
        endings = [
            (
                lease,
                Settlement(
                    event,
                    parts,
                    reason=event,
                    due_unix_nano=due,
                    counts=counts,
                    held=held,
                    standing={kind: Standing(replace(lease.record, stands=None), held, (7,)) for kind in parts},
                ),
            )
            for lease in chosen
            # What was erased meanwhile stands nowhere.
            if self.model.latest(lease.record.id) is not None
        ]
        ended = self.both(lambda store: list(store.settle_many(endings)))
        for (lease, _), is_settled in zip(endings, ended, strict=True):
            if is_settled and event == "deliver":
                place = lease.destination, lease.record.id
                # A newer judgement is never followed by an older one.
                assert self.delivered.get(place, -1) < lease.record.revision
                self.delivered[place] = lease.record.revision

    @rule(record_id=st.sampled_from(IDS), destination=st.sampled_from(DESTINATIONS))
    def requeue(self, record_id: str, destination: str) -> None:
        self.both(lambda store: store.requeue(record_id, destination))

    @rule(destinations=st.lists(st.sampled_from(["a", "b"]), max_size=2), limit=st.integers(1, 3))
    def route(self, destinations: list[str], limit: int) -> None:
        self.both(lambda store: store.route(destinations, limit=limit))

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

    @rule(parked_id=st.sampled_from(IDS), entry=entries())
    def unpark(self, parked_id: str, entry: Entry) -> None:
        self.both(lambda store: store.unpark(parked_id, entry))

    @rule(bindings=st.lists(BINDINGS, max_size=3))
    def bind(self, bindings: list[Binding]) -> None:
        self.both(lambda store: store.bind(bindings))

    @rule(millis=st.sampled_from([0, 1, 1_000]), limit=st.integers(1, 3))
    def prune(self, millis: int, limit: int) -> None:
        before = self.clock.time_unix_nano() - millis * NANOS_PER_MILLI
        self.both(lambda store: store.prune(before, limit=limit))
        self.forget_what_is_gone()

    @rule(user_id=st.sampled_from(["u-1", "u-2"]))
    def forget(self, user_id: str) -> None:
        self.both(lambda store: store.forget(user_id))
        self.forget_what_is_gone()

    def forget_what_is_gone(self) -> None:
        """A judgement that begins anew begins at its first revision."""
        self.delivered = {
            place: revision for place, revision in self.delivered.items() if self.model.latest(place[1]) is not None
        }

    @rule(millis=st.sampled_from([1, LEASE_MILLIS - 1, LEASE_MILLIS]))
    def advance(self, millis: int) -> None:
        self.clock.advance(millis=millis)

    @rule(seconds=st.sampled_from([-10_000, -3_600, -1, 1, 3_600, 10_000]))
    def jump(self, seconds: int) -> None:
        self.clock.jump(seconds=seconds)

    @rule()
    def reopen(self) -> None:
        self.store.close()

    @invariant()
    def everything_that_can_be_asked_is_the_same(self) -> None:
        for record_id in IDS:
            self.both(lambda store: store.latest(record_id))  # noqa: B023 (called at once)
            self.both(lambda store: store.status(record_id))  # noqa: B023
            self.both(lambda store: list(store.destinations(record_id)))  # noqa: B023
        for destination in DESTINATIONS:
            for by_call in (False, True):
                self.both(lambda store: store.next_due(destination, by_call=by_call))  # noqa: B023
            about = FeedbackRecord(id=IDS[0], handle=handle(2), name="rating")
            self.both(lambda store: store.standing(about, destination))  # noqa: B023
        for key in ("k1", "k2"):
            self.both(lambda store: [list(store.find(kind, key)) for kind in (APP, RESPONSE)])  # noqa: B023
            self.both(lambda store: list(store.parked(APP, key)))  # noqa: B023
        self.both(lambda store: set(store.awaited([(APP, key) for key in ("k1", "k2")])))
        self.both(lambda store: set(store.overlooked("any", [RESPONSE])))
        self.both(lambda store: set(store.overlooked(APP, [RESPONSE])))

    @invariant()
    def every_record_is_accounted_for(self) -> None:
        stats = self.both(lambda store: dict(store.stats()))

        assert all(account.is_conserved for account in stats.values())


class MemoryFollowsTheModel(StoreFollowsTheModel):
    def make_store(self) -> MemoryStore:
        return MemoryStore(clock=self.clock)


class SQLiteFollowsTheModel(StoreFollowsTheModel):
    def make_store(self) -> SQLiteStore:
        self.directory = Path(tempfile.mkdtemp())
        return SQLiteStore(self.directory / "feedback.db", durability="process", clock=self.clock)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


def settings_of(examples: int, steps: int) -> settings:
    # The working directory that conftest gives is not one for each example, and need not be.
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)


class TestMemory(MemoryFollowsTheModel.TestCase):
    settings = settings_of(60, 30)


class TestSQLite(SQLiteFollowsTheModel.TestCase):
    settings = settings_of(15, 30)


@pytest.mark.chaos
class TestMemoryForLong(MemoryFollowsTheModel.TestCase):
    settings = settings_of(300, 60)


@pytest.mark.chaos
class TestSQLiteForLong(SQLiteFollowsTheModel.TestCase):
    settings = settings_of(60, 60)
