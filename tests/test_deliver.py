"""The deliverer: what a lease asks for, how it ends, and a thread that goes on whatever happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._deliver import (
    BATCH_RECORDS,
    LEASE_MILLIS,
    Deliverer,
    DeliveryThread,
    Round,
    Work,
    drain,
    plan,
    settlement_of,
    standing_parts,
    unclear_kinds,
)
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import DeliveryStatus, FeedbackRecord, Part
from otel_feedback._retry import Done, GiveUp, RetryAt, RetryPolicy
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import StoreError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
)
from otel_feedback.stores import Lease, PartState, Revision, Settlement
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

NOW = 1_767_225_600_000_000_000
FINE, UNCLEAR = PartState("delivered", "delivered"), PartState("unclear", "timeout")
DEAD, SKIPPED = PartState("dead", "422"), PartState("skipped", "cannot")


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
        answers = self.answers.get(part.kind)
        return answers.pop(0) if answers else Success()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        pass


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


def lease_of(said: Said, *earlier: tuple[Said, Mapping[str, PartState]], parts: Any = None) -> Lease:
    revisions = [Revision(record(**what, revision=number), states) for number, (what, states) in enumerate(earlier)]
    current = record(**said, revision=len(earlier))
    return Lease(current, "a", 0, 1, 0, NOW, NOW, parts=parts or {}, earlier=revisions)


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
    assert Work(lease, idle_reason=reason) == plan(lease, PartsExporter(), now=NOW, is_released=unreleased)


def test_a_replaced_part_has_what_it_replaces() -> None:
    """
    Whether the change is certain or the part before unclear, the exporter is told what was there.
    """
    exporter = PartsExporter()
    for state in (FINE, UNCLEAR):
        work = plan(lease_of(DOWN, (UP, {"value": state})), exporter, now=NOW, is_released=unreleased)

        assert exporter.parts(record(**UP))[0] == work.parts["value"].replaces


def test_what_is_taken_back_knows_what_stands_instead() -> None:
    """
    The part of a retraction is the one that was delivered, with the judgement of somebody else that holds now.
    """
    others = record(2, value=False)
    lease = lease_of({**BACK, "stands": others}, (UP, {"value": FINE}))
    part = plan(lease, PartsExporter(), now=NOW, is_released=unreleased).parts["value"]

    assert (True, others) == (part.body["value"], part.record.stands)


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
    assert unclear == unclear_kinds(lease)


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

DELIVERED, CANNOT = Done("delivered", "delivered"), Done("skipped", "cannot")
LATER, LOST = RetryAt(NOW + 7, "busy"), RetryAt(NOW + 3, "timeout", unclear=True)
PAUSED, REFUSED = RetryAt(NOW, "401", counts=False), GiveUp("422")


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
    assert settlement == settlement_of(Work(lease_of(NOTED)), decisions)


@pytest.mark.parametrize(
    ("work", "decisions", "settlement"),
    [
        # settled before: a score's retry ends with the comment's state, and overwrites only its own
        (
            Work(lease_of(NOTED, parts={"comment": FINE, "value": UNCLEAR})),
            {"value": REFUSED},
            Settlement("bury", {"comment": FINE, "value": DEAD}, "comment: delivered; value: 422"),
        ),
        (
            Work(lease_of(NOTED, parts={"comment": DEAD})),
            {"value": DELIVERED},
            Settlement("bury", {"comment": DEAD, "value": FINE}, "comment: 422; value: delivered"),
        ),
        # held back
        (
            Work(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {},
            Settlement("retry", {}, "held until the span has arrived", NOW + 5, counts=False, held=True),
        ),
        (
            Work(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {"comment": DELIVERED},
            Settlement("retry", {"comment": FINE}, "held until the span has arrived", NOW + 5, counts=False, held=True),
        ),
        (
            Work(lease_of(NOTED), held_until_unix_nano=NOW + 5),
            {"comment": LATER},
            Settlement("retry", {}, "busy", NOW + 5),
        ),
        # nothing to send
        (Work(lease_of(UP), idle_reason="none"), {}, Settlement("skip", {}, "none", counts=False)),
        (Work(lease_of(BACK), idle_reason="none"), {}, Settlement("retract", {}, "none", counts=False)),
        # taken back
        (Work(lease_of(BACK)), {"value": DELIVERED}, Settlement("retract", {"value": FINE}, "delivered")),
        (Work(lease_of(BACK)), {"value": CANNOT}, Settlement("skip", {"value": SKIPPED}, "cannot")),
        (Work(lease_of(BACK)), {"value": REFUSED}, Settlement("bury", {"value": DEAD}, "422")),
        # an exporter that cannot say what to send
        (
            Work(lease_of(UP, parts={"comment": FINE}), broken_reason="broken"),
            {},
            Settlement("bury", {"comment": FINE}, "broken"),
        ),
    ],
)
def test_a_lease_ends_by_what_it_was_about(work: Work, decisions: dict[str, Any], settlement: Settlement) -> None:
    """
    What was settled before, held back, taken back or could not be read counts as well.
    """
    assert settlement == settlement_of(work, decisions)


DECISIONS = st.sampled_from([DELIVERED, CANNOT, LATER, LOST, PAUSED, REFUSED])


@given(
    decisions=st.dictionaries(st.sampled_from(["value", "comment", "tags"]), DECISIONS, min_size=1),
    held_until=st.none() | st.integers(NOW, NOW + 9),
)
def test_a_lease_never_ends_while_a_part_is_open(decisions: dict[str, Any], held_until: int | None) -> None:
    """
    A part that is to be tried again, or is held back, keeps the record pending, due when the first of them is.
    """
    dues = [decision.due_unix_nano for decision in decisions.values() if isinstance(decision, RetryAt)]
    dues += [] if held_until is None else [held_until]
    settlement = settlement_of(Work(lease_of(NOTED), held_until_unix_nano=held_until), decisions)

    assert (bool(dues), min(dues, default=0)) == (settlement.event == "retry", settlement.due_unix_nano)


# --- a round -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def deliverer_of(store: MemoryStore, clock: FakeClock, rng: random.Random) -> Callable[..., Deliverer]:
    """Make a deliverer to an exporter."""

    def make(exporter: Any, *, is_released: Any = unreleased, outbox: MemoryStore = store) -> Deliverer:
        return Deliverer(outbox, exporter, policy=RetryPolicy(), clock=clock, rng=rng, is_released=is_released)

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


def test_a_round_takes_a_batch(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    What is more than a batch is left to the next round.
    """
    for number in range(1, BATCH_RECORDS + 2):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(PartsExporter())

    assert [BATCH_RECORDS, 1] == [deliverer.run_once().leased for _ in range(2)]


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

    assert [f"feedback {record().id} is dead at a: 422 no such field"] == caplog.messages
    assert DeliveryStatus("dead", "422 no such field", 1) == status(store)


