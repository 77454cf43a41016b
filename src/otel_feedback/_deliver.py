"""Deliver: lease what is due, export it, settle it. `run_once()` is the unit; a thread or a pump calls it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from otel_feedback._retry import Done, GiveUp, RetryAt, RetryPolicy
from otel_feedback._time import LATEST_UNIX_NANO, NANOS_PER_MILLI
from otel_feedback.exceptions import FeedbackError
from otel_feedback.exporters import (
    PauseDestination,
    Result,
    RetryableFailure,
    Success,
    Unclear,
    changes,
    parts_of,
    where,
)
from otel_feedback.stores import Lease, PartState, Settlement

if TYPE_CHECKING:
    from random import Random

    from otel_feedback._handle import FeedbackHandle
    from otel_feedback._record import Part
    from otel_feedback._retry import Decision
    from otel_feedback._time import Clock
    from otel_feedback.exporters import FeedbackExporter
    from otel_feedback.stores import Event, Outbox

logger = logging.getLogger(__name__)

# Braintrust's largest batch; the others get one part a request.
BATCH_RECORDS = 100
# Longer than a batch of single posts takes at a vendor that answers within a second.
LEASE_MILLIS = 300_000
# How often a thread looks for what other processes have recorded.
POLL_MILLIS = 500


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: how many records it leased, and whether the destination failed."""

    leased: int = 0
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done for one lease: the parts to send now, and when the held ones may go."""

    lease: Lease
    parts: Mapping[str, Part] = field(default_factory=dict)
    held_until_unix_nano: int | None = None
    # Why there is nothing to send, or why it cannot be said what to send.
    idle_reason: str | None = None
    broken_reason: str | None = None


# --- decisions, pure ---------------------------------------------------------------------------------------------


def standing_parts(lease: Lease, exporter: FeedbackExporter) -> dict[str, Part]:
    """Tell what the destination may have of the earlier revisions of a judgement, by kind of part."""
    standing: dict[str, Part] = {}
    for revision in lease.earlier:
        said = parts_of(exporter, revision.record)
        for kind, part in revision.parts.items():
            if part.state in ("delivered", "unclear") and kind in said:
                standing[kind] = said[kind]
            elif part.state == "delivered":  # what was delivered of something unsaid is that it was taken back
                standing.pop(kind, None)
    return standing


def unclear_kinds(lease: Lease) -> frozenset[str]:
    """Name the parts of earlier revisions of which it is not known whether the destination has them as they were."""
    last = {
        kind: part.state
        for revision in lease.earlier
        for kind, part in revision.parts.items()
        if part.state in ("delivered", "unclear")
    }
    return frozenset(kind for kind, state in last.items() if state == "unclear")


def plan(lease: Lease, exporter: FeedbackExporter, *, now: int, is_released: Callable[[FeedbackHandle], bool]) -> Work:
    """Decide what one lease asks for."""
    wanted = parts_of(exporter, lease.record)
    standing = standing_parts(lease, exporter)
    # What may not have arrived is said again, even where it is the same.
    unclear = unclear_kinds(lease)
    again = {
        kind: replace(part, action="replace", replaces=standing.get(kind))
        for kind, part in wanted.items()
        if kind in unclear
    }
    todo = {
        kind: part
        for kind, part in {**again, **changes(lease.record, wanted, standing)}.items()
        if kind not in lease.parts or lease.parts[kind].state == "unclear"
    }
    held = {
        kind: part
        for kind, part in todo.items()
        if part.not_before_unix_nano > now and not is_released(lease.record.handle)
    }
    return Work(
        lease,
        parts={kind: part for kind, part in todo.items() if kind not in held},
        held_until_unix_nano=min((part.not_before_unix_nano for part in held.values()), default=None),
        idle_reason=None if todo else _why_idle(lease, has_standing=bool(standing), exporter=exporter),
    )


def _why_idle(lease: Lease, *, has_standing: bool, exporter: FeedbackExporter) -> str:
    """Say why there is nothing to send."""
    if has_standing:
        return "nothing changed since the judgement before"
    if lease.record.retracts:
        return "there was nothing to take back"
    return f"{exporter.name} can carry nothing of it"


def settlement_of(work: Work, decisions: Mapping[str, Decision]) -> Settlement:
    """Turn the decisions on the parts of one lease into its end."""
    if work.broken_reason is not None:
        return Settlement("bury", work.lease.parts, reason=work.broken_reason)
    parts = dict(work.lease.parts)
    for kind, decision in decisions.items():
        if (state := _part_state(decision)) is not None:
            parts[kind] = state
    again = [decision for decision in decisions.values() if isinstance(decision, RetryAt)]
    if again or work.held_until_unix_nano is not None:
        dues = [decision.due_unix_nano for decision in again]
        if work.held_until_unix_nano is not None:
            dues.append(work.held_until_unix_nano)
        return Settlement(
            "retry",
            parts,
            reason=again[0].reason if again else "held until the span has arrived",
            due_unix_nano=min(*dues, LATEST_UNIX_NANO),
            counts=any(decision.counts for decision in again),
            held=not again,
        )
    return _final(work, parts)


def _final(work: Work, parts: Mapping[str, PartState]) -> Settlement:
    """End a lease whose parts are all settled: one dead part makes it dead, else one delivered part delivered."""
    if not parts:
        return Settlement(
            "retract" if work.lease.record.retracts else "skip", parts, reason=work.idle_reason, counts=False
        )
    states = {part.state for part in parts.values()}
    reasons = [f"{kind}: {part.reason}" if len(parts) > 1 else part.reason for kind, part in parts.items()]
    done: Literal["retract", "deliver"] = "retract" if work.lease.record.retracts else "deliver"
    event: Event = "bury" if "dead" in states else done if "delivered" in states else "skip"
    return Settlement(event, parts, reason="; ".join(reason for reason in reasons if reason))


def _part_state(decision: Decision) -> PartState | None:
    """Turn a decision into what is kept of the part; a plain retry keeps nothing."""
    if isinstance(decision, Done):
        return PartState(decision.state, decision.reason)
    if isinstance(decision, GiveUp):
        return PartState("dead", decision.reason)
    return PartState("unclear", decision.reason) if decision.unclear else None


# --- the engine --------------------------------------------------------------------------------------------------


class Deliverer:
    """Delivers to one destination.

    Args:
        outbox: where the records are.

        exporter: the destination.

        policy: when to try again.

        clock: what tells the time.

        rng: where the jitter comes from.

        is_released: whether a span is known to have reached its destination, so that what is held may go.
    """

    def __init__(
        self,
        outbox: Outbox,
        exporter: FeedbackExporter,
        *,
        policy: RetryPolicy,
        clock: Clock,
        rng: Random,
        is_released: Callable[[FeedbackHandle], bool],
    ) -> None:
        self.exporter = exporter
        self._outbox = outbox
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._is_released = is_released
        # One round at a time in this process: who waits for it knows afterwards that nothing is in flight here.
        self._lock = threading.Lock()
        self._is_failing = False
        self._paused_for: str | None = None

    @property
    def name(self) -> str:
        """The destination's name."""
        return self.exporter.name

    def run_once(self, *, timeout_millis: int | None = None) -> Round:
        """Deliver one batch of what is due; it has failed where another round goes on longer than the timeout."""
        seconds = -1 if timeout_millis is None else min(timeout_millis / 1_000, threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=seconds):
            return Round(has_failed=True)
        try:
            return self._run_once()
        finally:
            self._lock.release()

    def _run_once(self) -> Round:
        leases = self._outbox.lease(self.name, limit=BATCH_RECORDS, duration_millis=LEASE_MILLIS)
        if not leases:
            return Round()
        work = [self._plan(lease) for lease in leases]
        parts = [part for each in work for part in each.parts.values()]
        results = self._export(parts) if parts else []
        self._pause(results)
        self._settle(work, results)
        self._report(results)
        has_failed = any(isinstance(result, (RetryableFailure, Unclear, PauseDestination)) for result in results)
        return Round(len(leases), has_failed)

    def release(self) -> None:
        """Look at once at everything that is held: the spans that it waits for may have arrived."""
        self._outbox.release(self.name)

    def next_due_millis(self) -> int | None:
        """Say in how many milliseconds something will be due; `None` when nothing waits."""
        due = self._outbox.next_due(self.name)
        return None if due is None else max(0, (due - self._clock.time_unix_nano()) // NANOS_PER_MILLI)

    def _plan(self, lease: Lease) -> Work:
        """Decide what a lease asks for; a record that an exporter cannot read is a dead letter, not the end."""
        try:
            return plan(lease, self.exporter, now=self._clock.time_unix_nano(), is_released=self._is_released)
        except Exception as error:  # noqa: BLE001 (the boundary to the exporter)
            logger.error("%s cannot say what to send for feedback %s: %s", self.name, lease.record.id, where(error))  # noqa: TRY400 (see where)
            return Work(lease, broken_reason=f"the exporter failed ({type(error).__name__})")

    def _export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Export, and take what an exporter raises, or leaves unsaid, as unclear."""
        try:
            results = list(self.exporter.export(parts))
        except Exception as error:  # noqa: BLE001 (the boundary to the exporter)
            logger.error("the exporter %s raised %s", self.name, where(error))  # noqa: TRY400 (see where)
            return [Unclear(f"the exporter raised {type(error).__name__}")] * len(parts)
        if len(results) != len(parts):
            return [Unclear(f"the exporter answered {len(results)} results for {len(parts)} parts")] * len(parts)
        return [
            result
            if _is_result(result)
            else Unclear(f"the exporter answered with a {type(result).__name__}, which is no result")
            for result in results
        ]

    def _pause(self, results: Sequence[Result]) -> None:
        """Pause the destination where a result asks for it, and say so once for each reason."""
        reason = next((result.reason for result in results if isinstance(result, PauseDestination)), None)
        if reason is None:
            return
        until = self._clock.time_unix_nano() + self._policy.pause_millis * NANOS_PER_MILLI
        self._outbox.pause(self.name, reason=reason, until_unix_nano=until)
        if reason != self._paused_for:
            logger.error("%s is paused, nothing is lost: %s", self.name, reason)
        self._paused_for = reason

    def _settle(self, work: Sequence[Work], results: Sequence[Result]) -> None:
        """Decide on every part and end every lease."""
        now = self._clock.time_unix_nano()
        upcoming = iter(results)
        for each in work:
            decisions = {
                kind: self._policy.decide(
                    next(upcoming),
                    attempt=each.lease.attempts,
                    now=now,
                    accepted_at=each.lease.accepted_at_unix_nano,
                    rng=self._rng,
                )
                for kind in each.parts
            }
            settlement = settlement_of(each, decisions)
            if settlement.event == "bury":
                logger.error("feedback %s is dead at %s: %s", each.lease.record.id, self.name, settlement.reason)
            if not self._outbox.settle(each.lease, settlement):
                logger.warning("feedback %s at %s was taken over by another worker", each.lease.record.id, self.name)

    def _report(self, results: Sequence[Result]) -> None:
        """Say once that a destination fails, and once that it is back."""
        failed = [result for result in results if isinstance(result, (RetryableFailure, Unclear))]
        if failed and not self._is_failing:
            self._is_failing = True
            logger.warning("%s: %d parts wait and are tried again: %s", self.name, len(failed), failed[0].reason)
        is_back = all(isinstance(result, Success) for result in results) and bool(results)
        if is_back and (self._is_failing or self._paused_for is not None):
            self._is_failing, self._paused_for = False, None
            logger.warning("%s delivers again", self.name)


def _is_result(result: object) -> bool:
    """Tell whether an exporter's answer is a result that can be decided on."""
    waits = (getattr(result, name, None) for name in ("retry_after_millis", "give_up_after_millis"))
    return isinstance(result, Result) and all(wait is None or type(wait) is int for wait in waits)


def _why(error: Exception) -> str:
    """Tell of an error: ours in its own words, a foreign one without them."""
    return str(error) if isinstance(error, FeedbackError) else where(error)


def drain(deliverer: Deliverer, *, deadline_nano: int, clock: Clock) -> None:
    """Make one pass over what is due: until nothing is, the destination fails, or time is up."""
    while (left := deadline_nano - clock.monotonic_nano()) > 0:
        done = deliverer.run_once(timeout_millis=left // NANOS_PER_MILLI)
        if not done.leased or done.has_failed:
            return


class DeliveryThread:
    """Drives one deliverer: at once when something is recorded here, by polling for what others record.

    Args:
        deliverer: what is driven.

        clock: what tells the time.
    """

    def __init__(self, deliverer: Deliverer, *, clock: Clock) -> None:
        self._deliverer = deliverer
        self._clock = clock
        self._woken = threading.Event()
        self._is_stopping = False
        self._has_failed = False
        self._exit_deadline_nano = 0
        self._thread = threading.Thread(target=self._run, name=f"otel-feedback-deliver-{deliverer.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Say that something is due."""
        self._woken.set()

    def stop(self, *, deadline_nano: int) -> None:
        """Ask the thread for a last pass until the deadline; `join` waits for it."""
        self._exit_deadline_nano = deadline_nano
        self._is_stopping = True
        self._woken.set()

    def join(self) -> bool:
        """Wait for the last pass, but not beyond the deadline; a thread that hangs in a request is left behind."""
        left = self._exit_deadline_nano - self._clock.monotonic_nano()
        self._thread.join(max(0.0, left / 1e9))
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Go round until stopped, then once more."""
        while True:
            # Before it is asked whether to stop: a stop that comes later rings again.
            self._woken.clear()
            if self._is_stopping:
                break
            if wait_millis := self._round():
                self._woken.wait(wait_millis / 1_000)
        try:
            drain(self._deliverer, deadline_nano=self._exit_deadline_nano, clock=self._clock)
        except Exception as error:  # noqa: BLE001 (the boundary of the thread)
            logger.warning("%s: what is left stays in the store: %s", self._deliverer.name, _why(error))

    def _round(self) -> int:
        """Make one round; answer how long to wait for the next one."""
        try:
            if self._deliverer.run_once().leased:
                return 0
            due = self._deliverer.next_due_millis()
        except Exception as error:  # noqa: BLE001 (the boundary of the thread: nothing may end delivery for good)
            if not self._has_failed:
                logger.error("%s: delivery fails and is tried again: %s", self._deliverer.name, _why(error))  # noqa: TRY400 (see where)
            self._has_failed = True
            return POLL_MILLIS
        self._has_failed = False
        return POLL_MILLIS if due is None else min(max(due, 1), POLL_MILLIS)
