"""The deliverer: what a lease asks for, how it ends, and a thread that goes on whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._deliver import (
    BATCH_RECORDS,
    BREAKER_ROUNDS,
    EXPORT_MILLIS,
    FIRST_ROUND_RECORDS,
    KEEP_MILLIS,
    LEASE_MILLIS,
    LONGEST_ROUND_MILLIS,
    REPORT_MILLIS,
    Deliverer,
    DeliveryThread,
    Driven,
    Keeper,
    Round,
    Work,
    _Bell,
    drain,
    is_down,
    next_limit,
    plan,
    settlement_of,
    standing_after,
    standing_parts,
)
from otel_feedback._handle import FeedbackHandle
from otel_feedback._metrics import NoOpMetrics
from otel_feedback._record import DeliveryStatus, FeedbackRecord, Part
from otel_feedback._retry import HOUR_MILLIS, Done, GiveUp, RetryAt, RetryPolicy
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import InvalidFeedbackError, StoreError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
    parts_of,
)
from otel_feedback.stores import PROBE_MILLIS, UNROUTED, Lease, PartState, Settlement, Standing
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

NOW = 1_767_225_600_000_000_000
FINE, UNCLEAR = PartState("delivered", "delivered"), PartState("unclear", "timeout")
DEAD, SKIPPED = PartState("dead", "422"), PartState("skipped", "cannot")
# The same after a try of which nobody knows how it ended.
MAYBE_DEAD, MAYBE_SKIPPED = PartState("dead", "422", True), PartState("skipped", "cannot", True)
LAPSED = PartState("unclear", "a worker ended while it was sent")


def record(number: int = 1, **said: Any) -> FeedbackRecord:
    said = said or {"value": True}
    handle = FeedbackHandle(SpanContext(1, number, is_remote=True, trace_flags=TraceFlags(1)))
    return FeedbackRecord(id=f"00000000-0000-7000-8000-{number:012}", handle=handle, name="rating", **said)


class PartsExporter:
    """Makes a part of each thing said, holds back what is about `held`, and answers as a script says.

    Args:
        answers: by kind of part, the results to answer one after the other; then success.
    """

    name = "a"

    def __init__(self, answers: Mapping[str, Sequence[Result]] | None = None) -> None:
        self.answers = {kind: list(results) for kind, results in (answers or {}).items()}
        self.exported: list[tuple[str, str, Any]] = []
        # Of which kinds it was told that they may have arrived, in order.
        self.repeated: list[str] = []
        self.not_before: dict[str, int] = {}

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [
            Part(
                record=record,
                kind=kind,
                body={kind: getattr(record, kind)},
                carries=frozenset({kind}),
                not_before_unix_nano=self.not_before.get(kind, 0),
            )
            for kind in ("value", "comment")
            if kind in record.said
        ]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        return [self.take(part) for part in parts]

    def take(self, part: Part) -> Result:
        self.exported.append((part.action, part.kind, part.body[part.kind]))
        if part.may_have_arrived:
            self.repeated.append(part.kind)
        answers = self.answers.get(part.kind)
        return answers.pop(0) if answers else Success()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        pass


class FewerPartsExporter(PartsExporter):
    """The same after somebody has configured that comments are sent no more."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [part for part in super().parts(record) if part.kind != "comment"]


def released(_: FeedbackHandle) -> bool:
    return True


def unreleased(_: FeedbackHandle) -> bool:
    return False


# --- plan: what a lease asks for ---------------------------------------------------------------------------------

Said = Mapping[str, Any]
UP: Said = {"value": True}
DOWN: Said = {"value": False}
NOTED: Said = {**UP, "comment": "x"}
OTHER_NOTE: Said = {**UP, "comment": "y"}
BACK: Said = {"value": None, "retracts": True}


def lease_of(
    said: Said, *earlier: tuple[Said, Mapping[str, PartState]], parts: Any = None, lapsed: bool = False
) -> Lease:
    """Lease a judgement of which earlier revisions ended with their parts in these states."""
    revisions = [(record(**what, revision=number), states) for number, (what, states) in enumerate(earlier)]
    standing: Mapping[str, Standing] = {}
    for revision, states in revisions:
        standing = standing_after(work_of(Lease(revision, "a", 0, 1, 0, NOW, NOW, standing=standing)), states)
    current = record(**said, revision=len(earlier))
    return Lease(current, "a", 0, 1, 0, NOW, NOW, parts=parts or {}, standing=standing, lapsed=lapsed)


def work_of(lease: Lease, **known: Any) -> Work:
    """Answer the work on a lease: what its record says, and what had become of its parts."""
    said = frozenset(parts_of(PartsExporter(), lease.record))
    return Work(lease, **{"said": said, "before": lease.parts, **known})


@pytest.mark.parametrize(
    ("lease", "asked"),
    [
        # the first time
        (lease_of(UP), {"value": "create"}),
        (lease_of(NOTED), {"value": "create", "comment": "create"}),
        # the second time: what is settled is not sent again, what is unclear is
        (lease_of(NOTED, parts={"comment": FINE}), {"value": "create"}),
        (lease_of(NOTED, parts={"comment": DEAD}), {"value": "create"}),
        (lease_of(NOTED, parts={"comment": SKIPPED}), {"value": "create"}),
        (lease_of(NOTED, parts={"comment": UNCLEAR}), {"value": "create", "comment": "create"}),
        (lease_of(NOTED, parts={"value": FINE, "comment": FINE}), {}),
        # a change of mind
        (lease_of(DOWN, (UP, {"value": FINE})), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": FINE})), {}),
        (lease_of(UP, (NOTED, {"value": FINE, "comment": FINE})), {"comment": "retract"}),
        (lease_of(OTHER_NOTE, (NOTED, {"value": FINE, "comment": FINE})), {"comment": "replace"}),
        (lease_of(NOTED, (UP, {"value": FINE})), {"comment": "create"}),
        (lease_of(NOTED, (UP, {"value": FINE}), parts={"comment": FINE}), {}),
        # what the vendor never got is created, and not taken back
        (lease_of(DOWN, (UP, {})), {"value": "create"}),
        (lease_of(DOWN, (UP, {"value": DEAD})), {"value": "create"}),
        (lease_of(DOWN, (UP, {"value": SKIPPED})), {"value": "create"}),
        (lease_of(BACK, (UP, {})), {}),
        (lease_of(BACK, (UP, {"value": DEAD})), {}),
        # what it may have got is said again, even if it is the same, and taken back
        (lease_of(UP, (UP, {"value": UNCLEAR})), {"value": "replace"}),
        (lease_of(DOWN, (UP, {"value": UNCLEAR})), {"value": "replace"}),
        (lease_of(BACK, (UP, {"value": UNCLEAR})), {"value": "retract"}),
        (lease_of(UP, (UP, {"value": UNCLEAR}), (UP, {"value": FINE})), {}),
        (lease_of(UP, (DOWN, {"value": FINE}), (UP, {"value": UNCLEAR})), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": UNCLEAR}), (DOWN, {"value": DEAD})), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": UNCLEAR}), parts={"value": FINE}), {}),
        # taken back
        (lease_of(BACK, (NOTED, {"value": FINE, "comment": FINE})), {"value": "retract", "comment": "retract"}),
        (lease_of(BACK, (NOTED, {"value": FINE, "comment": DEAD})), {"value": "retract"}),
        (lease_of(BACK, (UP, {"value": FINE}), parts={"value": FINE}), {}),
        # after it was taken back, it is new; where that is unclear, it may still be there
        (lease_of(UP, (UP, {"value": FINE}), (BACK, {"value": FINE})), {"value": "create"}),
        (lease_of(UP, (UP, {"value": FINE}), (BACK, {"value": UNCLEAR})), {"value": "replace"}),
        (lease_of(BACK, (UP, {"value": FINE}), (BACK, {"value": UNCLEAR})), {"value": "retract"}),
        (lease_of(BACK, (UP, {"value": FINE}), (BACK, {"value": SKIPPED})), {"value": "retract"}),
        (lease_of(UP, (NOTED, {"value": FINE, "comment": FINE}), (UP, {"comment": UNCLEAR})), {"comment": "retract"}),
        (lease_of(BACK, (BACK, {"value": FINE})), {}),
        # what was unclear before it was given up, or skipped, may be there all the same
        (lease_of(UP, (UP, {"value": MAYBE_DEAD})), {"value": "replace"}),
        (lease_of(DOWN, (UP, {"value": MAYBE_DEAD})), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": MAYBE_SKIPPED})), {"value": "replace"}),
        (lease_of(BACK, (UP, {"value": MAYBE_DEAD})), {"value": "retract"}),
        (lease_of(BACK, (UP, {"value": MAYBE_SKIPPED})), {"value": "retract"}),
        (lease_of(UP, (UP, {"value": FINE}), (DOWN, {"value": MAYBE_DEAD})), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": FINE}), (BACK, {"value": MAYBE_DEAD})), {"value": "replace"}),
        (lease_of(BACK, (UP, {"value": FINE}), (BACK, {"value": MAYBE_DEAD})), {"value": "retract"}),
        (lease_of(BACK, (UP, {"value": MAYBE_DEAD}), (BACK, {"value": FINE})), {}),
        (lease_of(UP, (UP, {"value": MAYBE_DEAD}), (UP, {"value": FINE})), {}),
        (lease_of(UP, (UP, {"value": MAYBE_DEAD}), (BACK, {"value": FINE})), {"value": "create"}),
        # what a worker that ended may have sent is sent again, but not what was settled before, nor what nobody asks
        (lease_of(NOTED, lapsed=True), {"value": "create", "comment": "create"}),
        (lease_of(NOTED, parts={"comment": FINE}, lapsed=True), {"value": "create"}),
        (lease_of(NOTED, parts={"comment": DEAD, "value": SKIPPED}, lapsed=True), {}),
        (lease_of(NOTED, parts={"comment": UNCLEAR}, lapsed=True), {"value": "create", "comment": "create"}),
        (lease_of(DOWN, (UP, {"value": FINE}), lapsed=True), {"value": "replace"}),
        (lease_of(UP, (UP, {"value": FINE}), lapsed=True), {}),
        (lease_of(BACK, (UP, {"value": FINE}), lapsed=True), {"value": "retract"}),
        (lease_of(BACK, lapsed=True), {}),
    ],
)
def test_a_lease_asks_for_what_is_missing_at_the_vendor(lease: Lease, asked: dict[str, str]) -> None:
    """
    What is to be sent follows from what is said now, what is settled of it, and what the vendor may have from before.
    """
    work = plan(lease, PartsExporter(), now=NOW, is_released=unreleased)

    assert asked == {kind: part.action for kind, part in work.parts.items()}
    assert bool(asked) == (work.idle_reason is None)


@pytest.mark.parametrize(
    ("lease", "reason"),
    [
        (lease_of({"value": None, "tags": ("t",)}), "a can carry nothing of it"),
        (lease_of(BACK), "there was nothing to take back"),
        (lease_of(UP, (UP, {"value": FINE})), "nothing changed since the judgement before"),
    ],
)
def test_a_lease_with_nothing_to_send_says_why(lease: Lease, reason: str) -> None:
    """
    A vendor that can carry nothing, that has nothing to take back, or that has it already: each has its words.
    """
    assert work_of(lease, idle_reason=reason) == plan(lease, PartsExporter(), now=NOW, is_released=unreleased)


@pytest.mark.parametrize(
    ("lease", "before", "may_have_arrived"),
    [
        (lease_of(NOTED), {}, set()),
        (lease_of(NOTED, parts={"comment": FINE}), {"comment": FINE}, set()),
        (lease_of(NOTED, parts={"comment": UNCLEAR}), {"comment": UNCLEAR}, {"comment"}),
        (lease_of(NOTED, lapsed=True), {"value": LAPSED, "comment": LAPSED}, {"value", "comment"}),
        (lease_of(NOTED, parts={"comment": FINE}, lapsed=True), {"value": LAPSED, "comment": FINE}, {"value"}),
        (
            lease_of(NOTED, parts={"value": UNCLEAR}, lapsed=True),
            {"value": UNCLEAR, "comment": LAPSED},
            {"value", "comment"},
        ),
        (lease_of(DOWN, (UP, {"value": FINE}), lapsed=True), {"value": LAPSED}, {"value"}),
        (lease_of(UP, (NOTED, {"comment": FINE, "value": FINE}), lapsed=True), {"comment": LAPSED}, {"comment"}),
        (lease_of(BACK, (UP, {"value": FINE}), lapsed=True), {"value": LAPSED}, {"value"}),
        (lease_of(UP, (UP, {"value": FINE}), lapsed=True), {}, set()),
        # other words are not those that may have arrived, the same ones are
        (lease_of(OTHER_NOTE, (NOTED, {"value": FINE, "comment": UNCLEAR})), {}, set()),
        (lease_of(NOTED, (NOTED, {"value": FINE, "comment": UNCLEAR})), {}, {"comment"}),
        (lease_of(NOTED, (NOTED, {"value": FINE, "comment": MAYBE_DEAD})), {}, {"comment"}),
    ],
)
def test_a_part_that_may_have_arrived_says_so(
    lease: Lease, before: Mapping[str, PartState], may_have_arrived: set[str]
) -> None:
    """
    Whether the answer was lost, or the worker that sent it ended, the exporter is told that it may be a repetition.
    """
    work = plan(lease, PartsExporter(), now=NOW, is_released=unreleased)

    assert before == work.before
    assert may_have_arrived == {kind for kind, part in work.parts.items() if part.may_have_arrived}


def test_what_was_held_when_its_worker_ended_has_not_arrived() -> None:
    """
    A part whose time has not come cannot have been sent by the worker before.
    """
    exporter = PartsExporter()
    exporter.not_before = {"comment": NOW + 5}
    work = plan(lease_of(NOTED, lapsed=True), exporter, now=NOW, is_released=unreleased)

    assert ({"value": LAPSED}, NOW + 5) == (work.before, work.held_until_unix_nano)


def test_a_kind_that_the_exporter_makes_no_more_is_left_as_it_is() -> None:
    """
    What an earlier configuration had sent stays known, so that it can be taken back once the exporter makes it again.
    """
    fewer = FewerPartsExporter()
    lease = lease_of(BACK, (NOTED, {"value": FINE, "comment": FINE}))
    work = plan(lease, fewer, now=NOW, is_released=unreleased)
    settlement = settlement_of(work, {"value": DELIVERED}, now=NOW)
    again = plan(replace(lease, standing=settlement.standing), PartsExporter(), now=NOW, is_released=unreleased)

    assert ({"value"}, {"comment"}) == (set(work.parts), set(settlement.standing))
    assert {"comment": "retract"} == {kind: part.action for kind, part in again.parts.items()}


