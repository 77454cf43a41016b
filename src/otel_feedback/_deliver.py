"""Deliver: lease what is due, export it, settle it. `run_once()` is the unit; a thread or a pump calls it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

from otel_feedback._dialects import is_unicode
from otel_feedback._metrics import Metrics, NoOpMetrics
from otel_feedback._retry import GiveUp, RetryAt, RetryPolicy
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import FeedbackError
from otel_feedback.exporters import (
    PauseDestination,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
    changes,
    parts_of,
    where,
)
from otel_feedback.stores import LONGEST_WAIT_MILLIS, PROBE_MILLIS, Lease, PartState, Settlement, Standing

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
# Longer than the longest export of the HTTP exporters, by far.
LEASE_MILLIS = 300_000
# What is left of a lease must be at least this, or nothing is sent any more: an export takes as long at the most.
EXPORT_MILLIS = 150_000
# A round that takes longer takes fewer records the next time, so that it ends before its leases do; the first one
# takes so few that a vendor may need half a minute for each.
LONGEST_ROUND_MILLIS = 60_000
FIRST_ROUND_RECORDS = 10
# So many rounds in a row that got nothing through are no chance: with one request in three failing it would happen once
# in fifty thousand.
BREAKER_ROUNDS = 10
# How often a thread looks for what other processes have recorded.
POLL_MILLIS = 500
# How often what is too old is looked for.
KEEP_MILLIS = 3_600_000

# A destination that fails now and again is told of no more often.
REPORT_MILLIS = 60_000


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: how many records it leased, and whether the destination failed."""

    leased: int = 0
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done for one lease: the parts to send now, and when the held ones may go.

    `said` names the kinds of part that the record has something for; any other kind is taken back. `before` is what had
    become of the parts before this round.
    """

    lease: Lease
    parts: Mapping[str, Part] = field(default_factory=dict)
    said: frozenset[str] = frozenset()
    before: Mapping[str, PartState] = field(default_factory=dict)
    held_until_unix_nano: int | None = None
    # Why there is nothing to send, or why it cannot be said what to send.
    idle_reason: str | None = None
    broken_reason: str | None = None
    # The same, but another try may be able to.
    failure: RetryableFailure | None = None


# --- decisions, pure ---------------------------------------------------------------------------------------------


def standing_parts(lease: Lease, exporter: FeedbackExporter) -> dict[str, Part]:
    """Tell what the destination may have of the earlier revisions of a judgement, by kind of part."""
    said = {kind: parts_of(exporter, standing.record) for kind, standing in lease.standing.items()}
    return {kind: parts[kind] for kind, parts in said.items() if kind in parts}


def plan(lease: Lease, exporter: FeedbackExporter, *, now: int, is_released: Callable[[FeedbackHandle], bool]) -> Work:
    """Decide what one lease asks for."""
    wanted = parts_of(exporter, lease.record)
    standing = standing_parts(lease, exporter)
    # What may not have arrived is said again, even where it is the same.
    again = {
        kind: replace(part, action="replace", replaces=standing.get(kind))
        for kind, part in wanted.items()
        if kind in lease.standing and lease.standing[kind].is_unclear
    }
    changed = changes(lease.record, wanted, standing)
    asked = {
        kind: replace(part, revisions=_left(lease.standing[kind].revisions, lease.parts.get(kind)))
        if kind in lease.standing
        else part
        for kind, part in {**again, **changed}.items()
        if kind not in lease.parts or lease.parts[kind].state == "unclear"
    }
    held = {
        kind: part
        for kind, part in asked.items()
        if part.not_before_unix_nano > now and not is_released(lease.record.handle)
    }
    before = {**_lapsed(lease, asked.keys() - held.keys()), **lease.parts}
    todo = {
        kind: replace(part, may_have_arrived=kind in before or kind not in changed)
        for kind, part in asked.items()
        if kind not in held
    }
    return Work(
        lease,
        parts=todo,
        said=frozenset(wanted),
        before=before,
        held_until_unix_nano=min((part.not_before_unix_nano for part in held.values()), default=None),
        idle_reason=None if asked else _why_idle(lease, has_standing=bool(standing), exporter=exporter),
    )


def _left(revisions: Iterable[int], part: PartState | None) -> tuple[int, ...]:
    """Answer those revisions that no try to send a part has removed yet."""
    return tuple(each for each in revisions if part is None or each not in part.removed)


def _lapsed(lease: Lease, sent: Iterable[str]) -> dict[str, PartState]:
    """Take what a worker may have sent that never said how it ended as unclear."""
    return {kind: PartState("unclear", "a worker ended while it was sent") for kind in sent} if lease.lapsed else {}


def _why_idle(lease: Lease, *, has_standing: bool, exporter: FeedbackExporter) -> str:
    """Say why there is nothing to send."""
    if has_standing:
        return "nothing changed since the judgement before"
    if lease.record.retracts:
        return "there was nothing to take back"
    return f"{exporter.name} can carry nothing of it"


def settlement_of(work: Work, decisions: Mapping[str, Decision], *, now: int) -> Settlement:
    """Turn the decisions on the parts of one lease into its end."""
    if work.broken_reason is not None:
        return Settlement("bury", work.lease.parts, reason=work.broken_reason, standing=_standing_unread(work))
    if work.failure is not None:
        return _after_failure(work, *decisions.values())
    parts = dict(work.before)
    for kind, decision in decisions.items():
        if (state := _part_state(decision, parts.get(kind))) is not None:
            parts[kind] = state
    standing = standing_after(work, parts)
    again = [decision for decision in decisions.values() if isinstance(decision, RetryAt)]
    if again or work.held_until_unix_nano is not None:
        dues = [decision.due_unix_nano for decision in again]
        if work.held_until_unix_nano is not None:
            dues.append(work.held_until_unix_nano)
        return Settlement(
            "retry",
            parts,
            reason=again[0].reason if again else "held until the span has arrived",
            # What has to wait for longer is looked at in between: see `LONGEST_WAIT_MILLIS`.
            due_unix_nano=min(*dues, now + LONGEST_WAIT_MILLIS * NANOS_PER_MILLI),
            counts=any(decision.counts for decision in again),
            held=not again,
            standing=standing,
        )
    return _final(work, parts, standing)


def _after_failure(work: Work, decision: Decision) -> Settlement:
    """End a lease of which it could not be said what to send: nothing has changed but the time."""
    return Settlement(
        "retry" if isinstance(decision, RetryAt) else "bury",
        work.lease.parts,
        reason=decision.reason,
        due_unix_nano=decision.due_unix_nano if isinstance(decision, RetryAt) else 0,
        standing=_standing_unread(work),
    )


def _standing_unread(work: Work) -> dict[str, Standing]:
    """Tell what the destination has, where it cannot be said which kinds a record has something for."""
    parts = work.lease.parts
    return standing_after(replace(work, said=frozenset() if work.lease.record.retracts else frozenset(parts)), parts)


def standing_after(work: Work, parts: Mapping[str, PartState]) -> dict[str, Standing]:
    """Tell what the destination has of the judgement once the parts of a record are as they are."""
    standing = dict(work.lease.standing)
    for kind, part in parts.items():
        is_said = kind in work.said
        if part.state == "delivered" and not is_said:
            standing.pop(kind, None)  # it was taken back
        elif part.state == "delivered":
            standing[kind] = Standing(work.lease.record)
        elif part.may_have_arrived and is_said:
            before = standing[kind].revisions if kind in standing else ()
            standing[kind] = Standing(work.lease.record, is_unclear=True, others=_left(before, part))
        elif part.may_have_arrived and kind in standing:
            standing[kind] = replace(standing[kind], is_unclear=True)
    return standing


def _final(work: Work, parts: Mapping[str, PartState], standing: Mapping[str, Standing]) -> Settlement:
    """End a lease whose parts are all settled: one dead part makes it dead, else one delivered part delivered."""
    if not parts:
        event: Event = "retract" if work.lease.record.retracts else "skip"
        return Settlement(event, parts, reason=work.idle_reason, counts=False, standing=standing)
    states = {part.state for part in parts.values()}
    reasons = [f"{kind}: {part.reason}" if len(parts) > 1 else part.reason for kind, part in parts.items()]
    done: Literal["retract", "deliver"] = "retract" if work.lease.record.retracts else "deliver"
    event = "bury" if "dead" in states else done if "delivered" in states else "skip"
    return Settlement(event, parts, reason="; ".join(reason for reason in reasons if reason), standing=standing)


def _part_state(decision: Decision, before: PartState | None) -> PartState | None:
    """Turn a decision into what is kept of the part; a plain retry keeps what there was.

    Where an earlier revision was removed, it is as unclear what is there as where an answer was lost.
    """
    may_have_arrived = before is not None and before.may_have_arrived
    if isinstance(decision, (RetryAt, GiveUp)):
        is_unclear = decision.unclear or bool(decision.removed)
        removed = tuple(dict.fromkeys([*(before.removed if before else ()), *decision.removed]))
        if isinstance(decision, GiveUp):
            return PartState("dead", decision.reason, may_have_arrived or is_unclear, removed)
        return PartState("unclear", decision.reason, removed=removed) if is_unclear else before
    return PartState(decision.state, decision.reason, may_have_arrived and decision.state == "skipped")


def next_limit(limit: int, *, taken: int, untried: int, took_millis: int, batch_size: int) -> int:
    """Say how many records the next round takes: as many as this one got through, twice as many if that was all."""
    if took_millis > LONGEST_ROUND_MILLIS:
        return max(1, taken * LONGEST_ROUND_MILLIS // took_millis)
    return max(1, taken - untried) if untried else min(batch_size, limit * 2)


def is_down(results: Sequence[Result]) -> bool:
    """Tell whether a round got nothing through, for no reason that lies in a record."""
    return any(map(_tells, results)) and all(map(_is_nobodys, results))


def _is_nobodys(result: Result) -> bool:
    """Tell whether a failure lies in no record: what is given up early is the record's own, such as its trace's."""
    return isinstance(result, Unclear) or (isinstance(result, RetryableFailure) and result.give_up_after_millis is None)


def _tells(result: Result) -> bool:
    """Tell whether a result says anything of the destination: what was skipped, or not tried, does not."""
    return not isinstance(result, Skipped) and getattr(result, "is_tried", True)


# --- the engine --------------------------------------------------------------------------------------------------


def _nothing() -> None:
    """Do nothing."""


class Deliverer:
    """Delivers to one destination; any number of threads may drive it at once.

    Args:
        outbox: where the records are.

        exporter: the destination.

        policy: when to try again.

        clock: what tells the time.

        rng: where the jitter comes from.

        is_released: whether a span is known to have reached its destination, so that what is held may go.

        batch_size: how many records one round takes.

        metrics: whom it tells what it does.
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
        batch_size: int = BATCH_RECORDS,
        metrics: Metrics | None = None,
    ) -> None:
        self.exporter = exporter
        self._outbox = outbox
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._is_released = is_released
        self._batch_size = batch_size
        self._limit = min(batch_size, FIRST_ROUND_RECORDS)
        self._metrics = metrics or NoOpMetrics()
        self._by_call = bool(getattr(exporter, "orders_by_call", False))
        self._failed_rounds = 0
        self._begun = self._ended = 0
        self._counting = threading.RLock()  # a signal's handler may ask in the middle of a count
        # What the vendor has said, and the store could not take.
        self._unsettled: deque[Sequence[tuple[Lease, Settlement]]] = deque()
        self._is_failing = False
        self._told_nano = -REPORT_MILLIS * NANOS_PER_MILLI
        self._paused_for: str | None = None

    @property
    def name(self) -> str:
        """The destination's name."""
        return self.exporter.name

    @property
    def rounds(self) -> tuple[int, int]:
        """How many rounds have begun here and how many have ended; while they differ, something may be leased here."""
        with self._counting:
            return self._begun, self._ended

    def run_once(self, more: Callable[[], None] = _nothing) -> Round:
        """Deliver one batch of what is due, and say first if there may be `more` than one."""
        with self._counting:
            self._begun += 1
        try:
            return self._run_once(more)
        finally:
            with self._counting:
                self._ended += 1

    def _run_once(self, more: Callable[[], None]) -> Round:
        self._end_unsettled()
        began_nano = self._clock.monotonic_nano()
        leases = self._outbox.lease(self.name, limit=self._limit, duration_millis=LEASE_MILLIS, by_call=self._by_call)
        if not leases:
            return Round()
        if len(leases) >= self._limit:
            more()
        work = [self._plan(lease) for lease in leases]
        parts = [part for each in work for part in each.parts.values()]
        results = self._measured(parts, leases) if parts else []
        self._limit = next_limit(
            self._limit,
            taken=len(leases),
            untried=sum(1 for result in results if isinstance(result, RetryableFailure) and not result.is_tried),
            took_millis=(self._clock.monotonic_nano() - began_nano) // NANOS_PER_MILLI,
            batch_size=self._batch_size,
        )
        try:
            # First of all: what the vendor has said must be kept, whatever fails after it.
            self._settle(work, results)
        finally:
            self._judge(results, is_probe=any(lease.is_probe for lease in leases))
        self._report(results)
        has_failed = any(isinstance(result, PauseDestination) or _is_nobodys(result) for result in results)
        return Round(len(leases), has_failed)

    def release(self) -> None:
        """Look at once at everything that is held: the spans that it waits for may have arrived."""
        self._outbox.release(self.name)

    def next_due_millis(self) -> int | None:
        """Say in how many milliseconds something will be due; `None` when nothing waits."""
        due = self._outbox.next_due(self.name, by_call=self._by_call)
        return None if due is None else max(0, (due - self._clock.time_unix_nano()) // NANOS_PER_MILLI)

    def _plan(self, lease: Lease) -> Work:
        """Decide what a lease asks for; a record that an exporter refuses is a dead letter, not the end."""
        try:
            return plan(lease, self.exporter, now=self._clock.time_unix_nano(), is_released=self._is_released)
        except FeedbackError as error:
            return Work(lease, broken_reason=f"{self.name} refuses it: {error}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (see `_export`)
            logger.error("%s cannot say what to send for feedback %s: %s", self.name, lease.record.id, where(error))  # noqa: TRY400 (see where)
            return Work(lease, failure=RetryableFailure(f"the exporter failed ({type(error).__name__})"))

    def _measured(self, parts: Sequence[Part], leases: Sequence[Lease]) -> Sequence[Result]:
        """Export, and tell how long it took and how it went."""
        began_nano = self._clock.monotonic_nano()
        self._metrics.inflight(self.name, len(leases))
        try:
            results = self._export(parts, leases[0].expires_at_unix_nano)
        finally:
            self._metrics.inflight(self.name, -len(leases))
        failure = next((result.reason for result in results if not isinstance(result, (Success, Skipped))), None)
        self._metrics.exported(self.name, (self._clock.monotonic_nano() - began_nano) / 1e9, failure)
        return results

    def _export(self, parts: Sequence[Part], expires_at_unix_nano: int) -> Sequence[Result]:
        """Export, and take what an exporter raises, or leaves unsaid, as unclear.

        Whatever it raises: a `SystemExit`, or asyncio's `CancelledError`, would else leave the records leased.
        """
        if self._clock.time_unix_nano() > expires_at_unix_nano - EXPORT_MILLIS * NANOS_PER_MILLI:
            # This process has stood still since it took the lease, and others may soon send the same.
            return [RetryableFailure("the lease was about to run out", is_tried=False)] * len(parts)
        try:
            # Of what has no end no more is read than shows that it is too long.
            results = list(islice(self.exporter.export(parts), len(parts) + 1))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (the boundary to exporters)
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

    def _judge(self, results: Sequence[Result], *, is_probe: bool) -> None:
        """Pause the destination where a result asks for it or nothing gets through; let it go on when something did."""
        refusal = next((result.reason for result in results if isinstance(result, PauseDestination)), None)
        if refusal is not None:
            # Told once: the vendor's id of the request is another one each time.
            told = refusal.partition(" (request ")[0]
            if told != self._paused_for:
                logger.error("%s is paused, nothing is lost: %s", self.name, refusal)
            self._paused_for = told
            self._pause(refusal, self._policy.pause_millis)
        elif is_down(results):
            self._failed_rounds += 1
            if is_probe or self._failed_rounds >= BREAKER_ROUNDS:
                wished = max(getattr(result, "retry_after_millis", None) or 0 for result in results)
                wished = min(wished, self._policy.longest_retry_after_millis)
                self._pause(results[0].reason, max(wished, PROBE_MILLIS))
        elif any(map(_tells, results)):
            self._failed_rounds = 0
            if is_probe:
                self._outbox.resume(self.name)

    def _pause(self, reason: str, millis: int) -> None:
        """Offer nothing of the destination for a while, and then one record now and again."""
        until = self._clock.time_unix_nano() + millis * NANOS_PER_MILLI
        self._outbox.pause(self.name, reason=reason, until_unix_nano=until)

    def _settle(self, work: Sequence[Work], results: Sequence[Result]) -> None:
        """Decide on every part and end every lease."""
        now = self._clock.time_unix_nano()
        upcoming = iter(results)
        endings = [(each.lease, settlement_of(each, self._decide(each, upcoming, now), now=now)) for each in work]
        self._end(endings)

    def _end_unsettled(self) -> None:
        """End the leases of earlier rounds that the store could not take; other threads may be at it as well."""
        for _ in range(len(self._unsettled)):
            try:
                endings = self._unsettled.popleft()
            except IndexError:
                return
            self._end(endings)

    def _end(self, endings: Sequence[tuple[Lease, Settlement]]) -> None:
        """End leases; where the store fails, keep what to say for the next round, lest it is all sent again."""
        try:
            settled = self._outbox.settle_many(endings)
        except FeedbackError:
            self._unsettled.append(endings)
            raise
        for (lease, settlement), is_settled in zip(endings, settled, strict=True):
            if not is_settled:
                logger.warning(
                    "feedback %s at %s is no longer ours to settle: another worker took it over, or it was forgotten",
                    lease.record.id,
                    self.name,
                )
                continue
            if settlement.event == "bury":
                logger.error("feedback %s is dead at %s: %s", lease.record.id, self.name, settlement.reason)
            if settlement.event != "retry" or settlement.counts:
                self._metrics.settled(self.name, settlement.event, settlement.reason)

    def _decide(self, work: Work, upcoming: Iterator[Result], now: int) -> dict[str, Decision]:
        """Decide on the parts of one lease."""
        results = dict.fromkeys(("",), work.failure) if work.failure else {kind: next(upcoming) for kind in work.parts}
        return {
            kind: self._policy.decide(
                result,
                attempt=work.lease.attempts,
                now=now,
                accepted_at=work.lease.accepted_at_unix_nano,
                rng=self._rng,
            )
            for kind, result in results.items()
        }

    def _report(self, results: Sequence[Result]) -> None:
        """Say that a destination fails, once a minute at the most, and that it is back."""
        failed = [result for result in results if isinstance(result, (RetryableFailure, Unclear))]
        now_nano = self._clock.monotonic_nano()
        if failed and not self._is_failing and now_nano - self._told_nano >= REPORT_MILLIS * NANOS_PER_MILLI:
            self._is_failing, self._told_nano = True, now_nano
            logger.warning("%s: %d parts wait and are tried again: %s", self.name, len(failed), failed[0].reason)
        is_back = all(isinstance(result, Success) for result in results) and bool(results)
        if is_back and (self._is_failing or self._paused_for is not None):
            self._is_failing, self._paused_for = False, None
            logger.warning("%s delivers again", self.name)


def _is_result(result: object) -> bool:
    """Tell whether an exporter's answer is a result that can be decided on."""
    waits = (getattr(result, name, None) for name in ("retry_after_millis", "give_up_after_millis"))
    removed = getattr(result, "removed", ())
    return (
        isinstance(result, Result)
        and isinstance(result.reason, str)
        and is_unicode(result.reason)
        and type(removed) is tuple
        and all(type(each) is int for each in removed)
        and all(wait is None or type(wait) is int for wait in waits)
    )


def _why(error: BaseException) -> str:
    """Tell of an error: ours in its own words, a foreign one without them."""
    return str(error) if isinstance(error, FeedbackError) else where(error)


def drain(deliverer: Driven, *, deadline_nano: int, clock: Clock) -> None:
    """Make one pass over what is due: until nothing is, the destination fails, or time is up."""
    while clock.monotonic_nano() < deadline_nano:
        done = deliverer.run_once()
        if not done.leased or done.has_failed:
            return


class Keeper:
    """Keeps the store in order: routes what waited for an exporter, joins what was overlooked, prunes what is done.

    Args:
        outbox: the store.

        destinations: where unrouted records go; none: they wait.

        join: joins the judgements whose keys are bound by now.

        retention_millis: how long what is done is kept.

        clock: what tells the time.
    """

    name = "keep"

    def __init__(
        self,
        outbox: Outbox,
        *,
        destinations: Sequence[str],
        join: Callable[[], None],
        retention_millis: int,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._join = join
        self._destinations = destinations
        self._retention_nano = retention_millis * NANOS_PER_MILLI
        self._clock = clock
        self._next_nano = 0

    def run_once(self, more: Callable[[], None] = _nothing) -> Round:  # noqa: ARG002 (one thread is enough for it)
        """Do a small part of it; nothing is left to do when it has done nothing."""
        now_nano = self._clock.monotonic_nano()
        if now_nano < self._next_nano:
            return Round()
        done = self._outbox.route(self._destinations)
        done += self._outbox.prune(self._clock.time_unix_nano() - self._retention_nano)
        if not done:
            self._join()
            self._next_nano = now_nano + KEEP_MILLIS * NANOS_PER_MILLI
        return Round(done)

    def next_due_millis(self) -> int | None:
        """Answer none: nobody waits for it."""
        return None


class Driven(Protocol):
    """What a thread can drive: a `Deliverer`, or the `Keeper`."""

    @property
    def name(self) -> str:
        """Its name, for the log."""
        ...

    def run_once(self, more: Callable[[], None] = _nothing) -> Round:
        """Do a part of what is due, and say first if there may be `more`."""
        ...

    def next_due_millis(self) -> int | None:
        """Say in how many milliseconds something will be due."""
        ...


class _Bell:
    """Wakes a thread. Unlike an event it may be rung from anywhere: in a signal's handler that interrupts a ring.

    A lock that is free when it was rung. A `SimpleQueue` would not do: a `get` whose timeout is over between two of its
    tries waits for ever (CPython 3.10 to 3.13).
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake the thread, or keep it from sleeping the next time."""
        with contextlib.suppress(RuntimeError):  # it was rung already
            self._silence.release()

    def clear(self) -> None:
        """Forget that it was rung."""
        self._silence.acquire(blocking=False)

    def wait(self, seconds: float | None) -> None:
        """Sleep until it is rung, or for so long."""
        self._silence.acquire(timeout=-1 if seconds is None else seconds)


class DeliveryThread:
    """Drives one deliverer: at once when something is recorded here, by polling for what others record.

    Args:
        deliverer: what is driven.

        clock: what tells the time.

        helpers: threads that drive the same; they are started when this one finds that there is much to do.
    """

    def __init__(self, deliverer: Driven, *, clock: Clock, helpers: Sequence[DeliveryThread] | None = None) -> None:
        self.deliverer = deliverer
        self._clock = clock
        self._helpers = helpers
        self._bell = _Bell()
        self._is_stopping = False
        self._has_failed = False
        self._exit_deadline_nano = 0
        # Who wants to know when nothing is due any more, and whom it was told.
        self._asked = 0
        self._answered = 0
        self._answer = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"otel-feedback-deliver-{deliverer.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Whether there is a thread."""
        return self._thread.ident is not None

    def wake(self) -> None:
        """Say that something is due."""
        self._bell.ring()

    def help(self) -> None:
        """Take part, for as long as something is due."""
        self._bell.ring()
        if not self.is_started:
            self._thread.start()

    def ask(self) -> int:
        """Ask for everything that is due now to be tried; `wait_for` waits for it."""
        with self._answer:
            self._asked += 1
            asked = self._asked
        self._bell.ring()
        return asked

    def wait_for(self, asked: int, timeout_millis: int) -> bool:
        """Wait until everything that was due has been tried; say whether it has."""
        if not self.is_started:
            return True
        with self._answer:
            seconds = min(timeout_millis / 1_000, threading.TIMEOUT_MAX)
            return self._answer.wait_for(lambda: self._answered >= asked, seconds)

    def stop(self, *, deadline_nano: int) -> None:
        """Ask the thread for a last pass until the deadline; `join` waits for it."""
        self._exit_deadline_nano = deadline_nano
        self._is_stopping = True
        self._bell.ring()

    def join(self) -> bool:
        """Wait for the last pass, but not beyond the deadline; a thread that hangs in a request is left behind."""
        if not self.is_started:
            return True
        left = self._exit_deadline_nano - self._clock.monotonic_nano()
        if self._thread is not threading.current_thread():  # in which an exporter shuts down
            self._thread.join(max(0.0, left / 1e9))
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Go round until stopped, then once more."""
        while True:
            # Before it is asked whether to stop: a stop that comes later rings again.
            self._bell.clear()
            if self._is_stopping:
                break
            wait_millis = self._round()
            # A helper does not poll: whom it helps does.
            self._bell.wait(None if wait_millis and self._helpers is None else wait_millis / 1_000)
        try:
            drain(self.deliverer, deadline_nano=self._exit_deadline_nano, clock=self._clock)
        except BaseException as error:  # noqa: BLE001 (the boundary of the thread)
            logger.warning("%s: what is left stays in the store: %s", self.deliverer.name, _why(error))
        self._say(self._asked)

    def _round(self) -> int:
        """Make one round; answer how long to wait for the next one."""
        asked = self._asked
        try:
            if self.deliverer.run_once(self._call_helpers).leased:
                return 0
            due = self.deliverer.next_due_millis()
        except BaseException as error:  # noqa: BLE001 (the boundary of the thread: nothing may end delivery for good)
            if not self._has_failed:
                logger.error("%s: delivery fails and is tried again: %s", self.deliverer.name, _why(error))  # noqa: TRY400 (see where)
            self._has_failed = True
            self._say(asked)
            return POLL_MILLIS
        self._has_failed = False
        self._say(asked)
        return POLL_MILLIS if due is None else min(max(due, 1), POLL_MILLIS)

    def _call_helpers(self) -> None:
        """Let the helpers take part, unless what is due is done before they have begun."""
        if self._helpers and self.deliverer.next_due_millis() == 0 and not self._is_stopping:
            for helper in self._helpers:
                helper.help()

    def _say(self, asked: int) -> None:
        """Tell who asked until then that nothing is due any more."""
        with self._answer:
            self._answered = max(self._answered, asked)
            self._answer.notify_all()
