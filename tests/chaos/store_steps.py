"""What a store goes through in the chaos runs: steps that are chosen by chance, and all that a store holds after them.

A step is chosen once and may be done to several stores, so that one of them says what the others must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback import FeedbackHandle, FeedbackRecord
from otel_feedback.stores import APP, Binding, Entry, Lease, Parked, PartState, Settlement, Store
from otel_feedback.testing import FakeClock

DESTINATIONS = ("braintrust", "orq")
RECORDS, KEYS = range(40), range(8)
LEASE_MILLIS = 60_000
# When a `FakeClock` begins: no retention may find it long ago.
BEGINNING = FakeClock().time_unix_nano()

# --- what a step is about ----------------------------------------------------------------------------------------


def a_handle(number: int) -> FeedbackHandle:
    context = SpanContext(0xABC, number + 1, is_remote=True, trace_flags=TraceFlags(1))
    return FeedbackHandle(context, started_at=BEGINNING + number)


def an_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


def a_record(rng: Random, **changes: Any) -> FeedbackRecord:
    number = rng.choice(RECORDS)
    record = FeedbackRecord(
        id=an_id(number),
        handle=a_handle(number),
        name="rating",
        value=rng.random() < 0.5,
        comment="word " * rng.randrange(200),
        recorded_at_unix_nano=BEGINNING,
    )
    return replace(record, **changes)


def an_entry(rng: Random) -> Entry:
    destinations = rng.sample(DESTINATIONS, rng.randint(1, 2))
    skipped = {name: "not sampled" for name in destinations if rng.random() < 0.1}
    return Entry(a_record(rng), destinations, skipped)


@dataclass(slots=True)
class World:
    """One store, the leases that are held of it, and what else a step needs."""

    store: Store
    clock: FakeClock
    leases: list[Lease] = field(default_factory=list)

    def settle(self, at: int, settlement: Settlement) -> None:
        """End one of the leases, if there are any."""
        if self.leases:
            at %= len(self.leases)
            self.store.settle(self.leases[at], settlement)
            del self.leases[at]

    def wait(self, millis: int) -> None:
        """Let time pass, after whatever the store has to do has been done."""
        self.store.open()
        self.clock.advance(millis=millis)


Step = Callable[[World], object]


def put(rng: Random) -> Step:
    entry = an_entry(rng)
    return lambda world: world.store.put(entry.record, entry.destinations, skipped=entry.skipped)


def put_many(rng: Random) -> Step:
    entries = [an_entry(rng) for _ in range(rng.randint(2, 6))]
    return lambda world: world.store.put_many(entries)


def retract(rng: Random) -> Step:
    record = a_record(rng, retracts=True)
    return lambda world: world.store.put(replace(record, value=None, comment=None), DESTINATIONS, skipped={})


def bind(rng: Random) -> Step:
    bindings = [Binding(APP, f"m-{rng.choice(KEYS)}", a_handle(rng.choice(RECORDS))) for _ in range(rng.randint(1, 3))]
    return lambda world: world.store.bind(bindings)


def lease(rng: Random) -> Step:
    destination, limit = rng.choice(DESTINATIONS), rng.randint(1, 4)
    return lambda world: world.leases.extend(world.store.lease(destination, limit=limit, duration_millis=LEASE_MILLIS))


def settle(rng: Random) -> Step:
    event: Any = rng.choices(["deliver", "bury", "skip", "retry", "retract"], [8, 1, 1, 2, 1])[0]
    settlement = Settlement(event, {"value": PartState("delivered")}, reason="so it is")
    at = rng.randrange(100)
    return lambda world: world.settle(at, settlement)


def park(rng: Random) -> Step:
    parked = Parked(a_record(rng), APP, f"m-{rng.choice(KEYS)}", rng.choice([None, DESTINATIONS]))
    return lambda world: world.store.put_many([parked])


def unpark(rng: Random) -> Step:
    number = rng.choice(RECORDS)
    entry = Entry(replace(a_record(rng), id=an_id(number)), DESTINATIONS)
    return lambda world: world.store.unpark(an_id(number), entry)


def requeue(rng: Random) -> Step:
    number, destination = rng.choice(RECORDS), rng.choice(DESTINATIONS)
    return lambda world: world.store.requeue(an_id(number), destination)


def wait(rng: Random) -> Step:
    millis = rng.randrange(LEASE_MILLIS)
    return lambda world: world.wait(millis)


def open_again(rng: Random) -> Step:
    return lambda world: world.store.close()


CHANCES: Mapping[Callable[[Random], Step], int] = {
    put: 12,
    put_many: 6,
    retract: 2,
    bind: 6,
    lease: 7,
    settle: 12,
    park: 4,
    unpark: 4,
    requeue: 2,
    wait: 2,
    open_again: 2,
}


def steps_of(rng: Random, number: int) -> Iterator[Step]:
    """Choose the steps of a run, of which the first one opens the store."""
    yield lambda world: world.store.open()
    for kind in rng.choices(list(CHANCES), list(CHANCES.values()), k=number):
        yield kind(rng)


# --- what a store holds ------------------------------------------------------------------------------------------


def held_by(store: Store) -> dict[str, Any]:
    """Ask a store for all that its ports tell."""
    return {
        "status": {number: store.status(an_id(number)) for number in RECORDS},
        "record": {number: store.latest(an_id(number)) for number in RECORDS},
        "keys": {key: list(store.find(APP, f"m-{key}")) for key in KEYS},
        "parked": {key: list(store.parked(APP, f"m-{key}")) for key in KEYS},
        "accounts": dict(store.stats()),
    }
