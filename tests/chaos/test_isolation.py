"""One vendor down for the whole run: the others' records leave at exactly the times at which they leave without it.

Time is simulated (`simulation.py`): each destination is a thread, as in `FeedbackProvider`, with one store between
them; requests go through the real exporters to vendors that answer after a while of simulated time. At the two healthy
vendors every request is noted with its time and the ids in it. What is compared is all of that, to the millisecond.

Each destination draws its jitter from a chance of its own: with one for all, as `SystemRandom` is, the draws for one
would be others for the next, which is no waiting but could not be compared.

Seeded bug: destinations that share a lock, so that one waits for another's request, are found.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_world import VENDORS, calls
from simulation import Lock, SimulatedDelivery, Simulation, deliverer_of

import otel_feedback as of
from otel_feedback._deliver import Deliverer
from otel_feedback._record import FeedbackRecord
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

MINUTE = 60_000
ARRIVALS = 40
# Records arrive within the first minute; the rest is for retries. The threads poll twice a second meanwhile.
ARRIVING_MILLIS, RUN_MILLIS = MINUTE, 3 * MINUTE
TIMEOUT_MILLIS = 10_000
POLICY = of.RetryPolicy(longest_millis=5_000)
PROJECT_ID = "6f1a3f0e-0000-4000-8000-000000000001"

# When a request came, what was in it, and what was answered.
Sent = tuple[int, tuple[str, ...], int]
Behaviour = Callable[["Vendor"], httpx.Response]


class Vendor(httpx.BaseTransport):
    """One vendor in simulated time, and the line to it.

    Args:
        name: whose chance it is.

        simulation: whose time it is.

        behaviour: what it does with a request.
    """

    def __init__(self, name: str, simulation: Simulation, behaviour: Behaviour) -> None:
        self.simulation = simulation
        self.behaviour = behaviour
        self.rng = random.Random(name)
        self.sent: list[Sent] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        came_at, ids = self.simulation.now_millis, ids_of(json.loads(request.content))
        status = 0
        try:
            response = self.behaviour(self)
            status = response.status_code
        finally:
            self.sent.append((came_at, ids, status))
        return response


def ids_of(body: Any) -> tuple[str, ...]:
    """Read the ids of judgements from a request."""
    return tuple(item["metadata"]["feedback_id"] for item in body["feedback"]) if "feedback" in body else (body["id"],)


def healthy(vendor: Vendor) -> httpx.Response:
    """Answer after a while, and fail now and then as everybody does."""
    vendor.simulation.sleep(vendor.rng.randint(50, 400))
    return httpx.Response(vendor.rng.choices((200, 503, 429), (85, 10, 5))[0], headers={"retry-after": "2"})


def refusing(_: Vendor) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def hanging(vendor: Vendor) -> httpx.Response:
    vendor.simulation.sleep(TIMEOUT_MILLIS)
    raise httpx.ReadTimeout("nothing came")


def unauthorized(vendor: Vendor) -> httpx.Response:
    vendor.simulation.sleep(30)
    return httpx.Response(401)


def busy_for_an_hour(vendor: Vendor) -> httpx.Response:
    vendor.simulation.sleep(30)
    return httpx.Response(429, headers={"retry-after": "3600"})


DOWN: Mapping[str, Behaviour] = {
    "refusing": refusing,
    "hanging": hanging,
    "401": unauthorized,
    "429-for-an-hour": busy_for_an_hour,
}
StoreMaker = Callable[[FakeClock], of.Store]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreMaker]:
    """Make stores that know the simulated time; each is empty."""
    made: list[of.Store] = []

    def make(clock: FakeClock) -> of.Store:
        file = SQLiteStore(tmp_path / f"{len(made)}.db", durability="process", clock=clock)
        made.append(of.MemoryStore(clock=clock) if request.param == "memory" else file)
        return made[-1]

    yield make
    for each in made:
        each.close()


@dataclass(frozen=True, slots=True)
class Run:
    """What one simulated run came to: the requests at each vendor, and the accounts."""

    sent: Mapping[str, list[Sent]]
    stats: Mapping[str, Any]

    def without(self, down: str) -> dict[str, list[Sent]]:
        """Answer the requests at the other vendors."""
        return {name: sent for name, sent in self.sent.items() if name != down}


def simulate(
    make_store: StoreMaker,
    behaviours: Mapping[str, Behaviour],
    delivery: Callable[[Simulation, Deliverer], SimulatedDelivery] = SimulatedDelivery,
) -> Run:
    """Let records arrive and three destinations deliver them; the vendors that are not named are healthy."""
    clock = FakeClock()
    simulation = Simulation(clock)
    store = make_store(clock)
    vendors = {name: Vendor(name, simulation, behaviours.get(name, healthy)) for name in VENDORS}
    threads: list[SimulatedDelivery] = []
    simulation.spawn(lambda: _arrive(simulation, store, threads))  # made first: at one moment, it comes first
    for exporter in _exporters(vendors, clock):
        deliverer = deliverer_of(store, exporter, policy=POLICY, clock=clock, rng=random.Random(exporter.name))
        threads.append(delivery(simulation, deliverer))
    simulation.run(RUN_MILLIS)
    return Run({name: vendor.sent for name, vendor in vendors.items()}, store.stats())


def _arrive(simulation: Simulation, store: of.Store, threads: list[SimulatedDelivery]) -> None:
    """Record judgements by a schedule, and wake the destinations, as `FeedbackProvider.record` does."""
    rng = random.Random(7)
    moments = sorted(rng.randrange(ARRIVING_MILLIS) for _ in range(ARRIVALS))
    for number, (moment, handle) in enumerate(zip(moments, calls(ARRIVALS), strict=True), 1):
        simulation.sleep(moment - simulation.now_millis)
        now = simulation.clock.time_unix_nano()
        judgement = f"00000000-0000-7000-8000-{number:012}"
        store.put(
            FeedbackRecord(id=judgement, handle=handle, name="rating", value=True, recorded_at_unix_nano=now), VENDORS
        )
        for thread in threads:
            thread.wake()


def _exporters(vendors: Mapping[str, Vendor], clock: FakeClock) -> list[Any]:
    """Make the three exporters, each with its line."""
    options = {
        name: HTTPOptions(timeout_millis=TIMEOUT_MILLIS, transport=vendor, clock=clock)
        for name, vendor in vendors.items()
    }
    return [
        of.OrqExporter("key", base_url="http://127.0.0.1", options=options["orq"]),
        of.BraintrustExporter(
            f"project_id:{PROJECT_ID}", api_key="key", base_url="http://127.0.0.1", options=options["braintrust"]
        ),
        of.WeaveExporter("acme/chat", api_key="key", base_url="http://127.0.0.1", options=options["weave"]),
    ]


@pytest.mark.parametrize("behaviour", DOWN.values(), ids=DOWN.keys())
@pytest.mark.parametrize("down", VENDORS)
def test_what_one_vendor_does_changes_nothing_at_the_others(make_store: StoreMaker, down: str, behaviour: Behaviour):
    """
    With one vendor down for the whole run every request to the others is made at the same millisecond as without.
    """
    without = simulate(make_store, {})
    run = simulate(make_store, {down: behaviour})

    assert without.without(down) == run.without(down)
    assert {name: ARRIVALS for name in VENDORS if name != down} == {
        name: run.stats[name].delivered for name in VENDORS if name != down
    }
    assert (0, ARRIVALS) == (run.stats[down].delivered, run.stats[down].pending)
    assert all(stats.is_conserved for stats in run.stats.values())


def test_a_simulated_run_is_the_same_each_time(make_store: StoreMaker):
    """
    Two runs come to the same requests at the same times: what differs above is not chance.
    """
    first = simulate(make_store, {})

    assert first == simulate(make_store, {})
    assert dict.fromkeys(VENDORS, ARRIVALS) == {name: stats.delivered for name, stats in first.stats.items()}


def test_destinations_that_share_a_lock_would_be_found(make_store: StoreMaker):
    """
    Where one destination's request keeps another's waiting, the others' times are no longer the same.
    """
    runs = [simulate(make_store, behaviours, sharing_a_lock()) for behaviours in ({}, {"weave": hanging})]

    assert runs[0].without("weave") != runs[1].without("weave")


def sharing_a_lock() -> type[SimulatedDelivery]:
    """Answer how to drive destinations with a seeded bug: one round at a time, over all of them."""
    locks: dict[Simulation, Lock] = {}

    class Sharing(SimulatedDelivery):
        def run_once(self) -> Any:
            with locks.setdefault(self.simulation, Lock(self.simulation)):
                return super().run_once()

    return Sharing
