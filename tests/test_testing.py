"""What `otel_feedback.testing` gives: a clock, an exporter that remembers, and contracts that find what is wrong."""

from __future__ import annotations

import inspect
import io
import logging
import subprocess
import sys
import unittest
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from otel_feedback._record import FeedbackRecord, Part
from otel_feedback._time import Clock
from otel_feedback.exceptions import InvalidFeedbackError
from otel_feedback.exporters import PermanentFailure, Result, RetryableFailure, Success
from otel_feedback.exporters.console import ConsoleFeedbackExporter
from otel_feedback.stores import Entry, Lease, Parked, Settlement
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import (
    FATES,
    JUDGEMENTS,
    ExporterContract,
    FakeClock,
    InMemoryFeedbackExporter,
    StoreContract,
)

# --- the clock ---------------------------------------------------------------------------------------------------


def test_a_fake_clock_stands_still(clock: FakeClock) -> None:
    """
    Without being told to, neither clock goes; the first time is the first second of 2026.
    """
    assert [(1_767_225_600_000_000_000, 0)] * 2 == [(clock.time_unix_nano(), clock.monotonic_nano()) for _ in range(2)]


def test_a_fake_clock_advances_both_of_its_clocks() -> None:
    """
    Seconds and milliseconds add up, on the time of day and on the monotonic clock.
    """
    clock = FakeClock(1_000)
    clock.advance(seconds=1.5, millis=2)

    assert (1_502_001_000, 1_502_000_000) == (clock.time_unix_nano(), clock.monotonic_nano())


def test_a_fake_clock_jumps_like_a_machine_whose_time_is_set(clock: FakeClock) -> None:
    """
    A jump moves the time of day, forward or back, and leaves the monotonic clock.
    """
    before = clock.time_unix_nano()
    clock.jump(seconds=-3_600)

    assert (before - 3_600 * 10**9, 0) == (clock.time_unix_nano(), clock.monotonic_nano())


# --- the exporter that remembers ---------------------------------------------------------------------------------


def parts_of_all(exporter: InMemoryFeedbackExporter) -> list[Part]:
    return [part for record in JUDGEMENTS for part in exporter.parts(record)]


def test_an_in_memory_exporter_keeps_what_it_gets_in_order() -> None:
    """
    The exported parts and their records can be read, in the order in which they came.
    """
    exporter = InMemoryFeedbackExporter()
    parts = parts_of_all(exporter)
    exporter.export(parts[:2])
    exporter.export(parts[2:])

    assert (tuple(parts), JUDGEMENTS) == (exporter.exported, exporter.records)


def test_an_in_memory_exporter_fails_as_it_is_told_to() -> None:
    """
    Each result given to `fail_next` answers one part, which is not kept unless it is a success.
    """
    exporter = InMemoryFeedbackExporter()
    wanted: list[Result] = [RetryableFailure("busy"), Success("late"), PermanentFailure("no")]
    exporter.fail_next(*wanted[:1])
    exporter.fail_next(*wanted[1:])
    parts = parts_of_all(exporter)[:4]

    assert [*wanted, Success()] == exporter.export(parts)
    assert (parts[1], parts[3]) == exporter.exported


def test_an_in_memory_exporter_forgets_when_it_is_cleared() -> None:
    """
    Neither what was exported nor what was to fail is left.
    """
    exporter = InMemoryFeedbackExporter("a")
    parts = parts_of_all(exporter)
    exporter.export(parts)
    exporter.fail_next(PermanentFailure("no"))
    exporter.clear()

    assert "<InMemoryFeedbackExporter name='a' exported=0>" == repr(exporter)
    assert [Success()] == exporter.export(parts[:1])


# --- the contracts -----------------------------------------------------------------------------------------------


class TestInMemoryFeedbackExporter(ExporterContract):
    @pytest.fixture
    def exporter(self) -> InMemoryFeedbackExporter:
        return InMemoryFeedbackExporter(exports_unsampled=True)


class TestConsoleFeedbackExporter(ExporterContract):
    @pytest.fixture
    def exporter(self) -> ConsoleFeedbackExporter:
        return ConsoleFeedbackExporter(io.StringIO())


class PickyExporter(InMemoryFeedbackExporter):
    """Refuses a comment, as an exporter may."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        if record.comment is not None:
            raise InvalidFeedbackError("no comments here", field="comment")
        return super().parts(record)


class TestPickyExporter(ExporterContract):
    @pytest.fixture
    def exporter(self) -> PickyExporter:
        return PickyExporter()


def test_the_kits_do_not_load_pytest() -> None:
    """
    An application may use the fakes where pytest is not installed.
    """
    program = "import sys, otel_feedback.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "False\n" == done.stdout


def broken_rules(contract: type, make: Callable[..., object]) -> set[str]:
    """Run a contract as pytest would, and name the tests that fail."""
    broken = set()
    for name in [name for name in dir(contract) if name.startswith("test_")]:
        case = contract()
        if hasattr(case, "setup_method"):
            case.setup_method()
        test = getattr(case, name)
        limit = {"max_queue_size": 3} if "limited_store" in inspect.signature(test).parameters else {}
        try:
            test(make(case, **limit))
        except unittest.SkipTest:
            continue
        except Exception:  # noqa: BLE001 (a broken adapter may fail in any way)
            broken.add(name)
    return broken


class TwiceExporter(InMemoryFeedbackExporter):
    """Says the same kind twice."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [*super().parts(record)] * 2


