"""Storms of retries, over one worker or several that stall: in order per judgement, and only the same id supersedes.

Time is simulated (`simulation.py`). A worker is a process that delivers: a `Deliverer` with its own view of one store.
The vendor is a script: it takes what it gets, at once or after a while, and answers so or not at all.

What is guaranteed of a judgement at one destination, and asserted here:

- Of workers that keep within their leases no request ever goes back: after one for a revision comes none for an older.
- A request that does go back is made by a worker whose lease had run out: it stalled, or its batch took too long. It
  is bounded: a worker sends what it has leased once, and settles none of it, because its fence is no longer the newest.
- The newest revision arrives, whatever comes in between, and everything is accounted for.
- A worker whose lease ran out before it began to send sends nothing. (One whose lease runs out while it sends, between
  two requests or within one, is what remains of going back.)

Seeded bug: a store whose `settle` takes an old fence for the newest is found.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from fault_world import calls
from simulation import SimulatedDelivery, Simulation, deliverer_of

import otel_feedback as of
from otel_feedback._deliver import LEASE_MILLIS
from otel_feedback._record import FeedbackRecord, Part
from otel_feedback.exporters import PauseDestination, PermanentFailure, Result, RetryableFailure, Success, Unclear
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.stores import Lease, Settlement
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock

HOUR = 3_600_000
PEOPLE, WORDS = 6, 60
ARRIVING_MILLIS, RUN_MILLIS = HOUR, 6 * HOUR
POLL_MILLIS = 20_000
POLICY = of.RetryPolicy(longest_millis=120_000, pause_millis=60_000)
HANDLE = calls(1)[0]

# What the vendor answers, how often, and whether it has taken it.
ANSWERS: Sequence[tuple[int, Result, bool]] = (
    (55, Success(), True),
    (12, Unclear("no answer (ReadTimeout)"), True),
    (8, Unclear("HTTP 502"), False),
    (15, RetryableFailure("HTTP 429", retry_after_millis=20_000), False),
    (5, RetryableFailure("no connection (ConnectError)"), False),
    (3, PauseDestination("HTTP 401"), False),
    (2, PermanentFailure("HTTP 422"), False),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request at the vendor: which revision of whose judgement, from whom, and whether its lease had run out."""

    at_millis: int
    worker: int
    id: str
    revision: int
    is_late: bool
    is_taken: bool


@dataclass(slots=True)
class Seen:
    """What happened in one run."""

    requests: list[Request] = field(default_factory=list)
    # By destination and sequence: the fence of the newest lease.
    fences: dict[tuple[str, int], int] = field(default_factory=dict)
    # By worker, id and revision: how often it was leased.
    leased: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    # Leases that were settled although another one was newer.
    settled_late: list[Lease] = field(default_factory=list)
    recorded: Counter[str] = field(default_factory=Counter)
    states: dict[str, str] = field(default_factory=dict)
    stats: Any = None

    def steps_back(self) -> list[Request]:
        """Answer the requests that came after one for a newer revision."""
        newest: dict[str, int] = defaultdict(int)
        found = []
        for request in self.requests:
            if request.revision < newest[request.id]:
                found.append(request)
            newest[request.id] = max(newest[request.id], request.revision)
        return found

    def newest_taken(self) -> dict[str, int]:
        """Answer the newest revision of each judgement that the vendor has taken."""
        taken: dict[str, int] = {}
        for request in self.requests:
            if request.is_taken:
                taken[request.id] = max(taken.get(request.id, 0), request.revision)
        return taken


