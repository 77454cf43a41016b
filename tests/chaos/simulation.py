"""Simulated time for code that blocks: threads that run one at a time, each when a fake clock has come to its turn.

What waits in reality (a request, a poll, a stalled process) sleeps here; the simulation then lets the one run that
wakes next, and sets the clock to that moment. So nothing depends on the machine, and an hour costs what happens in it.
Those that wake at the same moment run in the order in which they were made, never in one that depends on the past.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from otel_feedback._deliver import POLL_MILLIS, Deliverer
from otel_feedback.testing import FakeClock

# Real time. Nobody computes this long between two sleeps: who does is blocked by somebody who sleeps.
STUCK_SECONDS = 60
# Simulated time: longer than any run.
LONG_MILLIS = 1_000_000_000


class Ended(BaseException):
    """The simulation is over: unwinds a sleeping thread."""


@dataclass(eq=False, slots=True)
class Actor:
    """One thread in the simulation."""

    rank: int
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    # Of its entries in the queue of turns only the one with this number counts.
    ticket: int = 0
    may_be_woken: bool = False


class Simulation:
    """The queue of turns.

    Args:
        clock: what shows the simulated time.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self._began = clock.monotonic_nano()
        self._turns: list[tuple[int, int, int, Actor]] = []
        self._actors: list[tuple[Actor, threading.Thread]] = []
        self._here = threading.local()
        self._back = threading.Semaphore(0)
        self._is_over = False
        self._failed: BaseException | None = None

    @property
    def now_millis(self) -> int:
        """How long the simulation has gone."""
        return (self.clock.monotonic_nano() - self._began) // 1_000_000

    @property
    def actor(self) -> Actor:
        """The one that asks."""
        actor: Actor = self._here.actor
        return actor

    def spawn(self, what: Callable[[], None], *, at_millis: int = 0) -> Actor:
        """Let something run in a thread of its own, from some time on."""
        actor = Actor(len(self._actors))
        self._actors.append((actor, threading.Thread(target=self._run, args=(actor, what), daemon=True)))
        self._queue(actor, at_millis)
        self._actors[-1][1].start()
        return actor

    def sleep(self, millis: int, *, may_be_woken: bool = False) -> None:
        """Let time pass for the thread that calls."""
        actor = self.actor
        actor.may_be_woken = may_be_woken
        self._queue(actor, self.now_millis + millis)
        self._back.release()
        self._await(actor)
        actor.may_be_woken = False

    def wake(self, actor: Actor) -> None:
        """End a sleep that may be ended."""
        if actor.may_be_woken:
            self._queue(actor, self.now_millis)

    def run(self, until_millis: int) -> None:
        """Go on until some time, then end every thread; raises what one of them has raised."""
        try:
            while self._turns and self._failed is None:
                millis, _, ticket, actor = heapq.heappop(self._turns)
                if ticket != actor.ticket:
                    continue
                if millis > until_millis:
                    break
                self.clock.advance(millis=millis - self.now_millis)
                self._give_turn(actor)
        finally:
            self._end()
        if self._failed is not None:
            raise self._failed

    def _queue(self, actor: Actor, at_millis: int) -> None:
        actor.ticket += 1
        heapq.heappush(self._turns, (at_millis, actor.rank, actor.ticket, actor))

    def _give_turn(self, actor: Actor) -> None:
        actor.turn.release()
        assert self._back.acquire(timeout=STUCK_SECONDS), "blocked by a thread that sleeps in simulated time"

    def _await(self, actor: Actor) -> None:
        if not self._is_over:  # it may have been told already, and the exporter's boundary has caught that
            actor.turn.acquire()
        if self._is_over:
            raise Ended

    def _run(self, actor: Actor, what: Callable[[], None]) -> None:
        self._here.actor = actor
        try:
            self._await(actor)
            what()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again by `run`)
            self._failed = error
        self._back.release()

    def _end(self) -> None:
        self._is_over = True
        for actor, thread in self._actors:
            actor.turn.release()
            thread.join(STUCK_SECONDS)


class Lock:
    """A lock in simulated time."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._is_held = False
        self._waiting: list[Actor] = []

    def __enter__(self) -> None:
        while self._is_held:
            self._waiting.append(self._simulation.actor)
            self._simulation.sleep(LONG_MILLIS, may_be_woken=True)
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False
        while self._waiting:
            self._simulation.wake(self._waiting.pop())


def deliverer_of(store: Any, exporter: Any, *, policy: Any, clock: FakeClock, rng: random.Random) -> Deliverer:
    """Make what delivers to one destination: the one place that knows how a `Deliverer` is made."""
    return Deliverer(store, exporter, policy=policy, clock=clock, rng=rng, is_released=lambda _: False)


class SimulatedDelivery:
    """`DeliveryThread` in simulated time: a round, and where nothing was due a wait until something is, or a wake.

    Args:
        simulation: whose time it is.

        deliverer: what is driven.

        poll_millis: how long it waits at most; a run of hours need not look twice a second.
    """

    def __init__(self, simulation: Simulation, deliverer: Deliverer, *, poll_millis: int = POLL_MILLIS) -> None:
        self.simulation = simulation
        self._deliverer = deliverer
        self._poll_millis = poll_millis
        self._is_woken = False
        self._actor = simulation.spawn(self._go_round)

    def wake(self) -> None:
        """Say that something is due."""
        self._is_woken = True
        self.simulation.wake(self._actor)

    def run_once(self) -> Any:
        """Make one round."""
        return self._deliverer.run_once()

    def _go_round(self) -> None:
        while True:
            self._is_woken = False
            if self.run_once().leased:
                continue
            due = self._deliverer.next_due_millis()
            if not self._is_woken:
                wait_millis = self._poll_millis if due is None else min(max(due, 1), self._poll_millis)
                self.simulation.sleep(wait_millis, may_be_woken=True)