class ShortExporter(InMemoryFeedbackExporter):
    """Answers a result too few."""

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        return super().export(parts)[:-1]


class BoastfulExporter(InMemoryFeedbackExporter):
    """Claims to carry what nobody said."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [Part(record=record, kind="value", body={}, carries=frozenset({"comment"}))]


class CountingExporter(InMemoryFeedbackExporter):
    """Numbers its bodies, so that the same record never looks the same."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [Part(record=record, kind="value", body={"n": len(self.exported)})]


class FragileExporter(InMemoryFeedbackExporter):
    """Can be shut down once, says nothing afterwards, and never flushes."""

    is_open = True

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return super().parts(record) if self.is_open else []

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return False

    def shutdown(self) -> None:
        if not self.is_open:
            raise RuntimeError("shut down already")
        self.is_open = False


class OneWayExporter(InMemoryFeedbackExporter):
    """Knows no action but to create, and takes nothing twice."""

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        if any(part.action != "create" for part in parts):
            raise NotImplementedError
        if set(map(id_of, parts)) & set(map(id_of, self.exported)):
            return [PermanentFailure("there already")] * len(parts)
        return super().export(parts)


def id_of(part: Part) -> str:
    return part.id


@pytest.mark.parametrize(
    ("exporter", "broken"),
    [
        (InMemoryFeedbackExporter, set()),
        (TwiceExporter, {"test_a_part_is_told_by_its_kind"}),
        (
            ShortExporter,
            {"test_each_part_that_is_exported_has_its_result", "test_a_part_may_be_replaced_and_taken_back"},
        ),
        (BoastfulExporter, {"test_a_part_says_whose_it_is_and_what_it_carries"}),
        (CountingExporter, {"test_parts_are_the_same_each_time"}),
        (
            FragileExporter,
            {
                "test_parts_need_no_connection",
                "test_shutting_down_twice_is_the_same_as_once",
                "test_a_flush_says_whether_all_of_it_went",
            },
        ),
        (OneWayExporter, {"test_a_part_may_come_again", "test_a_part_may_be_replaced_and_taken_back"}),
    ],
)
def test_the_exporters_contract_finds_what_is_broken(
    exporter: type[InMemoryFeedbackExporter], broken: set[str]
) -> None:
    """
    An exporter that breaks a rule fails the test of that rule, and no other.
    """
    assert broken == broken_rules(ExporterContract, lambda _: exporter())


KEY = "sk-never-told"


class VendorExporter(InMemoryFeedbackExporter):
    """Has a key, and a vendor that answers with a status."""

    def __init__(self, status: int = 200) -> None:
        super().__init__()
        self.status = status

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        return [self.result() for _ in parts] if self.status != 200 else super().export(parts)

    def result(self) -> Result:
        kind = FATES.get(self.status, (PermanentFailure,))[0]
        return kind(f"HTTP {self.status}")


class LeakyRepr(VendorExporter):
    def __repr__(self) -> str:
        return f"<exporter with {KEY}>"


class LeakyLog(VendorExporter):
    def result(self) -> Result:
        logging.getLogger("leaky").debug("refused: %s", KEY)
        return super().result()


class LeakyReason(VendorExporter):
    def result(self) -> Result:
        return replace(super().result(), reason=f"refused: {KEY}")


class BuriesAll(VendorExporter):
    def result(self) -> Result:
        return PermanentFailure(f"HTTP {self.status}")


class TriesAllAgain(VendorExporter):
    def result(self) -> Result:
        return RetryableFailure(f"HTTP {self.status}")


@pytest.mark.parametrize(
    ("exporter", "broken"),
    [
        (VendorExporter, set()),
        (LeakyRepr, {"test_its_key_is_told_to_nobody"}),
        (LeakyLog, {"test_its_key_is_told_to_nobody"}),
        (LeakyReason, {"test_its_key_is_told_to_nobody"}),
        (BuriesAll, {"test_each_status_has_its_fate"}),
        (TriesAllAgain, {"test_each_status_has_its_fate"}),
    ],
)
def test_the_exporters_contract_finds_what_is_told_and_what_is_buried(
    exporter: type[VendorExporter], broken: set[str]
) -> None:
    """
    A key in a text, a log or a reason is found, and so is an error whose fate is another one.
    """

    class Contract(ExporterContract):
        secret = KEY

        def answered(self, status: int) -> VendorExporter:
            return exporter(status)

    assert broken == broken_rules(Contract, lambda _: exporter())


