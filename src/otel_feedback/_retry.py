"""What follows from a result: done, again at some time, or given up. Pure; this file does not know who waits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
)

if TYPE_CHECKING:
    from random import Random

    from otel_feedback.exporters import Result

SECOND_MILLIS = 1_000
MINUTE_MILLIS = 60 * SECOND_MILLIS
HOUR_MILLIS = 60 * MINUTE_MILLIS
DAY_MILLIS = 24 * HOUR_MILLIS


@dataclass(frozen=True, slots=True)
class Done:
    """The part is settled: delivered or skipped."""

    state: Literal["delivered", "skipped"]
    reason: str


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The part is tried again; `unclear` when the vendor may have it already, `counts` when it was an attempt.

    `removed` are the earlier revisions that are gone from the vendor already.
    """

    due_unix_nano: int
    reason: str
    unclear: bool = False
    counts: bool = True
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The part becomes a dead letter; `unclear` when the vendor may have it, `removed` as before another try."""

    reason: str
    unclear: bool = False
    removed: tuple[int, ...] = ()


Decision = Done | RetryAt | GiveUp


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again: full jitter, for days.

    The n-th wait is drawn evenly from 0 to `base_millis` times 2ⁿ, at most `longest_millis` ("full jitter", AWS
    Architecture Blog, "Exponential Backoff And Jitter"). A vendor's `Retry-After` only ever lengthens it, by at most
    `longest_retry_after_millis`. A paused destination is tried again after `pause_millis`.

    Given up is what is older than `give_up_after_millis` and has been tried `give_up_attempts` times: a machine that
    was switched off for a week has tried nothing.
    """

    base_millis: int = SECOND_MILLIS
    longest_millis: int = 15 * MINUTE_MILLIS
    longest_retry_after_millis: int = HOUR_MILLIS
    give_up_after_millis: int = 7 * DAY_MILLIS
    give_up_attempts: int = 10
    pause_millis: int = 5 * MINUTE_MILLIS

    def decide(self, result: Result, *, attempt: int, now: int, accepted_at: int, rng: Random) -> Decision:
        """Decide what follows from a result; what was removed on the way to it is kept.

        Args:
            result: what the exporter answered for one part.

            attempt: how many attempts came before this one.

            now: the time, in Unix nanoseconds.

            accepted_at: when the record was accepted, in Unix nanoseconds.

            rng: where the jitter comes from.
        """
        decision = self._decide(result, attempt=attempt, now=now, accepted_at=accepted_at, rng=rng)
        if isinstance(decision, Done) or isinstance(result, (Success, Skipped)):
            return decision
        return replace(decision, removed=result.removed)

    def _decide(self, result: Result, *, attempt: int, now: int, accepted_at: int, rng: Random) -> Decision:
        """Decide by the kind of result."""
        if isinstance(result, Success):
            return Done("delivered", result.reason)
        if isinstance(result, Skipped):
            return Done("skipped", result.reason)
        if isinstance(result, PermanentFailure):
            return GiveUp(result.reason, unclear=result.may_have_arrived)
        if isinstance(result, PauseDestination):
            return RetryAt(now, result.reason, counts=False)  # it is the destination that waits
        if isinstance(result, RetryableFailure) and not result.is_tried:
            return RetryAt(now + self._wished(result) * NANOS_PER_MILLI, result.reason, counts=False)
        return self._again(result, attempt=attempt, now=now, accepted_at=accepted_at, rng=rng)

    def _again(
        self, result: RetryableFailure | Unclear, *, attempt: int, now: int, accepted_at: int, rng: Random
    ) -> Decision:
        """Choose the next time, or give up when the record is too old for it."""
        limit = self.give_up_after_millis
        if isinstance(result, RetryableFailure) and result.give_up_after_millis is not None:
            limit = min(limit, result.give_up_after_millis)
        if now - accepted_at >= limit * NANOS_PER_MILLI and attempt + 1 >= self.give_up_attempts:
            reason = f"given up after {_duration(limit)}: {result.reason}"
            return GiveUp(reason, unclear=isinstance(result, Unclear))
        # The exponent is bounded because 2ⁿ would be a huge number long before the week is over.
        backoff = min(self.longest_millis, self.base_millis * 2 ** min(attempt, 32))
        wait_millis = max(int(rng.uniform(0, backoff)), self._wished(result))
        return RetryAt(now + wait_millis * NANOS_PER_MILLI, result.reason, unclear=isinstance(result, Unclear))

    def _wished(self, result: RetryableFailure | Unclear) -> int:
        """Say how long the vendor wishes us to wait, as far as it is heard."""
        return min(result.retry_after_millis or 0, self.longest_retry_after_millis)


def _duration(millis: int) -> str:
    """Write a duration as a person would."""
    for unit, length in (("d", DAY_MILLIS), ("h", HOUR_MILLIS), ("min", MINUTE_MILLIS)):
        if millis >= length:
            return f"{millis / length:g} {unit}"
    return f"{millis / SECOND_MILLIS:g} s"