def test_a_kind_that_is_new_to_the_exporter_is_created_beside_what_stands() -> None:
    """
    Where the new configuration has a part for what the old one did not send, only that part goes.
    """
    lease = lease_of(NOTED, (NOTED, {"value": FINE}))
    work = plan(lease, PartsExporter(), now=NOW, is_released=unreleased)

    assert {"comment": "create"} == {kind: part.action for kind, part in work.parts.items()}


@pytest.mark.parametrize("state", [FINE, UNCLEAR])
def test_what_the_exporter_made_no_part_of_is_created(state: PartState) -> None:
    """
    When the exporter makes nothing of the earlier words any more, the new ones are a part like a first one.
    """

    class Later(PartsExporter):
        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            return super().parts(record) if record.revision else []

    work = plan(lease_of(DOWN, (UP, {"value": state})), Later(), now=NOW, is_released=unreleased)

    assert [("create", None)] == [(part.action, part.replaces) for part in work.parts.values()]


@pytest.mark.parametrize(
    ("earlier", "standing", "unclear"),
    [
        ([], {}, set()),
        ([(NOTED, {"value": FINE, "comment": UNCLEAR})], {"value": True, "comment": "x"}, {"comment"}),
        ([(NOTED, {"value": DEAD, "comment": SKIPPED})], {}, set()),
        ([(UP, {"value": FINE}), (DOWN, {"value": FINE})], {"value": False}, set()),
        ([(UP, {"value": UNCLEAR}), (DOWN, {"value": FINE})], {"value": False}, set()),
        ([(UP, {"value": FINE}), (DOWN, {"value": UNCLEAR})], {"value": False}, {"value"}),
        ([(UP, {"value": FINE}), (DOWN, {"value": DEAD})], {"value": True}, set()),
        ([(NOTED, {"comment": FINE}), (UP, {"comment": FINE})], {}, set()),
        ([(NOTED, {"comment": FINE}), (UP, {"comment": UNCLEAR})], {"comment": "x"}, {"comment"}),
        ([(NOTED, {"comment": FINE}), (UP, {"comment": SKIPPED})], {"comment": "x"}, set()),
        ([(UP, {"comment": FINE})], {}, set()),
        (
            [(NOTED, {"value": MAYBE_DEAD, "comment": MAYBE_SKIPPED})],
            {"value": True, "comment": "x"},
            {"value", "comment"},
        ),
        ([(UP, {"value": FINE}), (DOWN, {"value": MAYBE_DEAD})], {"value": False}, {"value"}),
        ([(UP, {"value": MAYBE_DEAD}), (DOWN, {"value": DEAD})], {"value": True}, {"value"}),
        ([(UP, {"value": MAYBE_DEAD}), (DOWN, {"value": FINE})], {"value": False}, set()),
        ([(UP, {"value": FINE}), (BACK, {"value": MAYBE_DEAD})], {"value": True}, {"value"}),
        ([(UP, {"value": FINE}), (BACK, {"value": UNCLEAR}), (BACK, {"value": FINE})], {}, set()),
        ([(BACK, {"value": UNCLEAR})], {}, set()),
        ([(UP, {"value": FINE}), (UP, {})], {"value": True}, set()),
    ],
)
def test_what_stands_is_what_the_vendor_may_have(
    earlier: list[tuple[Said, Mapping[str, PartState]]], standing: dict[str, Any], unclear: set[str]
) -> None:
    """
    Of each kind the last part that was delivered, or may have been, stands; what was taken back for certain does not.
    """
    lease = lease_of(UP, *earlier)

    found = standing_parts(lease, PartsExporter())
    assert standing == {kind: part.body[kind] for kind, part in found.items()}
    assert unclear == {kind for kind, stood in lease.standing.items() if stood.is_unclear}


@pytest.mark.parametrize(
    ("earlier", "revisions"),
    [
        ([], ()),
        ([(UP, {"value": DEAD})], ()),
        ([(UP, {"value": FINE})], (0,)),
        ([(UP, {"value": UNCLEAR})], (0,)),
        ([(UP, {"value": FINE}), (DOWN, {"value": FINE})], (1,)),
        ([(UP, {"value": UNCLEAR}), (DOWN, {"value": FINE})], (1,)),
        ([(UP, {"value": FINE}), (DOWN, {"value": DEAD})], (0,)),
        ([(UP, {"value": FINE}), (DOWN, {"value": UNCLEAR})], (1, 0)),
        ([(UP, {"value": FINE}), (DOWN, {"value": MAYBE_DEAD})], (1, 0)),
        ([(UP, {"value": UNCLEAR}), (DOWN, {"value": MAYBE_SKIPPED}), (UP, {"value": UNCLEAR})], (2, 1, 0)),
        ([(UP, {"value": UNCLEAR}), (DOWN, {"value": DEAD}), (UP, {"value": UNCLEAR})], (2, 0)),
        ([(UP, {"value": UNCLEAR}), (DOWN, {"value": UNCLEAR}), (UP, {"value": FINE})], (2,)),
        ([(UP, {"value": FINE}), (DOWN, {"value": UNCLEAR}), (BACK, {"value": UNCLEAR})], (1, 0)),
        ([(UP, {"value": FINE}), (BACK, {"value": UNCLEAR}), (DOWN, {"value": UNCLEAR})], (2, 0)),
        ([(UP, {"value": UNCLEAR}), (BACK, {"value": FINE})], ()),
    ],
)
def test_every_revision_that_may_be_there_is_told(
    earlier: list[tuple[Said, Mapping[str, PartState]]], revisions: tuple[int, ...]
) -> None:
    """
    Where answers were lost it is not known which of several revisions the vendor has: the exporter gets them all.
    """
    down = plan(lease_of({"value": "changed"}, *earlier), PartsExporter(), now=NOW, is_released=unreleased)
    back = plan(lease_of(BACK, *earlier), PartsExporter(), now=NOW, is_released=unreleased)

    assert [revisions] == [part.revisions for part in down.parts.values()]
    assert [revisions] * bool(revisions) == [part.revisions for part in back.parts.values()]


@pytest.mark.parametrize("said", [UP, DOWN])
@pytest.mark.parametrize("state", [UNCLEAR, MAYBE_DEAD])
def test_a_part_says_what_it_replaces(said: Said, state: PartState) -> None:
    """
    Whether other words are said or the same ones again, the exporter gets the part that may be there.
    """
    lease = lease_of(said, (UP, {"value": state}))
    work = plan(lease, PartsExporter(), now=NOW, is_released=unreleased)

    assert lease.standing["value"].record == record(**UP)
    assert [*PartsExporter().parts(record(**UP))] == [part.replaces for part in work.parts.values()]


@pytest.mark.parametrize(
    ("not_before", "is_released", "sent", "held_until"),
    [
        ({}, unreleased, {"value", "comment"}, None),
        ({"value": NOW}, unreleased, {"value", "comment"}, None),
        ({"value": NOW + 1}, unreleased, {"comment"}, NOW + 1),
        ({"value": NOW + 9, "comment": NOW + 5}, unreleased, set(), NOW + 5),
        ({"value": NOW + 9, "comment": NOW + 5}, released, {"value", "comment"}, None),
    ],
)
def test_a_part_is_held_until_its_time_or_its_release(
    not_before: dict[str, int], is_released: Any, sent: set[str], held_until: int | None
) -> None:
    """
    A part whose time has not come waits, unless its span is known to have arrived; the others go.
    """
    exporter = PartsExporter()
    exporter.not_before = not_before
    work = plan(lease_of(NOTED), exporter, now=NOW, is_released=is_released)

    assert (sent, held_until, None) == (set(work.parts), work.held_until_unix_nano, work.idle_reason)


# --- settlement: how a lease ends --------------------------------------------------------------------------------

HOUR_NANO = HOUR_MILLIS * NANOS_PER_MILLI
DELIVERED, CANNOT = Done("delivered", "delivered"), Done("skipped", "cannot")
LATER, LOST = RetryAt(NOW + 7, "busy"), RetryAt(NOW + 3, "timeout", unclear=True)
PAUSED, REFUSED = RetryAt(NOW, "401", counts=False), GiveUp("422")
FAILED = RetryableFailure("the exporter failed")


@pytest.mark.parametrize(
    ("decisions", "settlement"),
    [
        ({"value": DELIVERED}, Settlement("deliver", {"value": FINE}, "delivered")),
        ({"value": CANNOT}, Settlement("skip", {"value": SKIPPED}, "cannot")),
        ({"value": REFUSED}, Settlement("bury", {"value": DEAD}, "422")),
        ({"value": LATER}, Settlement("retry", {}, "busy", NOW + 7)),
        ({"value": LOST}, Settlement("retry", {"value": UNCLEAR}, "timeout", NOW + 3)),
        ({"value": PAUSED}, Settlement("retry", {}, "401", NOW, counts=False)),
        (
            {"value": DELIVERED, "comment": CANNOT},
            Settlement("deliver", {"value": FINE, "comment": SKIPPED}, "value: delivered; comment: cannot"),
        ),
        (
            {"value": DELIVERED, "comment": REFUSED},
            Settlement("bury", {"value": FINE, "comment": DEAD}, "value: delivered; comment: 422"),
        ),
        ({"value": REFUSED, "comment": LATER}, Settlement("retry", {"value": DEAD}, "busy", NOW + 7)),
        ({"value": DELIVERED, "comment": LATER}, Settlement("retry", {"value": FINE}, "busy", NOW + 7)),
        ({"value": LATER, "comment": LOST}, Settlement("retry", {"comment": UNCLEAR}, "busy", NOW + 3)),
        ({"value": PAUSED, "comment": LATER}, Settlement("retry", {}, "401", NOW)),
    ],
)
def test_the_decisions_on_the_parts_end_the_lease(decisions: dict[str, Any], settlement: Settlement) -> None:
    """
    While a part is to be tried again the record is; then one dead part makes it dead, else one delivered delivered.
    """
    settled = settlement_of(work_of(lease_of(NOTED)), decisions, now=NOW)

    assert settlement == replace(settled, standing={})