def test_a_record_that_fails_for_too_long_is_given_up(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    After days of failures a record is a dead letter with the last reason, and can be requeued.
    """
    exporter = PartsExporter({"value": [RetryableFailure("busy")] * 2})
    store.put(record(), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()
    clock.advance(seconds=8 * 86_400)
    deliverer.run_once()

    assert DeliveryStatus("dead", "given up after 7 d: busy", 2) == status(store)
    assert store.requeue(record().id, "a")
    deliverer.run_once()
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
    """
    exporter = PartsExporter({"value": [PauseDestination("401 the key is not valid")] * 8})
    for number in (1, 2):
        store.put(record(number), ["a"])
    deliverer = deliverer_of(exporter)
    rounds = []
    for _ in range(4):
        rounds.append((deliverer.run_once(), deliverer.run_once()))
        clock.advance(seconds=8 * 86_400)

    assert [(Round(2, has_failed=True), Round())] * 4 == rounds
    assert [DeliveryStatus("pending", "401 the key is not valid", 0)] * 2 == [status(store, n) for n in (1, 2)]
    assert ["a is paused, nothing is lost: 401 the key is not valid"] == caplog.messages
    deliverer.run_once()
    assert ["delivered", "delivered"] == [status(store, number).state for number in (1, 2)]
    assert ["a delivers again"] == caplog.messages[1:]


def test_a_pause_is_for_all_and_ends_by_itself(
    store: MemoryStore, deliverer_of: DelivererMaker, clock: FakeClock
) -> None:
    """
    While a destination is paused the account says why, and what is recorded meanwhile waits until the pause ends.
    """
    exporter = PartsExporter({"value": [PauseDestination("401")]})
    store.put(record(1), ["a"])
    deliverer = deliverer_of(exporter)
    deliverer.run_once()
    store.put(record(2), ["a"])

    assert ("401", RetryPolicy().pause_millis) == (store.stats()["a"].paused, deliverer.next_due_millis())
    assert Round() == deliverer.run_once()
    clock.advance(millis=RetryPolicy().pause_millis)
    assert Round(2) == deliverer.run_once()


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
    The first failure and the recovery have a line each, whatever is between them, and so has the next failure.
    """
    failures: list[Result] = [RetryableFailure("busy"), Unclear("timeout"), RetryableFailure("busy")]
    exporter = PartsExporter({"value": [*failures, Success(), Unclear("lost"), Success()]})
    deliverer = deliverer_of(exporter)
    for number in (1, 2):
        store.put(record(number), ["a"])
        while deliverer.next_due_millis() is not None:
            go_on(deliverer, clock)

    assert [
        "a: 1 parts wait and are tried again: busy",
        "a delivers again",
        "a: 1 parts wait and are tried again: lost",
        "a delivers again",
    ] == caplog.messages


def test_a_first_success_is_not_worth_a_line(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A destination that never failed is not said to be back.
    """
    store.put(record(), ["a"])
    deliverer_of(PartsExporter()).run_once()

    assert [] == caplog.messages


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


def raises_on_the_way(parts: Sequence[Part]) -> Iterator[Result]:
    yield Success()
    raise RuntimeError(QUOTED)


@pytest.mark.parametrize(
    ("breach", "reason"),
    [
        (raises, "the exporter raised RuntimeError"),
        (raises_on_the_way, "the exporter raised RuntimeError"),
        (lambda _: None, "the exporter raised TypeError"),
        (lambda _: [], "the exporter answered 0 results for 2 parts"),
        (lambda parts: [Success()] * 3, "the exporter answered 3 results for 2 parts"),
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


def test_a_record_that_an_exporter_cannot_read_is_a_dead_letter(
    store: MemoryStore, deliverer_of: DelivererMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When `parts` raises for one record the others go, and that one is buried, to be requeued after a new release.
    """

    class Unread(PartsExporter):
        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            if record.comment == QUOTED:
                raise ValueError(record.comment)
            return super().parts(record)

    exporter = Unread()
    store.put(record(1, comment=QUOTED), ["a"])
    store.put(record(2), ["a"])

    assert Round(2) == deliverer_of(exporter).run_once()
    assert ["dead", "delivered"] == [status(store, number).state for number in (1, 2)]
    assert "the exporter failed (ValueError)" == status(store, 1).reason
    assert f"a cannot say what to send for feedback {record(1).id}: ValueError\n" in caplog.messages[0]
    assert QUOTED not in caplog.text


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
    assert f"feedback {record().id} at a was taken over by another worker" == caplog.messages[-1]


def test_one_round_at_a_time(store: MemoryStore, deliverer_of: DelivererMaker) -> None:
    """
    A round that comes while another one hangs waits as long as it may, and has then failed.
    """
    exporter = HangingExporter()
    deliverer = deliverer_of(exporter)
    store.put(record(), ["a"])
    thread = threading.Thread(target=deliverer.run_once)
    thread.start()
    exporter.is_hanging.wait(10)

    assert Round(has_failed=True) == deliverer.run_once(timeout_millis=1)
    exporter.may_end.set()
    thread.join(10)
    assert Round() == deliverer.run_once(timeout_millis=10**15)


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

    assert (BATCH_RECORDS - 1, BATCH_RECORDS + 1) == (store.stats()["a"].delivered, store.stats()["a"].pending)


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
    assert BATCH_RECORDS * 2 == store.stats()["a"].delivered


# --- the thread --------------------------------------------------------------------------------------------------


class NotingStore(MemoryStore):
    """A store that fails on demand, and says when it has been asked for something to deliver."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.is_broken = False
        self.failure: Exception = StoreError("the disk is full", store=self.url)
        self.was_asked = threading.Semaphore(0)

    def lease(self, destination: str, *, limit: int, duration_millis: int) -> Sequence[Lease]:
        self.was_asked.release()
        if self.is_broken:
            raise self.failure
        return super().lease(destination, limit=limit, duration_millis=duration_millis)


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
    thread = DeliveryThread(deliverer_of(exporter, outbox=noting_store), clock=clock)
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


@pytest.mark.parametrize("wait", ["30", 1.5, True])
def test_a_result_with_a_wait_of_another_type_is_no_result(
    store: MemoryStore, deliverer_of: DelivererMaker, wait: Any
) -> None:
    """
    What an exporter of somebody else answers in a wrong type is unclear, and waits like anything else that is.
    """
    exporter = InMemoryFeedbackExporter("a")
    exporter.fail_next(RetryableFailure("busy", retry_after_millis=wait))
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

    assert (False, BATCH_RECORDS) == (driving._thread.is_alive(), noting_store.stats()["a"].delivered)


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
