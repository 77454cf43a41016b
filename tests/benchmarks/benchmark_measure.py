"""The measure: two ways of doing the same work, side by side in one process, and the ratio of what they cost.

pytest-benchmark and pyperf time one thing after the other and compare the summaries. On a shared machine the second
thing then meets another machine than the first, and a difference of two per cent is lost in that. Here both sides take
turns in rounds of about a millisecond, each round of ours is divided by the round of the other side next to it, and
only those ratios are summed up: what disturbs a pair disturbs both of its sides. That is all there is to it, and less
than what it takes to teach it to a library.

Nothing here knows what is measured: a side is any coroutine function that takes the keys of its calls. Sides that wait
for nothing are coroutine functions too, so that the same lines time them all. The garbage collector stays as it is.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

# Does one call for each key, and answers what the last one did.
Side = Callable[[Sequence[str]], Awaitable[object]]
Clock = Callable[[], int]

# Short enough that few rounds are interrupted, and so long that looking at the clocks is a thousandth of it.
ROUND_NANOS = 1_000_000
# What a thread of ours has to do comes in groups, so it shows in rounds that are longer than the time between two.
WHOLE_ROUND_NANOS = 40_000_000
# Fewer pairs have no quartiles worth the name; each order is taken as often as the other.
MIN_PAIRS = 6
WARM_UP_ROUNDS = 3

# What the caller waits for, and what of that its own thread computes: another thread may hold the interpreter.
CALLER_CLOCKS: Sequence[Clock] = (time.perf_counter_ns, time.thread_time_ns)
# What all threads compute.
PROCESS_CLOCKS: Sequence[Clock] = (time.process_time_ns,)

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles around it."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        """Show it as in the table."""
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The ratios of many pairs by each clock, and what a plain call took by the first of them."""

    ratios: Sequence[Spread]
    plain_nanos: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What ours costs, in units of what the plain side costs."""

    # What one plain call takes; only told, never judged.
    plain_micros: float
    wall: Spread
    caller: Spread
    process: Spread


async def measure(ours: Side, plain: Side, *, settle: Side, seconds: float) -> Measured:
    """Measure two sides: half of the time for what the caller pays, half for what the whole process pays.

    Args:
        ours: what is measured.

        plain: what it is measured by.

        settle: does what ours has left to its threads; the whole process's rounds of ours include it.

        seconds: how long it may take, roughly.
    """

    async def settled(keys: Sequence[str]) -> None:
        await ours(keys)
        await settle(keys)

    for _ in range(WARM_UP_ROUNDS):
        await settled(fresh_keys(100))
        await plain(fresh_keys(100))
    (nanos,) = await cost(plain, fresh_keys(100), CALLER_CLOCKS[:1])
    short, long = (max(1, 100 * each // nanos) for each in (ROUND_NANOS, WHOLE_ROUND_NANOS))
    by_caller = await paired(ours, plain, CALLER_CLOCKS, calls=short, until=_deadline(seconds / 2))
    await settle(())
    by_process = await paired(settled, plain, PROCESS_CLOCKS, calls=long, until=_deadline(seconds / 2))
    return Measured(by_caller.plain_nanos / 1_000, *by_caller.ratios, *by_process.ratios)


async def paired(ours: Side, plain: Side, clocks: Sequence[Clock], *, calls: int, until: Callable[[], bool]) -> Pairs:
    """Run pairs of rounds until told to stop, now the one side first and now the other, and sum up."""
    ratios: list[list[float]] = []
    plain_nanos: list[float] = []
    while len(ratios) < MIN_PAIRS or len(ratios) % 2 or not until():
        # Both sides get keys of the same length, made before the clocks are looked at.
        of_ours, of_plain = fresh_keys(calls), fresh_keys(calls)
        if len(ratios) % 2:
            above, below = await cost(ours, of_ours, clocks), await cost(plain, of_plain, clocks)
        else:
            below, above = await cost(plain, of_plain, clocks), await cost(ours, of_ours, clocks)
        ratios.append([one / other for one, other in zip(above, below, strict=True)])
        plain_nanos.append(below[0] / calls)
    spreads = [Spread(*statistics.quantiles(each, n=4)) for each in zip(*ratios, strict=True)]
    return Pairs(spreads, statistics.median(plain_nanos))


async def cost(side: Side, keys: Sequence[str], clocks: Sequence[Clock]) -> list[int]:
    """Tell what one round costs, by each clock."""
    before = [clock() for clock in clocks]
    await side(keys)
    return [clock() - start for clock, start in zip(clocks, before, strict=True)]


def fresh_keys(count: int) -> list[str]:
    """Make keys that no round had before, as messages have."""
    return [f"msg-{number:012}" for number in itertools.islice(_numbers, count)]


def _deadline(seconds: float) -> Callable[[], bool]:
    """Tell when a time is over that begins now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