@pytest.mark.parametrize(
    ("work", "decisions", "settlement"),
    [
        # settled before: a score's retry ends with the comment's state, and overwrites only its own
        (
            work_of(lease_of(NOTED, parts={"comment": FINE, "value": UNCLEAR})),
            {"value": REFUSED},
            Settlement("bury", {"comment": FINE, "value": MAYBE_DEAD}, "comment: delivered; value: 422"),
        ),
        (
            work_of(lease_of(NOTED, parts={"comment": DEAD})),
            {"value": DELIVERED},
            Settlement("bury", {"comment": DEAD, "value": FINE}, "comment: 422; value: delivered"),
        ),
        # removed before: it stays so, and what this try has removed is added once
        (
            work_of(lease_of(UP, parts={"value": replace(UNCLEAR, removed=(2, 1))})),
            {"value": replace(LOST, removed=(1, 0))},
            Settlement("retry", {"value": replace(UNCLEAR, removed=(2, 1, 0))}, "timeout", NOW + 3),
        ),
        (
            work_of(lease_of(UP, parts={"value": replace(UNCLEAR, removed=(2, 1))})),
            {"value": LATER},
            Settlement("retry", {"value": replace(UNCLEAR, removed=(2, 1))}, "busy", NOW + 7),
        ),
        (
            work_of(lease_of(UP)),
            {"value": replace(REFUSED, removed=(0,))},
            Settlement("bury", {"value": replace(MAYBE_DEAD, removed=(0,))}, "422"),
        ),
        # held back
        (
            work_of(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {},
            Settlement("retry", {}, "held until the span has arrived", NOW + 5, counts=False, held=True),
        ),
        (
            work_of(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {"comment": DELIVERED},
            Settlement("retry", {"comment": FINE}, "held until the span has arrived", NOW + 5, counts=False, held=True),
        ),
        (
            work_of(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {"comment": LATER},
            Settlement("retry", {}, "busy", NOW + 5),
        ),
        # nothing to send
        (work_of(lease_of(UP), idle_reason="none"), {}, Settlement("skip", {}, "none", counts=False)),
        (work_of(lease_of(BACK), idle_reason="none"), {}, Settlement("retract", {}, "none", counts=False)),
        # taken back
        (work_of(lease_of(BACK)), {"value": DELIVERED}, Settlement("retract", {"value": FINE}, "delivered")),
        (work_of(lease_of(BACK)), {"value": CANNOT}, Settlement("skip", {"value": SKIPPED}, "cannot")),
        (work_of(lease_of(BACK)), {"value": REFUSED}, Settlement("bury", {"value": DEAD}, "422")),
        # an exporter that cannot say what to send: again, or not any more
        (
            work_of(lease_of(UP, parts={"comment": FINE}), failure=FAILED),
            {"": LATER},
            Settlement("retry", {"comment": FINE}, "busy", NOW + 7),
        ),
        (
            work_of(lease_of(UP, parts={"comment": FINE}), failure=FAILED),
            {"": REFUSED},
            Settlement("bury", {"comment": FINE}, "422"),
        ),
        # an exporter that refuses
        (
            work_of(lease_of(UP, parts={"comment": FINE}), broken_reason="broken"),
            {},
            Settlement("bury", {"comment": FINE}, "broken"),
        ),
    ],
)
def test_a_lease_ends_by_what_it_was_about(work: Work, decisions: dict[str, Any], settlement: Settlement) -> None:
    """
    What was settled before, held back, taken back or could not be read counts as well.
    """
    assert settlement == replace(settlement_of(work, decisions, now=NOW), standing={})


DECISIONS = st.sampled_from([DELIVERED, CANNOT, LATER, LOST, PAUSED, REFUSED])


@given(
    decisions=st.dictionaries(st.sampled_from(["value", "comment", "tags"]), DECISIONS, min_size=1),
    held_until=st.none() | st.integers(NOW, NOW + 2 * HOUR_NANO),
)
def test_a_lease_never_ends_while_a_part_is_open(decisions: dict[str, Any], held_until: int | None) -> None:
    """
    A part that is to be tried again, or is held back, keeps the record pending, due when the first of them is.

    No time lies further ahead than an hour: until then the clock may be set back.
    """
    dues = [decision.due_unix_nano for decision in decisions.values() if isinstance(decision, RetryAt)]
    dues += [] if held_until is None else [held_until]
    settlement = settlement_of(work_of(lease_of(NOTED), held_until_unix_nano=held_until), decisions, now=NOW)

    due = min(*dues, NOW + HOUR_NANO) if dues else 0
    assert (bool(dues), due) == (settlement.event == "retry", settlement.due_unix_nano)


@pytest.mark.parametrize(
    ("before", "decision", "after"),
    [
        (None, DELIVERED, FINE),
        (None, CANNOT, SKIPPED),
        (None, REFUSED, DEAD),
        (None, LATER, None),
        (None, PAUSED, None),
        (None, LOST, UNCLEAR),
        # what is delivered is clear; nothing else makes it so
        (LAPSED, DELIVERED, FINE),
        (LAPSED, CANNOT, MAYBE_SKIPPED),
        (LAPSED, REFUSED, MAYBE_DEAD),
        (LAPSED, LATER, LAPSED),
        (LAPSED, PAUSED, LAPSED),
        (LAPSED, LOST, UNCLEAR),
    ],
)
def test_what_is_kept_of_a_part_remembers_that_it_may_have_arrived(
    before: PartState | None, decision: Any, after: PartState | None
) -> None:
    """
    What was unclear once stays so until it is delivered, however it is settled otherwise.
    """
    lease = lease_of(UP, parts={} if before is None else {"value": before})
    settlement = settlement_of(work_of(lease), {"value": decision}, now=NOW)

    assert ({} if after is None else {"value": after}) == settlement.parts


@pytest.mark.parametrize(
    ("part", "may_have_arrived"),
    [
        (FINE, False),
        (DEAD, False),
        (SKIPPED, False),
        (UNCLEAR, True),
        (MAYBE_DEAD, True),
        (MAYBE_SKIPPED, True),
    ],
)
def test_a_part_may_have_arrived_where_it_is_or_was_unclear(part: PartState, may_have_arrived: bool) -> None:
    """
    Whoever reads the state of a part need not know how it came to it.
    """
    assert may_have_arrived == part.may_have_arrived


# Of each kind, the number of the revision that the destination has, and whether that is unclear.
CLEAR, VAGUE = False, True


@pytest.mark.parametrize(
    ("work", "decisions", "standing"),
    [
        # the first word
        (work_of(lease_of(NOTED)), {"value": DELIVERED, "comment": LOST}, {"value": (0, CLEAR), "comment": (0, VAGUE)}),
        (work_of(lease_of(NOTED)), {"value": LATER, "comment": PAUSED}, {}),
        (work_of(lease_of(NOTED)), {"value": REFUSED, "comment": CANNOT}, {}),
        (work_of(lease_of(NOTED), held_until_unix_nano=NOW), {"value": DELIVERED}, {"value": (0, CLEAR)}),
        # its second try
        (work_of(lease_of(UP, parts={"value": UNCLEAR})), {"value": DELIVERED}, {"value": (0, CLEAR)}),
        (work_of(lease_of(UP, parts={"value": UNCLEAR})), {"value": LATER}, {"value": (0, VAGUE)}),
        (work_of(lease_of(UP, parts={"value": UNCLEAR})), {"value": PAUSED}, {"value": (0, VAGUE)}),
        (work_of(lease_of(UP, parts={"value": UNCLEAR})), {"value": REFUSED}, {"value": (0, VAGUE)}),
        (work_of(lease_of(UP, parts={"value": UNCLEAR})), {"value": CANNOT}, {"value": (0, VAGUE)}),
        (work_of(lease_of(NOTED, parts={"value": FINE})), {"comment": REFUSED}, {"value": (0, CLEAR)}),
        # a change of mind
        (work_of(lease_of(DOWN, (UP, {"value": FINE}))), {"value": DELIVERED}, {"value": (1, CLEAR)}),
        (work_of(lease_of(DOWN, (UP, {"value": FINE}))), {"value": LATER}, {"value": (0, CLEAR)}),
        (work_of(lease_of(DOWN, (UP, {"value": FINE}))), {"value": REFUSED}, {"value": (0, CLEAR)}),
        (work_of(lease_of(DOWN, (UP, {"value": FINE}))), {"value": CANNOT}, {"value": (0, CLEAR)}),
        (work_of(lease_of(DOWN, (UP, {"value": FINE}))), {"value": LOST}, {"value": (1, VAGUE)}),
        (work_of(lease_of(DOWN, (UP, {"value": UNCLEAR}))), {"value": REFUSED}, {"value": (0, VAGUE)}),
        (work_of(lease_of(UP, (UP, {"value": FINE})), idle_reason="same"), {}, {"value": (0, CLEAR)}),
        # taken back
        (work_of(lease_of(BACK, (UP, {"value": FINE}))), {"value": DELIVERED}, {}),
        (work_of(lease_of(BACK, (UP, {"value": FINE}))), {"value": LATER}, {"value": (0, CLEAR)}),
        (work_of(lease_of(BACK, (UP, {"value": FINE}))), {"value": CANNOT}, {"value": (0, CLEAR)}),
        (work_of(lease_of(BACK, (UP, {"value": FINE}))), {"value": REFUSED}, {"value": (0, CLEAR)}),
        (work_of(lease_of(BACK, (UP, {"value": FINE}))), {"value": LOST}, {"value": (0, VAGUE)}),
        (
            work_of(lease_of(BACK, (UP, {"value": FINE}), parts={"value": UNCLEAR})),
            {"value": REFUSED},
            {"value": (0, VAGUE)},
        ),
        (work_of(lease_of(BACK, parts={"value": UNCLEAR})), {"value": REFUSED}, {}),
        # an exporter that cannot say what to send any more: what it had sent is there all the same
        (work_of(lease_of(DOWN, (UP, {"value": FINE})), broken_reason="broken"), {}, {"value": (0, CLEAR)}),
        (work_of(lease_of(NOTED, parts={"value": FINE}), broken_reason="broken"), {}, {"value": (0, CLEAR)}),
        (work_of(lease_of(NOTED, parts={"value": UNCLEAR}), broken_reason="broken"), {}, {"value": (0, VAGUE)}),
        (work_of(lease_of(DOWN, (UP, {"value": FINE})), failure=FAILED), {"": LATER}, {"value": (0, CLEAR)}),
        (work_of(lease_of(NOTED, parts={"value": FINE}), failure=FAILED), {"": LATER}, {"value": (0, CLEAR)}),
        (work_of(lease_of(NOTED, parts={"value": UNCLEAR}), failure=FAILED), {"": REFUSED}, {"value": (0, VAGUE)}),
        (
            work_of(lease_of(BACK, (NOTED, {"value": FINE, "comment": FINE}), parts={"value": FINE}), failure=FAILED),
            {"": REFUSED},
            {"comment": (0, CLEAR)},
        ),
        (
            work_of(lease_of(BACK, (UP, {"value": FINE}), parts={"value": UNCLEAR}), failure=FAILED),
            {"": LATER},
            {"value": (0, VAGUE)},
        ),
    ],
)
def test_what_stands_from_now_on_is_kept_with_the_end(
    work: Work, decisions: dict[str, Any], standing: dict[str, tuple[int, bool]]
) -> None:
    """
    The next revision learns which one the destination has in each kind, and whether that is clear.
    """
    settlement = settlement_of(work, decisions, now=NOW)

    assert standing == {kind: (each.record.revision, each.is_unclear) for kind, each in settlement.standing.items()}


@pytest.mark.parametrize(("removed", "others"), [((), (0,)), ((0,), ())])
def test_what_a_change_has_removed_before_it_was_lost_stands_no_more(
    removed: tuple[int, ...], others: tuple[int, ...]
) -> None:
    """
    Of the earlier revisions those that may still be there are kept beside the one that may have arrived.
    """
    work = work_of(lease_of(DOWN, (UP, {"value": FINE})))
    settlement = settlement_of(work, {"value": replace(LOST, removed=removed)}, now=NOW)

    assert [others] == [each.others for each in settlement.standing.values()]


@pytest.mark.parametrize(
    ("results", "is_it"),
    [
        ([], False),
        ([RetryableFailure("busy")], True),
        ([Unclear("timeout")], True),
        ([RetryableFailure("busy"), Unclear("timeout")], True),
        ([Unclear("timeout"), RetryableFailure("not tried after: timeout", is_tried=False)], True),
        ([RetryableFailure("busy"), Success()], False),
        ([Unclear("timeout"), PermanentFailure("422")], False),
        ([PauseDestination("401")], False),
        ([Success()], False),
        ([PermanentFailure("422")], False),
        # nothing was asked of the vendor
        ([Skipped("cannot")], False),
        ([RetryableFailure("the lease was about to run out", is_tried=False)], False),
        # the vendor has answered that it does not know the trace yet
        ([RetryableFailure("HTTP 404", give_up_after_millis=HOUR_MILLIS)], False),
    ],
)
def test_a_destination_is_down_where_nothing_gets_through(results: list[Result], is_it: bool) -> None:
    """
    A round in which each part failed, for no reason that lies in a record, says that the destination is down.
    """
    assert is_it == is_down(results)


# --- a round -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def deliverer_of(store: MemoryStore, clock: FakeClock, rng: random.Random) -> Callable[..., Deliverer]:
    """Make a deliverer to an exporter."""

    def make(exporter: Any, *, is_released: Any = unreleased, outbox: MemoryStore = store, **more: Any) -> Deliverer:
        return Deliverer(outbox, exporter, policy=RetryPolicy(), clock=clock, rng=rng, is_released=is_released, **more)

    return make


DelivererMaker = Callable[..., Deliverer]


def status(store: MemoryStore, number: int = 1) -> DeliveryStatus:
    return (store.status(record(number).id) or {})["a"]


def go_on(deliverer: Deliverer, clock: FakeClock) -> None:
    """Let time pass until something is due, and make a round."""
    clock.advance(millis=(deliverer.next_due_millis() or 0) + 1)
    deliverer.run_once()


def test_a_round_delivers_what_is_due(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    A round leases, exports and settles; the next one finds nothing.
    """
    exporter = PartsExporter()
    store.put(record(**NOTED), ["a"])
    deliverer = deliverer_of(exporter)

    assert [Round(1), Round()] == [deliverer.run_once(), deliverer.run_once()]
    assert [("create", "value", True), ("create", "comment", "x")] == exporter.exported
    assert DeliveryStatus("delivered", "value: delivered; comment: delivered", 1) == status(store)


def test_rounds_grow_to_a_batch(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    The first round takes few, since nobody knows how long a vendor takes; then each takes twice as many, up to a batch.
    """
    for number in range(1, 352):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(PartsExporter())

    assert [10, 20, 40, 80, BATCH_RECORDS, BATCH_RECORDS, 1, 0] == [deliverer.run_once().leased for _ in range(8)]


def test_a_round_takes_as_many_as_the_one_before_got_to(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    What the exporter did not try, because what came before took its time, is not leased for nothing again.
    """

    class Impatient(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            return [*super().export(parts[:4]), *(RetryableFailure("not tried", is_tried=False) for _ in parts[4:])]

    for number in range(1, 41):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(Impatient())

    assert [10, 4, 8, 4] == [deliverer.run_once().leased for _ in range(4)]


def test_a_vendor_that_is_slow_gets_fewer_at_once(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A round that took too long is followed by one that should not; when it is quick again, they grow again.
    """

    class Slow(PartsExporter):
        millis = 30_000

        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            clock.advance(millis=self.millis * len(parts))
            return super().export(parts)

    for number in range(1, 100):
        store.put(record(number), ["a"])
    exporter = Slow()
    deliverer = deliverer_of(exporter)
    leased = [deliverer.run_once().leased for _ in range(3)]
    exporter.millis = 0
    leased += [deliverer.run_once().leased for _ in range(3)]

    assert [10, 2, 4, 2, 4, 8] == leased


@pytest.mark.parametrize(
    ("limit", "round_", "following"),
    [
        # all of it was tried in time
        (10, {"taken": 10, "untried": 0, "took_millis": 0}, 20),
        (10, {"taken": 3, "untried": 0, "took_millis": LONGEST_ROUND_MILLIS}, 20),
        (80, {"taken": 80, "untried": 0, "took_millis": 1_000}, 100),
        (100, {"taken": 100, "untried": 0, "took_millis": 1_000}, 100),
        (1, {"taken": 1, "untried": 0, "took_millis": 0}, 2),
        # it took too long
        (10, {"taken": 10, "untried": 0, "took_millis": LONGEST_ROUND_MILLIS + 1}, 9),
        (10, {"taken": 10, "untried": 0, "took_millis": 2 * LONGEST_ROUND_MILLIS}, 5),
        (100, {"taken": 100, "untried": 60, "took_millis": 2 * LONGEST_ROUND_MILLIS}, 50),
        (10, {"taken": 1, "untried": 0, "took_millis": 2 * LONGEST_ROUND_MILLIS}, 1),
        # not all of it was tried
        (100, {"taken": 100, "untried": 60, "took_millis": 1_000}, 40),
        (100, {"taken": 100, "untried": 100, "took_millis": 1_000}, 1),
        (10, {"taken": 2, "untried": 3, "took_millis": 1_000}, 1),
    ],
)
def test_the_next_round_takes_as_many_as_this_one_could(limit: int, round_: dict[str, int], following: int) -> None:
    """
    Twice as many where all went in time, else what went in time; never none, and never more than a batch.
    """
    assert following == next_limit(limit, **round_, batch_size=100)


@pytest.mark.parametrize("failure", [RetryableFailure("busy"), Unclear("timeout"), PauseDestination("401")])
def test_the_retry_of_a_score_never_repeats_a_comment(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, failure: Result
) -> None:
    """
    Only the part that did not arrive is sent again.
    """
    exporter = PartsExporter({"value": [failure, failure]})
    store.put(record(**NOTED), ["a"])
    deliverer = deliverer_of(exporter)

    assert Round(1, has_failed=True) == deliverer.run_once()
    go_on(deliverer, clock)
    go_on(deliverer, clock)
    assert ["value", "comment", "value", "value"] == [kind for _, kind, _ in exporter.exported]
    assert "delivered" == status(store).state


def test_results_belong_to_the_parts_in_order(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    Of several records with several parts each gets its own result.
    """
    exporter = PartsExporter({"value": [Success(), PermanentFailure("422")], "comment": [Skipped("cannot"), Success()]})
    store.put(record(1, **NOTED), ["a"])
    store.put(record(2, **NOTED), ["a"])
    has_failed = deliverer_of(exporter).run_once().has_failed

    assert ["value: delivered; comment: cannot", "value: 422; comment: delivered"] == [
        status(store, number).reason for number in (1, 2)
    ]
    assert (["delivered", "dead"], False) == ([status(store, number).state for number in (1, 2)], has_failed)


def test_a_dead_letter_is_logged_with_its_reason(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What a vendor refuses is one line with the id, the destination and the vendor's reason.
    """
    store.put(record(), ["a"])
    deliverer_of(PartsExporter({"value": [PermanentFailure("422 no such field")]})).run_once()

    said = f"feedback {record().id} is dead at a: 422 no such field"
    assert [("otel_feedback._deliver", logging.ERROR, said)] == caplog.record_tuples
    assert DeliveryStatus("dead", "422 no such field", 1) == status(store)


def test_a_record_that_fails_for_too_long_is_given_up(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    After days and ten attempts a record is a dead letter with the last reason, and can be requeued.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy")] * 10})
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    states = []
    for _ in range(10):
        deliverer.run_once()
        states.append(status(store).state)
        clock.advance(seconds=86_400)

    assert ["pending"] * 9 + ["dead"] == states
    assert DeliveryStatus("dead", "given up after 7 d: busy", 10) == status(store)
    assert store.requeue(record().id, "a")
    deliverer.run_once()
    assert DeliveryStatus("delivered", "delivered", 1) == status(store)


def test_a_machine_that_was_off_for_weeks_gives_nothing_up(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    What is old but has hardly been tried is tried again.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy")]})
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    clock.advance(seconds=30 * 86_400)
    deliverer.run_once()

    assert DeliveryStatus("pending", "busy", 1) == status(store)
    go_on(deliverer, clock)
    assert DeliveryStatus("delivered", "delivered", 2) == status(store)


def test_what_was_not_even_tried_is_no_attempt(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A part that waits because of the one before it never grows too old, however often that happens.
    """
    untried = RetryableFailure("not tried after: busy", is_tried=False)
    exporter = PartsExporter({"value": [untried] * 12})
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    for _ in range(12):
        go_on(deliverer, clock)
        clock.advance(seconds=86_400)

    assert (DeliveryStatus("pending", "not tried after: busy", 0), 0) == (status(store), store.stats()["a"].retried)
    go_on(deliverer, clock)
    assert DeliveryStatus("delivered", "delivered", 1) == status(store)


def test_a_requeued_dead_letter_sends_what_was_refused_and_nothing_else(
    store: MemoryStore, deliverer_of: DelivererMaker
) -> None:
    """
    After a requeue the dead part is tried again and the delivered one is not repeated.
    """
    exporter = PartsExporter({"value": [PermanentFailure("422")]})
    store.put(record(**NOTED), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()
    store.requeue(record().id, "a")
    deliverer.run_once()

    assert ["value", "comment", "value"] == [kind for _, kind, _ in exporter.exported]
    assert "delivered" == status(store).state


def test_a_vendor_that_carries_nothing_is_not_asked(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    A record without parts is skipped with a reason, and nothing is exported.
    """
    exporter = PartsExporter()
    store.put(record(value=None, tags=("t",)), ["a"])

    assert Round(1) == deliverer_of(exporter).run_once()
    assert ([], DeliveryStatus("skipped", "a can carry nothing of it", 0)) == (exporter.exported, status(store))


def test_a_change_of_mind_is_amended_then_taken_back(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    A delivered judgement is replaced by its newer revision, kept where nothing changed, and retracted in the end.
    """
    exporter = PartsExporter()
    deliverer = deliverer_of(exporter)
    states = []
    for said in (NOTED, {**DOWN, "comment": "x"}, {**DOWN, "comment": "x"}, DOWN, BACK):
        store.put(record(**said), ["a"])
        deliverer.run_once()
        states.append(status(store).state)

    assert ["delivered", "delivered", "skipped", "delivered", "retracted"] == states
    assert [
        ("create", "value", True),
        ("create", "comment", "x"),
        ("replace", "value", False),
        ("retract", "comment", "x"),
        ("retract", "value", False),
    ] == exporter.exported


def test_a_judgement_that_may_not_have_arrived_is_said_again_by_the_same_one(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    When the answer was lost and the person says the same again, the vendor gets it for certain.
    """
    exporter = PartsExporter({"value": [Unclear("timeout")]})
    deliverer = deliverer_of(exporter)
    store.put(record(), ["a"])
    deliverer.run_once()
    store.put(record(), ["a"])
    deliverer.run_once()

    assert [("create", "value", True), ("replace", "value", True)] == exporter.exported
    assert "delivered" == status(store).state


def test_held_parts_go_when_their_time_has_come(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    What is held back is no attempt, does not delay the other part, and goes at its time.
    """
    exporter = PartsExporter()
    exporter.not_before = {"value": clock.time_unix_nano() + 5_000 * NANOS_PER_MILLI}
    store.put(record(**NOTED), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()

    assert DeliveryStatus("pending", "held until the span has arrived", 0) == status(store)
    assert 5_000 == deliverer.next_due_millis()
    clock.advance(seconds=5)
    deliverer.run_once()
    assert ["comment", "value"] == [kind for _, kind, _ in exporter.exported]


def test_released_parts_are_not_held(store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock) -> None:
    """
    What is about a span that is known to have arrived goes at once.
    """
    exporter = PartsExporter()
    exporter.not_before = {"value": clock.time_unix_nano() + 1}
    store.put(record(), ["a"])
    deliverer_of(exporter, is_released=lambda handle: handle == record().handle).run_once()

    assert "delivered" == status(store).state


def test_what_is_next_due_is_told_in_milliseconds(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    Nothing, something now or overdue, and something later are `None`, 0 and the time that is left.
    """
    deliverer = deliverer_of(PartsExporter())
    due = [deliverer.next_due_millis()]
    store.put(record(), ["a"])
    due.append(deliverer.next_due_millis())
    clock.advance(seconds=1)
    due.append(deliverer.next_due_millis())
    store.lease("a", limit=1, duration_millis=1_500)
    due.append(deliverer.next_due_millis())

    assert [None, 0, 0, 1_500] == due


# --- a destination that is paused or fails -----------------------------------------------------------------------


def test_a_paused_destination_buries_nothing_and_is_logged_once(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    For weeks of refusals nothing is lost, nothing counts as an attempt, and the log has one line, then one more.

    After the first round only one record at a time finds out whether it is mended.
    """
    exporter = PartsExporter({"value": [PauseDestination("401 the key is not valid")] * 5})
    for number in (1, 2):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(exporter)
    rounds = []
    for _ in range(4):
        rounds.append((deliverer.run_once(), deliverer.run_once()))
        clock.advance(seconds=8 * 86_400)

    assert [(Round(leased, has_failed=True), Round()) for leased in (2, 1, 1, 1)] == rounds
    assert [DeliveryStatus("pending", "401 the key is not valid", 0)] * 2 == [status(store, n) for n in (1, 2)]
    assert ["a is paused, nothing is lost: 401 the key is not valid"] == caplog.messages
    assert [Round(1), Round(1)] == [deliverer.run_once(), deliverer.run_once()]
    assert ["delivered", "delivered"] == [status(store, number).state for number in (1, 2)]
    assert ["a delivers again"] == caplog.messages[1:]


def test_a_pause_is_for_all_and_ends_with_what_gets_through(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    While a destination is paused the account says why, and what is recorded meanwhile waits until a probe got through.
    """
    exporter = PartsExporter({"value": [PauseDestination("401")]})
    store.put(record(1), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()
    for number in (2, 3):
        store.put(record(number), ["a"])

    assert ("401", RetryPolicy().pause_millis) == (store.stats()["a"].paused, deliverer.next_due_millis())
    assert Round() == deliverer.run_once()
    clock.advance(millis=RetryPolicy().pause_millis)
    assert ([Round(1), Round(2)], None) == (
        [deliverer.run_once(), deliverer.run_once()],
        store.stats()["a"].paused,
    )


def test_another_request_s_id_is_no_other_reason_for_a_pause(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What a vendor says at each probe is told once, however it numbers its answers.
    """
    refusals = [PauseDestination(f"HTTP {each}: is the key valid?") for each in ("401 (request a)", "401 (request b)")]
    store.put(record(), ["a"])
    deliverer = deliverer_of(PartsExporter({"value": refusals}))
    for _ in refusals:
        deliverer.run_once()
        clock.advance(seconds=3_600)

    assert ["a is paused, nothing is lost: HTTP 401 (request a): is the key valid?"] == caplog.messages


def test_a_pass_goes_on_behind_a_record_that_waits_for_something_of_its_own(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A trace that has not arrived keeps nobody else's feedback from being flushed, however the batches fall.
    """
    waits = RetryableFailure("no trace", give_up_after_millis=3_600_000)
    for number in range(10):
        store.put(record(number), ["a"])
    exporter = PartsExporter({"value": [waits, *[Success()] * 9]})
    drain(deliverer_of(exporter, batch_size=2), deadline_nano=clock.monotonic_nano() + 1, clock=clock)

    assert (9, 1) == (store.stats()["a"].delivered, store.stats()["a"].pending)


def test_another_reason_for_a_pause_is_logged(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When what is wrong with a destination changes, the log says so.
    """
    exporter = PartsExporter({"value": [PauseDestination("401"), PauseDestination("403"), PauseDestination("403")]})
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    for _ in range(3):
        deliverer.run_once()
        clock.advance(seconds=3_600)

    assert ["a is paused, nothing is lost: 401", "a is paused, nothing is lost: 403"] == caplog.messages


def test_a_failing_destination_is_logged_once_until_it_is_back(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The first failure and the recovery have a line each, whatever is between them, and so has a failure a minute later.
    """
    failures: list[Result] = [RetryableFailure("busy"), Unclear("timeout"), RetryableFailure("busy")]
    often = [Unclear("again"), Success()]
    exporter = PartsExporter({"value": [*failures, Success(), *often, Unclear("lost"), Success()]})
    deliverer = deliverer_of(exporter)
    for number in (1, 2, 3):
        store.put(record(number), ["a"])
        while deliverer.next_due_millis() is not None:
            go_on(deliverer, clock)
        clock.advance(millis=REPORT_MILLIS if number == 2 else 0)

    assert [
        "a: 1 parts wait and are tried again: busy",
        "a delivers again",
        "a: 1 parts wait and are tried again: lost",
        "a delivers again",
    ] == caplog.messages


class FailingOnce(MemoryStore):
    """Cannot be written when the first leases end."""

    has_failed = False

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
        if not self.has_failed:
            self.has_failed = True
            raise StoreError("locked", store=self.url)
        return super().settle_many(endings)


def test_what_the_vendor_has_said_is_kept_when_the_store_cannot_take_it(
    deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    The next round settles it; nothing is sent twice.
    """
    store = FailingOnce(clock=clock)
    store.put(record(1), ["a"])
    exporter = PartsExporter()
    deliverer = deliverer_of(exporter, outbox=store)
    with pytest.raises(StoreError):
        deliverer.run_once()
    deliverer.run_once()

    assert (1, 1) == (store.stats()["a"].delivered, len(exporter.exported))


class LockedOnce(MemoryStore):
    """Cannot be written right after the vendor has answered, whatever is asked for first."""

    is_locked = False

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
        self._fail_once()
        return super().settle_many(endings)

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        self._fail_once()
        super().pause(destination, reason=reason, until_unix_nano=until_unix_nano)

    def _fail_once(self) -> None:
        if self.is_locked:
            self.is_locked = False
            raise StoreError("locked", store=self.url)


def test_what_a_vendor_has_said_of_others_is_kept_when_it_asks_for_a_pause_that_the_store_cannot_take(
    deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    One is delivered and the next one refused with the key: the first is not sent again, and the pause is made and told.
    """
    store = LockedOnce(clock=clock)
    for number in (1, 2):
        store.put(record(number), ["a"])

    class Refusing(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            store.is_locked = True
            super().export(parts)
            return [Success() if part.record.id == record(1).id else PauseDestination("HTTP 401") for part in parts]

    exporter = Refusing()
    deliverer = deliverer_of(exporter, outbox=store)
    with pytest.raises(StoreError):
        deliverer.run_once()
    store.is_locked = False
    assert Round() == deliverer.run_once()  # it is paused

    assert (1, 1, "HTTP 401") == ((stats := store.stats()["a"]).delivered, stats.pending, stats.paused)
    assert 2 == len(exporter.exported)
    assert "a is paused, nothing is lost: HTTP 401" in caplog.messages


def test_unsettled_rounds_may_be_taken_by_several_threads(deliverer_of: DelivererMaker, clock: FakeClock) -> None:
    """
    Whoever finds that another thread has ended them goes on.
    """
    store = FailingOnce(clock=clock)
    store.put(record(1), ["a"])
    deliverer = deliverer_of(PartsExporter(), outbox=store)
    with pytest.raises(StoreError):
        deliverer.run_once()

    class Emptied(deque):  # type: ignore[type-arg]
        """Looks as if another thread had taken what was counted."""

        def __len__(self) -> int:
            return super().__len__() + 1

    deliverer._unsettled = Emptied(deliverer._unsettled)
    deliverer.run_once()

    assert 1 == store.stats()["a"].delivered


@pytest.mark.parametrize("kind", ["half of a pair: \ud83d", 5, None])
def test_a_kind_that_cannot_be_kept_is_the_exporter_s_failure(
    store: MemoryStore, deliverer_of: DelivererMaker, kind: Any
) -> None:
    """
    Nothing is sent whose outcome could not be kept, and nothing stays leased.
    """

    class Odd(PartsExporter):
        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            return [Part(record=record, kind=kind, body={})]

    exporter = Odd()
    store.put(record(), ["a"])
    deliverer_of(exporter).run_once()

    assert DeliveryStatus("pending", "the exporter failed (ValueError)", 1) == status(store)
    assert [] == exporter.exported


@pytest.mark.parametrize("method", ["parts", "export"])
def test_an_interrupt_of_whoever_drives_the_delivery_gets_through(
    store: MemoryStore, deliverer_of: DelivererMaker, method: str
) -> None:
    """
    Ctrl-C in a program that calls `deliver()` ends the program.
    """

    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    exporter = PartsExporter()
    setattr(exporter, method, interrupt)
    store.put(record(), ["a"])
    with pytest.raises(KeyboardInterrupt):
        deliverer_of(exporter).run_once()

    assert "leased" == status(store).state


def test_a_first_success_is_not_worth_a_line(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A destination that never failed is not said to be back.
    """
    store.put(record(), ["a"])
    deliverer_of(PartsExporter()).run_once()

    assert [] == caplog.messages


# --- what may have arrived ---------------------------------------------------------------------------------------

# What a judgement's revisions are, the last of which a worker sends without saying how it ended, and what is sent then.
CHANGES_OF_MIND = [
    ([UP], ("create", "value", True)),
    ([UP, DOWN], ("replace", "value", False)),
    ([UP, BACK], ("retract", "value", True)),
]


@pytest.mark.parametrize(("revisions", "sent"), CHANGES_OF_MIND)
def test_what_a_worker_left_behind_is_sent_again_as_what_may_have_arrived(
    store: MemoryStore,
    deliverer_of: DelivererMaker,
    clock: FakeClock,
    revisions: Sequence[Said],
    sent: tuple[str, str, Any],
) -> None:
    """
    When a lease runs out the next worker does the same again, whatever it was, and the exporter knows.
    """
    exporter = PartsExporter()
    deliverer = deliverer_of(exporter)
    *earlier, last = revisions
    for said in earlier:
        store.put(record(**said), ["a"])
        deliverer.run_once()
    store.put(record(**last), ["a"])
    store.lease("a", limit=1, duration_millis=LEASE_MILLIS)
    clock.advance(millis=LEASE_MILLIS)
    deliverer.run_once()

    assert (sent, ["value"]) == (exporter.exported[-1], exporter.repeated)
    assert ("retracted" if last is BACK else "delivered") == status(store).state


@pytest.mark.parametrize("refusal", [PermanentFailure("422"), Skipped("cannot")])
@pytest.mark.parametrize(("revisions", "sent"), CHANGES_OF_MIND)
@pytest.mark.parametrize(("newer", "action"), [(UP, "replace"), (DOWN, "replace"), (BACK, "retract")])
def test_what_was_unclear_before_it_was_refused_may_be_there_to_the_newer_judgement(
    store: MemoryStore,
    deliverer_of: DelivererMaker,
    clock: FakeClock,
    refusal: Result,
    revisions: Sequence[Said],
    sent: tuple[str, str, Any],
    newer: Said,
    action: str,
) -> None:
    """
    After a lost answer and a refusal the next revision says it for certain, or takes back what may be there.
    """
    exporter = PartsExporter({"value": [*[Success()] * (len(revisions) - 1), Unclear("timeout"), refusal]})
    deliverer = deliverer_of(exporter)
    for said in revisions:
        store.put(record(**said), ["a"])
        deliverer.run_once()
    go_on(deliverer, clock)

    assert ([sent, sent], ["value"]) == (exporter.exported[-2:], exporter.repeated)
    assert ("dead" if isinstance(refusal, PermanentFailure) else "skipped") == status(store).state
    store.put(record(**newer), ["a"])
    deliverer.run_once()
    assert action == exporter.exported[-1][0]
    assert ("retracted" if newer is BACK else "delivered") == status(store).state


def test_every_revision_that_may_be_there_is_kept_in_the_store(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    However often the answer is lost while a person changes their mind, the last word replaces all that may be there.
    """
    revisions: list[tuple[int, ...]] = []

    class Telling(PartsExporter):
        def take(self, part: Part) -> Result:
            revisions.append(part.revisions)
            return super().take(part)

    deliverer = deliverer_of(Telling({"value": [Success(), Unclear("lost"), Unclear("lost"), Success(), Success()]}))
    for said in (UP, DOWN, UP, DOWN, BACK):
        store.put(record(**said), ["a"])
        deliverer.run_once()

    assert [(), (0,), (1, 0), (2, 1, 0), (3,)] == revisions


def test_what_a_worker_left_behind_and_the_vendor_refuses_may_be_there(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A refusal of the second try says nothing of the first, which nobody knows the end of.
    """
    exporter = PartsExporter({"value": [PermanentFailure("422")]})
    deliverer = deliverer_of(exporter)
    store.put(record(), ["a"])
    store.lease("a", limit=1, duration_millis=LEASE_MILLIS)
    clock.advance(millis=LEASE_MILLIS)
    deliverer.run_once()
    store.put(record(**BACK), ["a"])
    deliverer.run_once()

    assert ["create", "retract"] == [action for action, _, _ in exporter.exported]


def test_what_was_unclear_may_be_there_after_a_requeue_that_was_refused_again(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A dead letter that is tried again by hand, and is refused again, is still taken back by the retraction.
    """
    exporter = PartsExporter({"value": [Unclear("timeout"), PermanentFailure("422"), PermanentFailure("422")]})
    deliverer = deliverer_of(exporter)
    store.put(record(), ["a"])
    deliverer.run_once()
    go_on(deliverer, clock)
    store.requeue(record().id, "a")
    deliverer.run_once()
    store.put(record(**BACK), ["a"])
    deliverer.run_once()

    assert ["create", "create", "create", "retract"] == [action for action, _, _ in exporter.exported]


@pytest.mark.parametrize("error", [ValueError(), InvalidFeedbackError("no", field="native")])
@pytest.mark.parametrize("first", [Success(), Unclear("timeout")])
def test_what_arrived_before_the_exporter_failed_can_be_taken_back(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, error: Exception, first: Result
) -> None:
    """
    A record that an exporter cannot read any more waits or is dead, but what it had sent of it is there.
    """

    class Forgetful(PartsExporter):
        is_broken = False

        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            if self.is_broken:
                raise error
            return super().parts(record)

    exporter = Forgetful({"value": [first], "comment": [RetryableFailure("busy")]})
    deliverer = deliverer_of(exporter)
    store.put(record(**NOTED), ["a"])
    deliverer.run_once()
    exporter.is_broken = True
    go_on(deliverer, clock)
    exporter.is_broken = False
    store.put(record(**BACK), ["a"])
    deliverer.run_once()

    assert ("retract", "value", True) == exporter.exported[-1]


def test_a_newer_judgement_replaces_what_was_lost_on_its_way(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    When a newer judgement came while the older was sent, and that answer was lost, the newer one is said for certain.
    """

    class Interrupted(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            if not self.exported:
                store.put(record(**UP), ["a"])
            return super().export(parts)

    exporter = Interrupted({"value": [Unclear("timeout")]})
    store.put(record(**UP), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()

    assert 1 == store.stats()["a"].superseded
    deliverer.run_once()
    assert [("create", "value", True), ("replace", "value", True)] == exporter.exported


def test_nothing_is_sent_on_a_lease_that_is_about_to_run_out(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A process that stood still since it took the lease sends nothing, since others may soon; it is no attempt.
    """

    class Stalled(PartsExporter):
        stalls_millis = 0

        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            clock.advance(millis=self.stalls_millis)
            return super().parts(record)

    exporter = Stalled()
    exporter.stalls_millis = LEASE_MILLIS - EXPORT_MILLIS + 1
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)

    assert Round(1, has_failed=True) == deliverer.run_once()
    assert DeliveryStatus("pending", "the lease was about to run out", 0) == status(store)
    exporter.stalls_millis -= 1
    assert Round(1) == deliverer.run_once()
    assert ([("create", "value", True)], []) == (exporter.exported, exporter.repeated)


def test_what_is_held_for_long_is_looked_at_every_hour(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A part that waits for half a day is held all the time, is no attempt, and goes at its time.
    """
    exporter = PartsExporter()
    exporter.not_before = {"value": clock.time_unix_nano() + HOUR_NANO * 3 // 2}
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    dues = []
    for _ in range(3):
        deliverer.run_once()
        dues.append(deliverer.next_due_millis())
        clock.advance(millis=dues[-1] or 0)

    assert [HOUR_MILLIS, HOUR_MILLIS // 2, None] == dues
    assert DeliveryStatus("delivered", "delivered", 1) == status(store)


def test_a_span_that_has_arrived_frees_what_is_held_beyond_the_hour(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    What was looked at once, and waits again, is still held, so that a release brings it forward.
    """
    arrived: list[FeedbackHandle] = []
    exporter = PartsExporter()
    exporter.not_before = {"value": clock.time_unix_nano() + 24 * HOUR_NANO}
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter, is_released=arrived.__contains__)
    deliverer.run_once()
    go_on(deliverer, clock)
    arrived.append(record().handle)
    deliverer.release()

    assert (0, Round(1), "delivered") == (deliverer.next_due_millis(), deliverer.run_once(), status(store).state)


# --- the order of a call -----------------------------------------------------------------------------------------


def test_judgements_of_one_call_go_together(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    Where the exporter does not say that they stand in one line, nobody waits for what somebody else said.
    """
    store.put(record(1), ["a"])
    store.put(replace(record(2), handle=record(1).handle), ["a"])

    assert Round(2) == deliverer_of(PartsExporter()).run_once()


@pytest.mark.parametrize(("orders_by_call", "leased"), [(True, [1, 0, 1, 1]), (False, [2, 0, 1, 0])])
def test_a_vendor_that_keeps_one_value_for_all_gets_a_call_s_judgements_in_order(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, orders_by_call: bool, leased: list[int]
) -> None:
    """
    Where the exporter says so, what somebody else says of the same call waits for what was said before.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy")]})
    cast("Any", exporter).orders_by_call = orders_by_call
    store.put(record(1), ["a"])
    store.put(replace(record(2, **DOWN), handle=record(1).handle), ["a"])
    deliverer = deliverer_of(exporter)
    rounds = [deliverer.run_once(), deliverer.run_once()]
    assert deliverer.next_due_millis()
    clock.advance(millis=deliverer.next_due_millis() or 0)
    rounds += [deliverer.run_once(), deliverer.run_once()]

    assert leased == [each.leased for each in rounds]
    assert orders_by_call != exporter.exported[-1][2]


# --- the breaker -------------------------------------------------------------------------------------------------

DOWN_ROUNDS: list[Result] = [RetryableFailure("busy"), Unclear("timeout")] * (BREAKER_ROUNDS // 2)


@pytest.fixture
def many(store: MemoryStore) -> MemoryStore:
    """A store with more to deliver than any test here tries."""
    for number in range(1, 200):
        store.put(record(number), ["a"])
    return store


def open_breaker(deliverer: Deliverer) -> None:
    """Let everything fail until the destination counts as down."""
    for _ in range(BREAKER_ROUNDS):
        assert Round(1, has_failed=True) == deliverer.run_once()


def test_ten_rounds_that_get_nothing_through_pause_the_destination(
    many: MemoryStore, deliverer_of: DelivererMaker
) -> None:
    """
    Nine are chance; after the tenth the account says why, and nothing of it is lost.
    """
    deliverer = deliverer_of(PartsExporter({"value": DOWN_ROUNDS}), batch_size=1)
    paused = []
    for _ in range(BREAKER_ROUNDS):
        deliverer.run_once()
        paused.append(many.stats()["a"].paused)

    assert [None] * 9 + ["timeout"] == paused
    assert (199, BREAKER_ROUNDS) == (many.stats()["a"].pending, many.stats()["a"].retried)


@pytest.mark.parametrize("good", [Success(), PermanentFailure("422")])
def test_what_gets_through_begins_the_count_anew(many: MemoryStore, deliverer_of: DelivererMaker, good: Result) -> None:
    """
    Ten rounds that fail are no outage when the vendor answered in between, if only to refuse.
    """
    results = [*DOWN_ROUNDS[:9], good, *DOWN_ROUNDS[:9], good]
    deliverer = deliverer_of(PartsExporter({"value": results}), batch_size=1)
    for _ in results:
        deliverer.run_once()

    assert None is many.stats()["a"].paused


def test_one_part_that_gets_through_is_enough(many: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    A vendor that fails at most of a batch is slow, and not down.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy"), Success()] * BREAKER_ROUNDS})
    deliverer = deliverer_of(exporter, batch_size=2)
    rounds = [deliverer.run_once() for _ in range(BREAKER_ROUNDS)]

    assert ([Round(2, has_failed=True)] * 10, None) == (rounds, many.stats()["a"].paused)


def test_a_destination_that_is_down_is_tried_once_a_second(
    many: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    However much waits and however often it is asked for, one record a second finds out whether it is back.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy")] * 1_000})
    deliverer = deliverer_of(exporter, batch_size=1)
    open_breaker(deliverer)
    tries = []
    for _ in range(100):
        tries += [clock.monotonic_nano() // NANOS_PER_MILLI] * deliverer.run_once().leased
        clock.advance(millis=100)

    assert {PROBE_MILLIS} == {later - sooner for sooner, later in itertools.pairwise(tries)}
    assert len(tries) in (9, 10)


@pytest.mark.parametrize("good", [Success(), PermanentFailure("422")])
def test_a_probe_that_the_vendor_answers_ends_the_pause(
    many: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, good: Result
) -> None:
    """
    Whether it takes the record or refuses it: the vendor is back, and full batches go.
    """
    deliverer = deliverer_of(PartsExporter({"value": [*DOWN_ROUNDS, good]}), batch_size=1)
    open_breaker(deliverer)
    clock.advance(millis=PROBE_MILLIS)
    probe = deliverer.run_once()

    assert (Round(1), None) == (probe, many.stats()["a"].paused)
    assert [Round(1)] * 5 == [deliverer.run_once() for _ in range(5)]


@pytest.mark.parametrize(
    ("wish_millis", "wait_millis"),
    [(30_000, 30_000), (HOUR_MILLIS, HOUR_MILLIS), (24 * HOUR_MILLIS, HOUR_MILLIS)],
)
def test_a_probe_s_retry_after_is_for_the_destination(
    many: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, wish_millis: int, wait_millis: int
) -> None:
    """
    When a vendor that is down says how long, nothing is tried before then; an hour is the longest.
    """
    busy = RetryableFailure("busy", retry_after_millis=wish_millis)
    deliverer = deliverer_of(PartsExporter({"value": [*DOWN_ROUNDS, busy]}), batch_size=1)
    open_breaker(deliverer)
    clock.advance(millis=PROBE_MILLIS)
    deliverer.run_once()

    assert wait_millis == deliverer.next_due_millis()
    clock.advance(millis=wait_millis - 1)
    assert Round() == deliverer.run_once()
    clock.advance(millis=1)
    assert Round(1) == deliverer.run_once()


@pytest.mark.parametrize(
    "said",
    [{"value": None, "tags": ("t",)}, {"value": None, "comment": "held"}, {"value": None, "comment": "skipped"}],
)
def test_a_probe_that_asked_nothing_of_the_vendor_decides_nothing(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, said: Said
) -> None:
    """
    A record with nothing to send, or held back, or skipped by the exporter leaves the destination as it is.
    """
    exporter = PartsExporter({"comment": [Skipped("cannot")]})
    if said.get("comment") == "held":
        exporter.not_before = {"comment": clock.time_unix_nano() + HOUR_NANO}
    store.put(record(1, **said), ["a"])
    store.put(record(2), ["a"])
    store.pause("a", reason="timeout", until_unix_nano=clock.time_unix_nano())
    deliverer = deliverer_of(exporter)

    assert ([Round(1), Round()], "timeout") == (
        [deliverer.run_once(), deliverer.run_once()],
        store.stats()["a"].paused,
    )
    clock.advance(millis=PROBE_MILLIS)
    assert (Round(1), None) == (deliverer.run_once(), store.stats()["a"].paused)


def test_a_probe_may_find_that_it_is_something_else(
    many: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    A destination that is back, but refuses the key, is paused for that.
    """
    deliverer = deliverer_of(PartsExporter({"value": [*DOWN_ROUNDS, PauseDestination("401")]}), batch_size=1)
    open_breaker(deliverer)
    clock.advance(millis=PROBE_MILLIS)
    deliverer.run_once()

    assert ("401", RetryPolicy().pause_millis) == (many.stats()["a"].paused, deliverer.next_due_millis())


def test_a_pause_wins_over_what_got_through_in_the_same_round(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    Where one part asks for a pause the destination is paused; what got through is delivered all the same.
    """
    results: list[Result] = [Success(), PauseDestination("401"), RetryableFailure("busy"), PermanentFailure("422")]
    for number in range(1, 5):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(PartsExporter({"value": results}))

    assert Round(4, has_failed=True) == deliverer.run_once()
    assert ["delivered", "pending", "pending", "dead"] == [status(store, number).state for number in range(1, 5)]
    assert ("401", RetryPolicy().pause_millis) == (store.stats()["a"].paused, deliverer.next_due_millis())
    clock.advance(millis=RetryPolicy().pause_millis)
    assert [Round(1), Round(1), Round()] == [deliverer.run_once() for _ in range(3)]


def test_one_breaker_is_for_all_workers(many: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock) -> None:
    """
    What one worker found to be down is tried by whoever comes first, once a second; who gets through frees all.
    """
    one = deliverer_of(PartsExporter({"value": [*DOWN_ROUNDS, RetryableFailure("busy")]}), batch_size=1)
    other = deliverer_of(PartsExporter())
    open_breaker(one)
    clock.advance(millis=PROBE_MILLIS)

    assert [Round(1, has_failed=True), Round()] == [one.run_once(), other.run_once()]
    clock.advance(millis=PROBE_MILLIS)
    assert [Round(1), Round(1), Round(20)] == [other.run_once(), one.run_once(), other.run_once()]


def test_a_worker_that_is_late_does_not_end_a_pause(many: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    What was on its way before the destination was paused says nothing of it now.
    """

    class Overtaken(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            open_breaker(deliverer_of(PartsExporter({"value": DOWN_ROUNDS}), batch_size=1))
            return super().export(parts)

    deliverer_of(Overtaken(), batch_size=1).run_once()

    assert (1, "timeout") == (many.stats()["a"].delivered, many.stats()["a"].paused)


# --- metrics -----------------------------------------------------------------------------------------------------


class NotingMetrics(NoOpMetrics):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def inflight(self, destination: str, delta: int) -> None:
        self.told.append(("inflight", destination, delta))

    def exported(self, destination: str, seconds: float, error_type: str | None) -> None:
        self.told.append(("exported", destination, seconds, error_type))

    def settled(self, destination: str, event: str, reason: str | None) -> None:
        self.told.append(("settled", destination, event, reason))


def told_of(deliverer_of: DelivererMaker, exporter: PartsExporter) -> list[tuple[Any, ...]]:
    """Make a round, and answer what the metrics were told."""
    metrics = NotingMetrics()
    deliverer_of(exporter, metrics=metrics).run_once()
    return metrics.told


def test_the_metrics_are_told_how_an_export_went(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    How many records are with the exporter, how long it takes, what failed first, and how each lease ends.
    """

    class Slow(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            clock.advance(millis=1_500)
            return super().export(parts)

    for number in range(1, 4):
        store.put(record(number), ["a"])
    results: list[Result] = [Success(), PermanentFailure("422"), RetryableFailure("busy")]

    assert [
        ("inflight", "a", 3),
        ("inflight", "a", -3),
        ("exported", "a", 1.5, "422"),
        ("settled", "a", "deliver", "delivered"),
        ("settled", "a", "bury", "422"),
        ("settled", "a", "retry", "busy"),
    ] == told_of(deliverer_of, Slow({"value": results}))


@pytest.mark.parametrize("fine", [Success(), Skipped("cannot")])
def test_an_export_without_a_failure_has_no_kind_of_error(
    store: MemoryStore, deliverer_of: DelivererMaker, fine: Result
) -> None:
    """
    What was delivered or skipped is no failure.
    """
    store.put(record(), ["a"])

    assert ("exported", "a", 0.0, None) in told_of(deliverer_of, PartsExporter({"value": [fine]}))


def test_what_is_no_attempt_is_not_told(store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock) -> None:
    """
    Being held back or paused ends no attempt, and what has nothing to send is not exported.
    """
    exporter = PartsExporter({"value": [PauseDestination("401")]})
    exporter.not_before = {"comment": clock.time_unix_nano() + 1}
    store.put(record(1, value=None, comment="x"), ["a"])
    assert [] == told_of(deliverer_of, exporter)
    store.put(record(2, value=None, tags=("t",)), ["a"])
    assert [("settled", "a", "skip", "a can carry nothing of it")] == told_of(deliverer_of, exporter)
    store.put(record(3), ["a"])

    assert ["inflight", "inflight", "exported"] == [name for name, *_ in told_of(deliverer_of, exporter)]


def test_an_exporter_that_ends_the_process_is_not_in_flight_for_ever(
    store: MemoryStore, deliverer_of: DelivererMaker
) -> None:
    """
    Whatever comes out of an export, the count of what is with the exporter goes back.
    """

    class Interrupted(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            raise KeyboardInterrupt

    store.put(record(), ["a"])
    metrics = NotingMetrics()
    deliverer = deliverer_of(Interrupted(), metrics=metrics)
    with pytest.raises(KeyboardInterrupt):
        deliverer.run_once()

    assert [("inflight", "a", 1), ("inflight", "a", -1)] == metrics.told
    assert (1, 1) == deliverer.rounds


# --- exporters that break their contract -------------------------------------------------------------------------


class BrokenExporter(PartsExporter):
    """Breaks the contract of `export` in one way, once."""

    def __init__(self, breach: Callable[[Sequence[Part]], Any]) -> None:
        super().__init__()
        self._breaches = [breach]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        if self._breaches:
            answer: Sequence[Result] = self._breaches.pop()(parts)
            return answer
        return super().export(parts)


QUOTED = "what a person wrote, or a key"


def raises(_: Sequence[Part]) -> Any:
    raise RuntimeError(f"Illegal header value 'Bearer {QUOTED}'")


def cancels(_: Sequence[Part]) -> Any:
    raise asyncio.CancelledError(QUOTED)


def raises_on_the_way(parts: Sequence[Part]) -> Iterator[Result]:
    yield Success()
    raise RuntimeError(QUOTED)


@pytest.mark.parametrize(
    ("breach", "reason"),
    [
        (raises, "the exporter raised RuntimeError"),
        (raises_on_the_way, "the exporter raised RuntimeError"),
        (lambda _: sys.exit(QUOTED), "the exporter raised SystemExit"),
        (cancels, "the exporter raised CancelledError"),
        (lambda _: None, "the exporter raised TypeError"),
        (lambda _: [], "the exporter answered 0 results for 2 parts"),
        (lambda parts: [Success()] * 3, "the exporter answered 3 results for 2 parts"),
        (lambda parts: itertools.repeat(Success()), "the exporter answered 3 results for 2 parts"),
        (lambda parts: [None] * 2, "the exporter answered with a NoneType, which is no result"),
        (lambda parts: [True] * 2, "the exporter answered with a bool, which is no result"),
    ],
)
def test_an_exporter_that_breaks_its_contract_loses_nothing(
    store: MemoryStore,
    deliverer_of: DelivererMaker,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    breach: Callable[[Sequence[Part]], Any],
    reason: str,
) -> None:
    """
    Whatever an exporter does instead of answering, its parts are unclear and tried again, and no secret is logged.
    """
    exporter = BrokenExporter(breach)
    store.put(record(**NOTED), ["a"])
    deliverer = deliverer_of(exporter)

    assert Round(1, has_failed=True) == deliverer.run_once()
    assert DeliveryStatus("pending", reason, 1) == status(store)
    go_on(deliverer, clock)
    assert "delivered" == status(store).state
    assert QUOTED not in caplog.text


@pytest.mark.parametrize("reason", [ValueError(QUOTED), 5, "half of a pair: \ud83d"])
def test_a_reason_that_cannot_be_kept_holds_nothing_up(
    store: MemoryStore, deliverer_of: DelivererMaker, reason: Any
) -> None:
    """
    An exporter that gives an exception for a reason, or a text that is none, settles its own record and the others.
    """
    for number in (1, 2):
        store.put(record(number), ["a"])
    deliverer_of(PartsExporter({"value": [PermanentFailure(reason)]})).run_once()

    assert (False, "delivered") == (status(store, 1).state == "leased", status(store, 2).state)


def test_an_exporter_that_raises_is_logged_with_its_place(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The log names the exception and the lines that it came through, so that the author can find it.
    """
    store.put(record(), ["a"])
    deliverer_of(BrokenExporter(raises)).run_once()

    assert caplog.messages[0].startswith("the exporter a raised RuntimeError\n")
    assert "in raises\n" in caplog.messages[0]


class Unread(PartsExporter):
    """Cannot say what to send of one comment, for one reason or another."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        if record.comment == QUOTED and self.error is not None:
            raise self.error
        return super().parts(record)


def test_a_record_that_an_exporter_refuses_is_a_dead_letter(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What an exporter calls invalid once it was accepted is buried with its words; the others go.
    """
    store.put(record(1, comment=QUOTED), ["a"])
    store.put(record(2), ["a"])

    assert Round(2) == deliverer_of(Unread(InvalidFeedbackError("no such field", field="native"))).run_once()
    assert DeliveryStatus("dead", "a refuses it: no such field", 1) == status(store, 1)
    assert "delivered" == status(store, 2).state
    assert [f"feedback {record(1).id} is dead at a: a refuses it: no such field"] == caplog.messages


def test_a_record_that_an_exporter_fails_at_is_tried_again(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When `parts` raises for one record the others go, and that one waits for a release that can read it.
    """
    exporter = Unread(ValueError(QUOTED))
    store.put(record(1, comment=QUOTED), ["a"])
    store.put(record(2), ["a"])
    deliverer = deliverer_of(exporter)

    assert Round(2) == deliverer.run_once()
    assert DeliveryStatus("pending", "the exporter failed (ValueError)", 1) == status(store, 1)
    assert "delivered" == status(store, 2).state
    assert caplog.messages[0].startswith(f"a cannot say what to send for feedback {record(1).id}: ValueError\n")
    assert QUOTED not in caplog.text
    exporter.error = None
    go_on(deliverer, clock)
    assert DeliveryStatus("delivered", "delivered", 2) == status(store, 1)


def test_a_record_that_an_exporter_fails_at_for_too_long_is_given_up(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    As anything else that is tried for a week; it is kept, and can be requeued.
    """
    store.put(record(comment=QUOTED), ["a"])
    deliverer = deliverer_of(Unread(ValueError(QUOTED)))
    for _ in range(10):
        deliverer.run_once()
        clock.advance(seconds=86_400)

    assert DeliveryStatus("dead", "given up after 7 d: the exporter failed (ValueError)", 10) == status(store)


# --- several workers ---------------------------------------------------------------------------------------------


def test_a_worker_whose_lease_was_taken_over_settles_nothing(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When an export takes longer than the lease, the worker that took over decides, and the late one says so.
    """

    class Slow(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            clock.advance(millis=LEASE_MILLIS)
            deliverer_of(PartsExporter()).run_once()
            return [PermanentFailure("late")] * len(parts)

    store.put(record(), ["a"])
    deliverer_of(Slow()).run_once()

    assert DeliveryStatus("delivered", "delivered", 1) == status(store)
    assert [
        f"feedback {record().id} at a is no longer ours to settle: another worker took it over, or it was forgotten"
    ] == caplog.messages


def test_a_judgement_behind_one_that_was_taken_over_is_told_of(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Of a round whose first judgement was forgotten meanwhile, the second's end is in the log as ever.
    """

    class Forgetting(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            store.forget("leaves")
            return [PermanentFailure("refused")] * len(parts)

    store.put(record(1, user_id="leaves"), ["a"])
    store.put(record(2), ["a"])
    deliverer_of(Forgetting()).run_once()

    first, second = caplog.messages
    assert f"feedback {record(1).id} at a is no longer ours to settle" in first
    assert f"feedback {record(2).id} is dead at a: " in second


def test_a_round_is_settled_at_once(clock: FakeClock, deliverer_of: DelivererMaker) -> None:
    """
    However many records a round has, the store is written to once to end their leases.
    """

    settled: list[int] = []

    class Counting(MemoryStore):
        def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
            settled.append(len(endings))
            return super().settle_many(endings)

    store = Counting(clock=clock)
    for number in range(1, 4):
        store.put(record(number), ["a"])
    deliverer_of(PartsExporter(), outbox=store).run_once()

    assert [3] == settled


def test_several_threads_drive_one_deliverer_at_once(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    While one thread exports another one does too, and nothing is delivered twice.
    """
    meeting = threading.Barrier(4)

    class Meeting(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            meeting.wait(10)
            return super().export(parts)

    exporter = Meeting()
    deliverer = deliverer_of(exporter, batch_size=5)
    for number in range(1, 41):
        store.put(record(number, comment=str(number)), ["a"])
    threads = [threading.Thread(target=lambda: [deliverer.run_once() for _ in range(2)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(map(str, range(1, 41))) == sorted(said for _, _, said in exporter.exported)
    assert (40, (8, 8)) == (store.stats()["a"].delivered, deliverer.rounds)


def test_rounds_are_counted_as_they_begin_and_as_they_end(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    While the numbers differ something may be leased here; a round that finds nothing counts too.
    """
    exporter = HangingExporter()
    deliverer = deliverer_of(exporter)
    store.put(record(), ["a"])
    rounds = [deliverer.rounds]
    thread = threading.Thread(target=deliverer.run_once)
    thread.start()
    assert exporter.is_hanging.wait(10)
    rounds.append(deliverer.rounds)
    exporter.may_end.set()
    thread.join(10)
    rounds.append(deliverer.rounds)
    deliverer.run_once()
    rounds.append(deliverer.rounds)

    assert [(0, 0), (1, 0), (1, 1), (2, 2)] == rounds


class HangingExporter(PartsExporter):
    """Hangs in its first export until it may end."""

    def __init__(self) -> None:
        super().__init__()
        self.is_hanging, self.may_end = threading.Event(), threading.Event()

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        self.is_hanging.set()
        self.may_end.wait(10)
        return super().export(parts)


# --- drain -------------------------------------------------------------------------------------------------------


def test_a_drain_goes_on_until_nothing_is_due(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    Several batches are delivered in one pass.
    """
    for number in range(1, BATCH_RECORDS * 2 + 2):
        store.put(record(number), ["a"])
    drain(deliverer_of(PartsExporter()), deadline_nano=10**9, clock=clock)

    assert 201 == store.stats()["a"].delivered


@pytest.mark.parametrize("failure", [RetryableFailure("busy"), Unclear("timeout"), PauseDestination("401")])
def test_a_drain_ends_at_the_first_failure(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, failure: Result
) -> None:
    """
    A destination that fails is not tried again in the same pass.
    """
    for number in range(1, BATCH_RECORDS * 2 + 1):
        store.put(record(number), ["a"])
    drain(deliverer_of(PartsExporter({"value": [failure]})), deadline_nano=10**9, clock=clock)

    assert (9, 191) == (store.stats()["a"].delivered, store.stats()["a"].pending)


def test_a_drain_ends_at_its_deadline(store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock) -> None:
    """
    Once time is up no other batch is begun; with no time at all, none is.
    """

    class Slow(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            clock.advance(seconds=1)
            return super().export(parts)

    for number in range(1, BATCH_RECORDS * 3):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(Slow())
    drain(deliverer, deadline_nano=0, clock=clock)

    assert 0 == store.stats()["a"].delivered
    drain(deliverer, deadline_nano=1_500 * NANOS_PER_MILLI, clock=clock)
    assert 10 + 20 == store.stats()["a"].delivered


# --- the thread --------------------------------------------------------------------------------------------------


class NotingStore(MemoryStore):
    """A store that fails on demand, and says when it has been asked for something to deliver."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.is_broken = False
        self.failure: Exception = StoreError("the disk is full", store=self.url)
        self.was_asked = threading.Semaphore(0)

    def lease(self, destination: str, *, limit: int, duration_millis: int, by_call: bool = False) -> Sequence[Lease]:
        self.was_asked.release()
        if self.is_broken:
            raise self.failure
        return super().lease(destination, limit=limit, duration_millis=duration_millis, by_call=by_call)


class TellingExporter(PartsExporter):
    """Says when it has exported."""

    def __init__(self) -> None:
        super().__init__()
        self.has_exported = threading.Event()

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        results = super().export(parts)
        self.has_exported.set()
        return results


@pytest.fixture
def noting_store(clock: FakeClock) -> NotingStore:
    return NotingStore(clock)


@pytest.fixture
def exporter() -> TellingExporter:
    return TellingExporter()


@pytest.fixture
def thread(
    noting_store: NotingStore, exporter: TellingExporter, deliverer_of: DelivererMaker, clock: FakeClock
) -> Iterator[DeliveryThread]:
    """A thread that is running, and has looked once."""
    thread = DeliveryThread(deliverer_of(exporter, outbox=noting_store), clock=clock, helpers=[])
    thread.start()
    assert noting_store.was_asked.acquire(timeout=10)
    yield thread
    noting_store.is_broken = False
    thread.stop(deadline_nano=clock.monotonic_nano() + 10 * 10**9)
    assert thread.join()


def test_a_thread_delivers_at_once_when_it_is_woken(
    thread: DeliveryThread, noting_store: NotingStore, exporter: TellingExporter
) -> None:
    """
    What is recorded in this process goes as soon as the thread is told.
    """
    noting_store.put(record(), ["a"])
    thread.wake()

    assert exporter.has_exported.wait(10)


def test_a_thread_looks_for_what_others_have_recorded(
    thread: DeliveryThread, noting_store: NotingStore, exporter: TellingExporter
) -> None:
    """
    What nobody told it of is found by polling.
    """
    noting_store.put(record(), ["a"])

    assert exporter.has_exported.wait(10)


def test_a_thread_outlives_a_store_that_fails(
    thread: DeliveryThread, noting_store: NotingStore, exporter: TellingExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """
    While the store cannot be used the thread goes on asking, says so once, and delivers when it is back.
    """
    noting_store.is_broken = True
    noting_store.put(record(), ["a"])
    for _ in range(4):
        thread.wake()
        assert noting_store.was_asked.acquire(timeout=10)
    noting_store.is_broken = False
    thread.wake()

    assert exporter.has_exported.wait(10)
    assert ["a: delivery fails and is tried again: the disk is full"] == caplog.messages


def test_a_thread_outlives_what_nobody_foresaw(
    thread: DeliveryThread, noting_store: NotingStore, exporter: TellingExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """
    An error that is none of ours does not end delivery either; its text, which may quote anything, is not logged.
    """
    noting_store.failure = TypeError("secret")
    noting_store.is_broken = True
    noting_store.put(record(), ["a"])
    thread.wake()
    assert noting_store.was_asked.acquire(timeout=10)
    noting_store.is_broken = False
    thread.wake()

    assert exporter.has_exported.wait(10)
    assert ("TypeError" in caplog.text, "secret" in caplog.text) == (True, False)


WRONG: Sequence[Mapping[str, Any]] = [
    *({name: wait} for name in ("retry_after_millis", "give_up_after_millis") for wait in ("30", 1.5, True)),
    *({"removed": removed} for removed in (1, [1], ("1",), (True,))),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_result_with_something_of_another_type_is_no_result(
    store: MemoryStore, deliverer_of: DelivererMaker, wrong: Mapping[str, Any]
) -> None:
    """
    What an exporter of somebody else answers in a wrong type is unclear, and waits like anything else that is.
    """
    exporter = InMemoryFeedbackExporter("a")
    exporter.fail_next(RetryableFailure("busy", **wrong))
    store.put(record(), ["a"])
    deliverer_of(exporter).run_once()

    reason = "the exporter answered with a RetryableFailure, which is no result"
    assert ("pending", reason) == (status(store).state, status(store).reason)


def test_a_thread_makes_a_last_pass_when_it_is_stopped(
    noting_store: NotingStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    What is due when the thread is stopped is delivered before it ends.
    """
    exporter = PartsExporter()
    thread = DeliveryThread(deliverer_of(exporter, outbox=noting_store), clock=clock)
    noting_store.put(record(), ["a"])
    thread.stop(deadline_nano=10 * 10**9)
    thread.start()

    assert thread.join()
    assert 1 == len(exporter.exported)


def test_a_store_that_fails_in_the_last_pass_ends_it(
    noting_store: NotingStore, deliverer_of: DelivererMaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The thread ends all the same, and says that what is left stays in the store.
    """
    noting_store.is_broken = True
    thread = DeliveryThread(deliverer_of(PartsExporter(), outbox=noting_store), clock=clock)
    thread.stop(deadline_nano=10 * 10**9)
    thread.start()

    assert thread.join()
    assert ["a: what is left stays in the store: the disk is full"] == caplog.messages


def test_a_thread_that_hangs_is_left_behind(
    noting_store: NotingStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    When an export hangs, stopping takes no longer than its deadline; what it leases stays in the store.
    """
    exporter = HangingExporter()
    thread = DeliveryThread(deliverer_of(exporter, outbox=noting_store), clock=clock)
    noting_store.put(record(), ["a"])
    thread.start()
    exporter.is_hanging.wait(10)
    clock.advance(seconds=3_600)
    thread.stop(deadline_nano=clock.monotonic_nano() + NANOS_PER_MILLI)

    assert not thread.join()
    assert "leased" == status(noting_store).state
    clock.advance(seconds=1)
    exporter.may_end.set()
    thread.stop(deadline_nano=clock.monotonic_nano() + 10 * 10**9)
    assert thread.join()
    assert "delivered" == status(noting_store).state


def test_a_stop_in_the_middle_of_a_round_ends_the_thread(
    noting_store: NotingStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    However many batches are left, a thread that is stopped ends after the one that it is at.
    """

    class Stopping(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            driving.stop(deadline_nano=0)
            return super().export(parts)

    for number in range(1, BATCH_RECORDS * 3):
        noting_store.put(record(number), ["a"])
    driving = DeliveryThread(deliverer_of(Stopping(), outbox=noting_store), clock=clock)
    driving.start()
    driving._thread.join(10)

    assert (False, FIRST_ROUND_RECORDS) == (driving._thread.is_alive(), noting_store.stats()["a"].delivered)


# --- threads that help, and who waits for them -------------------------------------------------------------------


class Script:
    """Something to drive that does what it is told: it answers how much it leased, or raises; at the end, nothing."""

    name = "script"

    def __init__(self, *steps: int | BaseException) -> None:
        self._steps = list(steps)
        self._lock = threading.Lock()
        self.rounds: list[str] = []
        self.has_gone_round = threading.Semaphore(0)
        # What each round waits for.
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_waiting = threading.Event()

    def run_once(self, more: Callable[[], None] = lambda: None) -> Round:
        self.is_waiting.set()
        self.may_go_on.wait(10)
        with self._lock:
            self.rounds.append(threading.current_thread().name)
            step = self._steps.pop(0) if self._steps else 0
        if step == 1:
            more()
        self.has_gone_round.release()
        if isinstance(step, BaseException):
            raise step
        return Round(step)

    def next_due_millis(self) -> int | None:
        with self._lock:
            return 0 if self._steps else None

    def give(self, *steps: int) -> None:
        with self._lock:
            self._steps += steps

    def wait_for_rounds(self, count: int) -> None:
        for _ in range(count):
            assert self.has_gone_round.acquire(timeout=10)


@pytest.fixture
def driven(clock: FakeClock) -> Iterator[Callable[..., DeliveryThread]]:
    """Make threads that are stopped at the end."""
    made: list[DeliveryThread] = []

    def make(
        what: Driven, *, helpers: Sequence[DeliveryThread] | None = None, is_started: bool = True
    ) -> DeliveryThread:
        thread = DeliveryThread(what, clock=clock, helpers=helpers)
        made.append(thread)
        if is_started:
            thread.start()
        return thread

    yield make
    for thread in made:
        thread.stop(deadline_nano=clock.monotonic_nano() + 10 * 10**9)
        assert thread.join()


ThreadMaker = Callable[..., DeliveryThread]


def test_a_helper_is_not_started_while_there_is_little_to_do(driven: ThreadMaker) -> None:
    """
    What one thread can do alone, round after round, costs no other one.
    """
    helper = driven(Script(), is_started=False)
    often = Script(1)
    driven(often, helpers=[helper])
    often.wait_for_rounds(4)

    assert not helper.is_started


def test_a_thread_that_finds_much_starts_its_helpers(driven: ThreadMaker) -> None:
    """
    Where something is due still after a round, all its helpers take part.
    """
    scripts = [Script() for _ in range(3)]
    helpers = [driven(script, is_started=False) for script in scripts]
    driven(Script(1, 1), helpers=helpers)
    for script in scripts:
        script.wait_for_rounds(1)

    assert [True] * 3 == [helper.is_started for helper in helpers]


def test_a_thread_that_found_nothing_comes_back_when_something_is_due(driven: ThreadMaker) -> None:
    """
    It need not be woken for what falls due between two polls.
    """
    script = Script(0, 0, 0)
    driven(script, helpers=[])

    script.wait_for_rounds(3)


def test_a_helper_sleeps_when_nothing_is_left_until_there_is_much_again(driven: ThreadMaker) -> None:
    """
    The thread that it helps polls; the helper looks only when it is called.
    """
    seldom, often = Script(), Script(1, 1)
    driven(often, helpers=[driven(seldom, is_started=False)])
    seldom.wait_for_rounds(1)
    often.wait_for_rounds(5)
    assert 1 == len(seldom.rounds)
    often.give(1, 1)
    seldom.wait_for_rounds(1)


def test_a_helper_that_was_never_needed_is_waited_for_by_nobody(driven: ThreadMaker) -> None:
    """
    Where there is no thread there is nothing to wait for, nor to join.
    """
    helper = driven(Script(), is_started=False)
    helper.wake()

    assert (True, False) == (helper.wait_for(helper.ask(), 0), helper.is_started)
    helper.stop(deadline_nano=0)
    assert helper.join()


def test_a_thread_that_is_stopping_calls_no_helper(driven: ThreadMaker, clock: FakeClock) -> None:
    """
    Whoever was stopped while it made its last round starts nobody.
    """
    script = Script(1, 1)
    script.may_go_on.clear()
    helper = driven(Script(), is_started=False)
    thread = driven(script, helpers=[helper])
    assert script.is_waiting.wait(10)
    thread.stop(deadline_nano=clock.monotonic_nano() + 10 * 10**9)
    script.may_go_on.set()

    assert (True, False) == (thread.join(), helper.is_started)


def test_a_helper_goes_on_while_it_finds_something(driven: ThreadMaker) -> None:
    """
    Once awake it makes round after round until nothing is left, without being woken again.
    """
    script = Script(1, 1, 1)
    driven(script)

    script.wait_for_rounds(4)


def test_a_helper_outlives_what_fails(driven: ThreadMaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    An error ends no helper; it is woken as before.
    """
    script = Script(StoreError("locked", store="s"))
    helper = driven(script)
    script.wait_for_rounds(1)
    helper.wake()
    script.wait_for_rounds(1)

    assert ["script: delivery fails and is tried again: locked"] == caplog.messages


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), KeyboardInterrupt()])
def test_nothing_that_is_raised_ends_the_thread(driven: ThreadMaker, error: BaseException) -> None:
    """
    Whatever an exporter of somebody's own throws in it, the next round comes.
    """
    script = Script(error)
    thread = driven(script, helpers=[])

    assert thread.wait_for(thread.ask(), 10_000)
    assert thread.wait_for(thread.ask(), 10_000)
    assert len(script.rounds) >= 2


def test_an_exporter_may_shut_down_from_within(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    Its thread cannot wait for its own end, and says that it has not ended.
    """
    joined: list[bool] = []

    class ShuttingDown(PartsExporter):
        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            thread.stop(deadline_nano=clock.monotonic_nano())
            joined.append(thread.join())
            return super().export(parts)

    store.put(record(), ["a"])
    thread = DeliveryThread(deliverer_of(ShuttingDown()), clock=clock)
    thread.start()
    thread._thread.join(10)

    assert ([False], "delivered") == (joined, status(store).state)


def test_a_thread_may_be_rung_in_the_middle_of_a_ring(driven: ThreadMaker) -> None:
    """
    A signal's handler that shuts down may interrupt what records, at any call.
    """
    script = Script()
    thread = driven(script, helpers=[])

    def ring_again(frame: Any, event: str, what: Any) -> None:
        sys.setprofile(None)
        thread.stop(deadline_nano=0)

    for _ in range(10):
        sys.setprofile(ring_again)
        thread.wake()
        sys.setprofile(None)

    thread._thread.join(10)
    assert not thread._thread.is_alive()


def test_a_bell_that_is_not_rung_again_is_waited_for_no_longer_than_was_said() -> None:
    """
    However short the wait, and however often it was rung before; where it waits for ever, delivery stands still.
    """
    bell, is_over = _Bell(), threading.Event()

    def wait() -> None:
        for _ in range(50_000):
            bell.ring()
            bell.wait(10)
            bell.wait(0.000_001)
            bell.ring()
            bell.wait(10)
            bell.clear()
        is_over.set()

    threading.Thread(target=wait, daemon=True).start()

    assert is_over.wait(30)


@pytest.mark.parametrize("helpers", [None, []])
def test_who_asks_waits_until_everything_that_was_due_has_been_tried(driven: ThreadMaker, helpers: Any) -> None:
    """
    The answer comes after a round that found nothing, however many that found something came before.
    """
    script = Script(1, 1, 1)
    thread = driven(script, helpers=helpers)

    assert thread.wait_for(thread.ask(), 10_000)
    assert len(script.rounds) >= 4


def test_a_round_that_had_begun_is_no_answer(driven: ThreadMaker) -> None:
    """
    Who asks in the middle of a round waits for another one: that one may have looked before something was recorded.
    """
    script = Script()
    script.may_go_on.clear()
    thread = driven(script, helpers=[])
    assert script.is_waiting.wait(10)
    asked = thread.ask()
    script.may_go_on.set()

    assert thread.wait_for(asked, 10_000)
    assert len(script.rounds) >= 2


def test_one_answer_is_for_all_who_asked_before(driven: ThreadMaker) -> None:
    """
    Several who wait are told together, and so is one who comes later for what was asked before.
    """
    script = Script()
    thread = driven(script)
    numbers = [thread.ask() for _ in range(3)]

    assert thread.wait_for(numbers[-1], 10_000)
    assert [True, True] == [thread.wait_for(number, 0) for number in numbers[:2]]


def test_who_asks_is_told_although_the_store_fails(driven: ThreadMaker) -> None:
    """
    Nobody waits for a store that cannot be used: it was tried.
    """
    thread = driven(Script(*[StoreError("locked", store="s")] * 100), helpers=[])

    assert thread.wait_for(thread.ask(), 10_000)


def test_who_waits_in_vain_is_told_so(driven: ThreadMaker) -> None:
    """
    While a round hangs there is no answer; who has no time left gets none at once.
    """
    script = Script()
    script.may_go_on.clear()
    thread = driven(script)
    assert script.is_waiting.wait(10)
    asked = thread.ask()

    assert [False, False] == [thread.wait_for(asked, millis) for millis in (0, 1)]
    script.may_go_on.set()
    assert thread.wait_for(asked, 10_000)


def test_who_waits_for_longer_than_any_clock_can_waits(driven: ThreadMaker) -> None:
    """
    A timeout that no lock can wait for is as long as one can.
    """
    thread = driven(Script(1, 1))

    assert thread.wait_for(thread.ask(), 10**15)


def test_who_waits_while_the_thread_is_stopped_is_told(clock: FakeClock) -> None:
    """
    The last pass answers too; who asks after it does not wait for ever.
    """
    script = Script()
    thread = DeliveryThread(script, clock=clock)
    asked = thread.ask()
    thread.stop(deadline_nano=10 * 10**9)
    thread.start()

    assert thread.wait_for(asked, 10_000)
    assert thread.join()
    assert not thread.wait_for(thread.ask(), 1)


# --- the keeper --------------------------------------------------------------------------------------------------


class CountingStore(MemoryStore):
    """Says what it was asked to keep in order."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.asked: list[tuple[Any, ...]] = []

    def route(self, destinations: Sequence[str], *, limit: int = 1_000) -> int:
        self.asked.append(("route", *destinations))
        return super().route(destinations, limit=limit)

    def prune(self, before_unix_nano: int, *, limit: int = 1_000) -> int:
        self.asked.append(("prune", before_unix_nano))
        return super().prune(before_unix_nano, limit=limit)


@pytest.fixture
def counting_store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock)


def keeper_of(store: MemoryStore, clock: FakeClock, *destinations: str) -> Keeper:
    return Keeper(
        store,
        destinations=destinations,
        join=lambda: store.asked.append(("join",)) if isinstance(store, CountingStore) else None,
        retention_millis=10_000,
        clock=clock,
    )


def test_the_keeper_routes_what_waited_for_an_exporter(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    What was recorded while there was no exporter goes to the ones that there are.
    """
    counting_store.put(record(), [UNROUTED])
    keeper = keeper_of(counting_store, clock, "a", "b")

    assert [Round(1), Round()] == [keeper.run_once(), keeper.run_once()]
    assert ["a", "b"] == sorted(counting_store.status(record().id) or {})


def test_the_keeper_without_an_exporter_leaves_it_waiting(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    What nobody takes stays unrouted, however old it is.
    """
    counting_store.put(record(), [UNROUTED])
    clock.advance(seconds=3_600)

    assert Round() == keeper_of(counting_store, clock).run_once()
    assert 1 == counting_store.stats()[UNROUTED].pending


def test_the_keeper_prunes_what_is_older_than_its_retention(
    counting_store: CountingStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    What was settled before then goes, to the nanosecond; the account stays.
    """
    counting_store.put(record(1), ["a"])
    clock.advance(millis=1)
    counting_store.put(record(2), ["a"])
    deliverer_of(PartsExporter(), outbox=counting_store).run_once()
    clock.advance(millis=10_000)

    assert Round(1) == keeper_of(counting_store, clock, "a").run_once()
    assert (None, True) == (counting_store.latest(record(1).id), counting_store.latest(record(2).id) is not None)
    assert 2 == counting_store.stats()["a"].delivered


def test_the_keeper_looks_again_after_an_hour(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    It goes on while there is something; when there is nothing, the store is left alone for an hour.
    """
    counting_store.put(record(), [UNROUTED])
    keeper = keeper_of(counting_store, clock, "a")
    look = [("route", "a"), ("prune", clock.time_unix_nano() - 10_000 * NANOS_PER_MILLI)]
    for _ in range(3):
        keeper.run_once()
    assert [*look, *look, ("join",)] == counting_store.asked
    clock.advance(millis=KEEP_MILLIS - 1)
    keeper.run_once()
    assert [*look, *look, ("join",)] == counting_store.asked
    clock.advance(millis=1)
    keeper.run_once()

    assert ["route", "prune", "join"] == [what for what, *_ in counting_store.asked[5:]]


def test_the_keeper_s_hour_does_not_go_by_the_time_of_day(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    A clock that is set back delays nothing, and one that is set forward asks no more often.
    """
    keeper = keeper_of(counting_store, clock)
    for seconds in (-86_400, 86_400):
        clock.jump(seconds=seconds)
        keeper.run_once()
    assert 3 == len(counting_store.asked)
    clock.advance(millis=KEEP_MILLIS)
    keeper.run_once()

    assert 6 == len(counting_store.asked)


def test_a_drain_keeps_everything_in_order(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    More than one step takes is done in one pass.
    """
    for number in range(1, 1_003):
        counting_store.put(record(number), [UNROUTED])
    drain(keeper_of(counting_store, clock, "a"), deadline_nano=10**9, clock=clock)

    assert {"a": 1_002} == {name: account.pending for name, account in counting_store.stats().items()}


def test_nobody_waits_for_the_keeper(counting_store: CountingStore, clock: FakeClock) -> None:
    """
    A flush has nothing to wait for there; its thread and its log lines have a name.
    """
    keeper = keeper_of(counting_store, clock)

    assert ("keep", None) == (keeper.name, keeper.next_due_millis())


def test_a_thread_keeps_the_store_in_order(
    counting_store: CountingStore, clock: FakeClock, driven: ThreadMaker
) -> None:
    """
    A keeper can be driven as a deliverer is: it polls, and looks again when its hour has come.
    """
    looked = threading.Semaphore(0)

    class Telling(Keeper):
        def run_once(self, more: Callable[[], None] = lambda: None) -> Round:
            done = super().run_once(more)
            looked.release()
            return done

    keeper = Telling(counting_store, destinations=["a"], join=lambda: None, retention_millis=10_000, clock=clock)
    driven(keeper, helpers=[])
    assert looked.acquire(timeout=10)
    counting_store.put(record(), [UNROUTED])
    clock.advance(millis=KEEP_MILLIS)
    for _ in range(2):
        assert looked.acquire(timeout=10)

    assert 1 == counting_store.stats()["a"].pending


# --- conservation ------------------------------------------------------------------------------------------------


def test_every_record_is_accounted_for_whatever_the_vendor_answers(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock, rng: random.Random
) -> None:
    """
    Under a mixture of all results, changes of mind and retractions, recorded is always the sum of what became of it.
    """
    results: list[Result] = [Success(), RetryableFailure("busy"), Unclear("lost"), PermanentFailure("422")]
    results += [Skipped("cannot"), PauseDestination("401")]
    exporter = PartsExporter({kind: [rng.choice(results) for _ in range(300)] for kind in ("value", "comment")})
    deliverer = deliverer_of(exporter)
    for _ in range(200):
        number = rng.randrange(1, 20)
        store.put(record(number, **rng.choice([UP, DOWN, NOTED, OTHER_NOTE, BACK])), ["a"])
        clock.advance(millis=rng.randrange(1_000))
        deliverer.run_once()

        assert store.stats()["a"].is_conserved
    while deliverer.next_due_millis() is not None:
        go_on(deliverer, clock)

    account = store.stats()["a"]
    assert (True, 200, 0) == (account.is_conserved, account.recorded, account.pending)


class Vendor(PartsExporter):
    """A vendor that keeps each revision of a part under an id of its own, as orq does; answers may be lost."""

    def __init__(self) -> None:
        super().__init__()
        # By kind, the revisions that a reader sees.
        self.shown: dict[str, dict[int, Any]] = {"value": {}, "comment": {}}
        # Of each part that it was sent, the revisions that it was told to remove.
        self.told: list[tuple[int, ...]] = []
        self.outcomes: list[str] = []
        self.is_broken = False

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        if self.is_broken:
            raise ValueError
        return super().parts(record)

    def take(self, part: Part) -> Result:
        outcome = self.outcomes.pop(0) if self.outcomes else "fine"
        self.told.append(part.revisions)
        gone: tuple[int, ...] = ()
        if outcome.startswith("one removed, "):
            gone = part.revisions[:1]
        elif outcome.startswith("all removed, ") or outcome in ("fine", "lost after", "lost between"):
            gone = part.revisions
        for revision in gone:
            self.shown[part.kind].pop(revision, None)
        if outcome in ("fine", "lost after") and part.action != "retract":
            self.shown[part.kind][part.record.revision] = part.body[part.kind]
        return {
            "fine": Success(),
            "busy": RetryableFailure("busy"),
            "refused": PermanentFailure("422"),
            "cannot": Skipped("cannot"),
            "one removed, lost": Unclear("lost", removed=gone),
            "one removed, busy": RetryableFailure("busy", removed=gone),
            "all removed, busy": RetryableFailure("busy", removed=gone),
            "all removed, refused": PermanentFailure("422", removed=gone),
            "all removed, 401": PauseDestination("401", removed=gone),
        }.get(outcome, Unclear(outcome))


SAID = st.sampled_from([UP, DOWN, NOTED, OTHER_NOTE, BACK])
# A try that failed after it had removed some of what was there.
HALF_DONE = ("one removed, lost", "one removed, busy", *(f"all removed, {what}" for what in ("busy", "refused", "401")))
OUTCOMES = st.lists(
    st.sampled_from(["fine", "busy", "refused", "cannot", "lost before", "lost between", "lost after", *HALF_DONE]),
    max_size=4,
)
STEPS = st.lists(
    st.tuples(st.just("judge"), SAID)
    | st.tuples(st.just("deliver"), OUTCOMES)
    | st.tuples(st.sampled_from(["die", "fail"]), OUTCOMES)
    | st.tuples(st.just("requeue"), st.none()),
    max_size=12,
)


@settings(deadline=None)  # a slow machine is no defect
@example([("judge", NOTED), ("deliver", ["lost after", "busy"]), ("fail", [])], BACK)
@example([("judge", UP), ("deliver", ["lost after"]), ("deliver", ["refused"]), ("requeue", None)], DOWN)
@example(
    [("judge", UP), ("deliver", ["lost after"]), ("deliver", ["refused"]), ("requeue", None), ("deliver", ["refused"])],
    BACK,
)
@example([("judge", NOTED), ("deliver", []), ("judge", DOWN), ("die", []), ("deliver", ["refused", "refused"])], UP)
@example([("judge", UP), ("deliver", []), ("judge", DOWN), ("deliver", ["all removed, busy"])], UP)
@example([("judge", UP), ("deliver", []), ("judge", DOWN), ("deliver", ["all removed, refused"])], UP)
@given(STEPS, SAID)
def test_the_last_word_is_all_that_a_vendor_shows_in_the_end(steps: list[tuple[str, Any]], last: Said) -> None:
    """
    However answers are lost, workers end, exporters fail and dead letters are requeued while a person changes their
    mind: once the last word is delivered, the vendor shows it, and nothing of what was said before.
    """
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    vendor = Vendor()
    policy = RetryPolicy()
    deliverer = Deliverer(store, vendor, policy=policy, clock=clock, rng=random.Random(1), is_released=released)
    was_left_behind = False
    for step, what in [*steps, ("judge", last)]:
        if step == "judge":
            store.put(record(**what), ["a"])
        elif step == "requeue":
            store.requeue(record().id, "a")
        else:
            clock.advance(millis=policy.longest_millis)
            # An exporter that cannot say either what a worker may have sent that ended leaves nobody who could.
            vendor.outcomes, vendor.is_broken = list(what), step == "fail" and not was_left_behind
            was_left_behind = step == "die"
            if step == "die":  # in the middle of an export, after some of it has arrived
                for lease in store.lease("a", limit=1, duration_millis=LEASE_MILLIS):
                    work = plan(lease, vendor, now=clock.time_unix_nano(), is_released=released)
                    vendor.export(list(work.parts.values())[:1])
            else:
                deliverer.run_once()
            vendor.outcomes, vendor.is_broken = [], False
    while deliverer.next_due_millis() is not None:
        go_on(deliverer, clock)

    wanted = {"value": [last["value"]] if "value" in last and last is not BACK else [], "comment": []}
    if "comment" in last:
        wanted["comment"] = [last["comment"]]
    assert wanted == {kind: list(shown.values()) for kind, shown in vendor.shown.items()}
    assert store.stats()["a"].is_conserved


def test_what_a_try_has_removed_is_not_removed_again(clock: FakeClock, deliverer_of: DelivererMaker) -> None:
    """
    Each try goes on where the one before it ended: where one removal gets through in each, all do in the end.
    """
    store, vendor = MemoryStore(clock=clock), Vendor()
    deliverer = deliverer_of(vendor, outbox=store)
    for value in (True, False, True):
        store.put(record(value=value), ["a"])
        vendor.outcomes = ["lost before"]
        go_on(deliverer, clock)
    store.put(record(value=False), ["a"])
    vendor.outcomes = ["one removed, lost", "one removed, busy", "one removed, lost"]
    vendor.told.clear()
    while deliverer.next_due_millis() is not None:
        go_on(deliverer, clock)

    assert [(2, 1, 0), (1, 0), (0,), ()] == vendor.told
    assert {3: False} == vendor.shown["value"]