class View:
    """One worker's view of the store: it notes leases, and stalls where chance says so; the rest is the store's.

    Args:
        store: which all workers share.

        simulation: whose time it is.

        worker: whose view it is.

        seen: where it is noted.

        stall_millis: how long the worker stalls before it sends, and before it settles.
    """

    def __init__(
        self, store: Any, simulation: Simulation, worker: int, seen: Seen, stall_millis: Callable[[str], int]
    ) -> None:
        self._store = store
        self._simulation = simulation
        self._worker = worker
        self._seen = seen
        self._stall_millis = stall_millis
        self.expires: dict[tuple[str, int], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def lease(self, destination: str, **how: Any) -> Sequence[Lease]:
        leases: Sequence[Lease] = self._store.lease(destination, **how)
        for lease in leases:
            said = lease.record.id, lease.record.revision
            self.expires[said] = lease.expires_at_unix_nano
            self._seen.fences[destination, lease.sequence] = lease.fence
            self._seen.leased[(self._worker, *said)] += 1
        if leases:
            self._simulation.sleep(self._stall_millis("send"))
        return leases

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        return self.settle_many([(lease, settlement)])[0]

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> list[bool]:
        self._simulation.sleep(self._stall_millis("settle"))
        taken = [self._store.settle(*ending) for ending in endings]
        self._seen.settled_late += [
            lease
            for (lease, _), is_taken in zip(endings, taken, strict=True)
            if is_taken and self._seen.fences[lease.destination, lease.sequence] != lease.fence
        ]
        return taken


class Script:
    """The vendor, and the exporter to it: one part each, answered by chance after a while.

    Args:
        view: the worker's view, which knows when its leases run out.

        answer: what the vendor answers, and whether it has taken it.

        travel_millis: how long a request takes to it, and the answer back.
    """

    name = "vendor"

    def __init__(
        self,
        view: View,
        simulation: Simulation,
        worker: int,
        seen: Seen,
        *,
        answer: Callable[[], tuple[Result, bool]],
        travel_millis: Callable[[], int],
    ) -> None:
        self._view = view
        self._simulation = simulation
        self._worker = worker
        self._seen = seen
        self._answer = answer
        self._travel_millis = travel_millis

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [Part(record=record, kind="value", body={"value": record.value}, carries=frozenset({"value"}))]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        return [self._send(part.record) for part in parts]

    def _send(self, record: FeedbackRecord) -> Result:
        self._simulation.sleep(self._travel_millis())
        result, is_taken = self._answer()
        is_late = self._simulation.clock.time_unix_nano() >= self._view.expires[record.id, record.revision]
        self._seen.requests.append(
            Request(self._simulation.now_millis, self._worker, record.id, record.revision, is_late, is_taken)
        )
        self._simulation.sleep(self._travel_millis())
        return result


@dataclass(frozen=True, slots=True)
class Storm:
    """One run.

    `stall_in_a_hundred` says how often a worker stalls before it sends and before it settles, for up to three leases.
    """

    seed: int
    workers: int = 1
    stall_in_a_hundred: Mapping[str, int] = field(default_factory=dict)
    make_store: Callable[..., MemoryStore] = MemoryStore

    def run(self) -> Seen:
        """Let people judge and change their minds, and workers deliver it."""
        rng = random.Random(self.seed)
        clock, seen = FakeClock(), Seen()
        simulation = Simulation(clock)
        store = self.make_store(clock=clock)
        simulation.spawn(lambda: _arrive(simulation, store, seen, random.Random(self.seed + 1)))
        for worker in range(self.workers):
            view = View(store, simulation, worker, seen, lambda where: self._stall_millis(rng, where))
            script = Script(
                view,
                simulation,
                worker,
                seen,
                answer=lambda: rng.choices([each[1:] for each in ANSWERS], [each[0] for each in ANSWERS])[0],
                travel_millis=lambda: rng.choice((5, 50, 5_000)),
            )
            deliver(simulation, view, script, clock, rng)
        simulation.run(RUN_MILLIS)
        seen.states = {each: store.status(each)["vendor"].state for each in seen.recorded}
        seen.stats = store.stats()["vendor"]
        return seen

    def _stall_millis(self, rng: random.Random, where: str) -> int:
        if rng.randrange(100) >= self.stall_in_a_hundred.get(where, 0):
            return 0
        return rng.randrange(3 * LEASE_MILLIS)


def deliver(simulation: Simulation, view: View, script: Script, clock: FakeClock, rng: random.Random) -> None:
    """Start one worker."""
    SimulatedDelivery(
        simulation, deliverer_of(view, script, policy=POLICY, clock=clock, rng=rng), poll_millis=POLL_MILLIS
    )


def word(person: int, number: int) -> FeedbackRecord:
    """Make what one person says, and nobody has said before."""
    judgement = f"00000000-0000-8000-8000-{person:012}"
    return FeedbackRecord(id=judgement, handle=HANDLE, name="quality", value=number / 1_000, user_id=f"{person}")


def _arrive(simulation: Simulation, store: MemoryStore, seen: Seen, rng: random.Random) -> None:
    """Record the words of several people on one span."""
    for number, moment in enumerate(sorted(rng.randrange(ARRIVING_MILLIS) for _ in range(WORDS))):
        simulation.sleep(moment - simulation.now_millis)
        said = word(rng.randrange(PEOPLE), number)
        store.put(said, ["vendor"])
        seen.recorded[said.id] += 1


class NoFence(MemoryStore):
    """A store with a seeded bug: whoever settles is taken for the one with the newest lease."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._fences: dict[tuple[str, int], int] = {}

    def lease(self, destination: str, **how: Any) -> Sequence[Lease]:
        leases = super().lease(destination, **how)
        self._fences |= {(destination, lease.sequence): lease.fence for lease in leases}
        return leases

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        fence = self._fences[lease.destination, lease.sequence]
        return super().settle(replace(lease, fence=fence), settlement)


def assert_all_arrived(seen: Seen) -> None:
    """Check what holds in every run: all is accounted for, and of each judgement the newest word has arrived."""
    newest = {each: count - 1 for each, count in seen.recorded.items()}
    delivered = {each: revision for each, revision in newest.items() if seen.states[each] == "delivered"}
    assert seen.stats.is_conserved
    assert (WORDS, 0) == (seen.stats.recorded, seen.stats.pending)
    # A word is superseded by its own judgement's next one only, so that the last one of each is delivered, or refused.
    assert {"delivered", "dead"} >= set(seen.states.values())
    assert delivered.items() <= seen.newest_taken().items()


SEEDS = range(12)
# A seeded bug may need more of them to show.
BUG_SEEDS = range(24)
MANY_SEEDS = range(1_000, 1_400)


def check_one_worker(seed: int) -> None:
    """Run a storm over one worker that keeps within its leases."""
    seen = Storm(seed).run()

    assert_all_arrived(seen)
    assert [] == seen.steps_back()


def check_several_workers(seed: int) -> None:
    """Run a storm over three workers that stall."""
    seen = Storm(seed, workers=3, stall_in_a_hundred={"send": 10, "settle": 10}).run()

    sent = Counter((request.worker, request.id, request.revision) for request in seen.requests)
    assert_all_arrived(seen)
    assert [] == [request for request in seen.steps_back() if not request.is_late]
    assert [] == seen.settled_late
    assert all(count <= seen.leased[key] for key, count in sent.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_of_retries_keeps_the_order_of_every_judgement(seed: int):
    """
    With one worker no request goes back to an older revision, and the newest of each judgement arrives.
    """
    check_one_worker(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_that_stall_settle_nothing_and_go_back_only_when_late(seed: int):
    """
    With three workers that stall for up to three leases, what goes back was sent after its lease had run out.
    """
    check_several_workers(seed)


@pytest.mark.chaos
def test_four_hundred_storms_keep_the_order():
    """
    The same for many more seeds, with one worker and with three.
    """
    for seed in MANY_SEEDS:
        check_one_worker(seed)
        check_several_workers(seed)


def test_workers_that_stall_before_they_settle_do_not_go_back():
    """
    A stall after the send is harmless: what was sent was sent in time, and the next worker sends it again.
    """
    runs = [Storm(seed, workers=3, stall_in_a_hundred={"settle": 20}).run() for seed in SEEDS]

    assert [] == [request for seen in runs for request in seen.steps_back()]


# Fails on code whose deliverer sends what it has leased without asking whether the lease still holds.
def test_workers_that_stall_before_they_send_do_not_go_back():
    """
    A worker whose lease ran out before it sent anything sends nothing.
    """
    runs = [Storm(seed, workers=3, stall_in_a_hundred={"send": 20}).run() for seed in SEEDS]

    assert [] == [request for seen in runs for request in seen.steps_back()]


def test_a_store_without_fences_would_be_found():
    """
    Where a late worker settles what another has taken over, that is seen, and so is a request within its lease that
    goes back.
    """
    runs = [
        Storm(seed, workers=3, stall_in_a_hundred={"send": 20, "settle": 30}, make_store=NoFence).run()
        for seed in BUG_SEEDS
    ]

    assert [] != [lease for seen in runs for lease in seen.settled_late]
    assert [] != [request for seen in runs for request in seen.steps_back() if not request.is_late]


def test_a_slow_vendor_gets_a_backlog_from_two_workers():
    """
    At a vendor that takes four seconds for each request a hundred judgements are delivered within two hours.
    """
    clock, seen = FakeClock(), Seen()
    simulation = Simulation(clock)
    store = MemoryStore(clock=clock)
    for person in range(100):
        store.put(word(person, person), ["vendor"])
    for worker in range(2):
        view = View(store, simulation, worker, seen, lambda _: 0)
        script = Script(view, simulation, worker, seen, answer=lambda: (Success(), True), travel_millis=lambda: 2_000)
        deliver(simulation, view, script, clock, random.Random(worker))
    simulation.run(2 * HOUR)

    sent = Counter(request.id for request in seen.requests)
    assert (100, 100) == (store.stats()["vendor"].delivered, len(sent))
    assert 2 >= max(sent.values())


# Fails on code that settles as an attempt what it has not tried after a failure: it then waits longer each time.
def test_what_was_not_tried_was_no_attempt():
    """
    Where the first of ten requests finds nobody, the other nine are no attempts: they wait no longer for it.
    """
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for person in range(10):
        store.put(replace(word(person, person), value=True, name="rating"), ["orq"])
    options = HTTPOptions(transport=httpx.MockTransport(nobody), clock=clock)
    with_orq = of.OrqExporter("key", base_url="http://127.0.0.1", options=options)
    deliverer_of(store, with_orq, policy=POLICY, clock=clock, rng=random.Random(1)).run_once()
    with_orq.shutdown()

    assert [1] + [0] * 9 == [store.status(word(person, 0).id)["orq"].attempts for person in range(10)]


def nobody(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")