def test_what_the_contract_cannot_ask_is_skipped_with_a_reason() -> None:
    """
    An exporter without a vendor, or without a key, has two tests fewer, and their reasons say how to have them.
    """
    contract = ExporterContract()
    with pytest.raises(unittest.SkipTest, match="define `answered"):
        contract.test_each_status_has_its_fate(InMemoryFeedbackExporter())
    with pytest.raises(unittest.SkipTest, match="set `secret`"):
        contract.test_its_key_is_told_to_nobody(InMemoryFeedbackExporter())


class ForgetfulStore(MemoryStore):
    """Puts one by one, so that the first of several stays when a later one fails."""

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        for entry in entries:
            super().put_many([entry])


class FencelessStore(MemoryStore):
    """Takes every settlement for good and settles what the newest lease is."""

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        return super().settle(lease, settlement) or True


class LimitlessStore(MemoryStore):
    """Takes any number."""

    def __init__(self, *, max_queue_size: int | None = None, clock: Clock) -> None:
        super().__init__(clock=clock)


class BuryingStore(MemoryStore):
    """Has an arrow of its own: what was to be tried again is dead."""

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
        return super().settle_many(
            [(lease, replace(end, event="bury") if end.event == "retry" else end) for lease, end in endings]
        )


class HastyStore(MemoryStore):
    """Says that something is due at once, always."""

    def next_due(self, destination: str, *, by_call: bool = False) -> int | None:
        return self._clock.time_unix_nano()


@pytest.mark.parametrize(
    ("store", "broken"),
    [
        (MemoryStore, set()),
        (
            ForgetfulStore,
            {
                "test_several_are_accepted_all_or_none",
                "test_records_and_parked_judgements_are_accepted_all_or_none",
                "test_a_full_store_refuses_and_puts_nothing",
            },
        ),
        (
            FencelessStore,
            {
                "test_a_late_worker_settles_nothing",
                "test_a_lease_of_what_the_store_does_not_know_settles_nothing",
                "test_a_late_worker_settles_nothing_that_was_forgotten",
            },
        ),
        (
            LimitlessStore,
            {
                "test_a_full_destination_fills_no_other",
                "test_a_full_store_refuses_and_puts_nothing",
                "test_a_full_store_refuses_what_waits_for_its_key",
            },
        ),
        (
            BuryingStore,
            {
                "test_a_lease_that_follows_one_that_ran_out_is_lapsed",
                "test_a_retraction_is_leased_with_what_stands_then",
                "test_a_retry_after_a_newer_judgement_is_superseded",
                "test_a_retry_after_a_retraction_is_retracted",
                "test_a_retry_is_offered_when_it_is_due_with_its_parts",
                "test_a_retry_is_told_what_stands_of_the_revisions_before_it",
                "test_a_time_within_the_longest_wait_has_not_come",
                "test_being_held_back_is_no_attempt",
                "test_by_call_a_line_goes_in_the_order_in_which_it_was_put",
                "test_by_call_all_judgements_of_a_span_stand_in_one_line",
                "test_each_event_ends_a_lease_in_its_state",
                "test_every_arrow_of_the_table_is_walked_and_no_other",
                "test_of_several_newer_judgements_the_newest_says_what_becomes_of_a_retry",
                "test_what_is_held_is_released",
                "test_what_is_old_and_done_is_pruned_and_stays_in_the_accounts",
                "test_what_is_tried_again_is_counted",
            },
        ),
        (
            HastyStore,
            {
                "test_nothing_waits_nothing_is_due",
                "test_what_is_next_due_is_the_earliest",
                "test_what_waits_for_an_older_revision_is_not_due_before_it",
                "test_a_paused_destination_is_due_when_its_pause_ends",
                "test_a_pause_that_has_ended_lets_one_record_a_second_through",
                "test_a_time_within_the_longest_wait_has_not_come",
                "test_by_call_all_judgements_of_a_span_stand_in_one_line",
            },
        ),
    ],
)
def test_the_stores_contract_finds_what_is_broken(store: type[MemoryStore], broken: set[str]) -> None:
    """
    A store that breaks a rule fails the tests of that rule, and no other.
    """
    assert broken == broken_rules(StoreContract, lambda case, **limit: store(clock=case.clock, **limit))


class CarelessStore(MemoryStore):
    """Accepts what cannot be read, by leaving it out."""

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        try:
            super().put_many(entries)
        except RuntimeError:
            return


def test_the_stores_contract_asks_for_the_error_of_an_entry_that_cannot_be_put() -> None:
    """
    A store that swallows the error breaks the rule even though nothing is left behind.
    """
    assert {
        "test_several_are_accepted_all_or_none",
        "test_records_and_parked_judgements_are_accepted_all_or_none",
    } == broken_rules(StoreContract, lambda case, **limit: CarelessStore(clock=case.clock, **limit))
