"""Routing: destinations by name, what each would get, what is skipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback import ConfigurationError, Feedback, FeedbackHandle, FeedbackRecord, InvalidFeedbackError, Part
from otel_feedback._record import make_record
from otel_feedback._route import Router
from otel_feedback.stores import UNROUTED, Entry
from otel_feedback.testing import InMemoryFeedbackExporter


def a_record(*, is_sampled: bool = True, **fields: Any) -> FeedbackRecord:
    handle = FeedbackHandle(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(int(is_sampled))))
    feedback = Feedback(name="rating", value=True, target=handle, **fields)
    return make_record(feedback, handle, now_unix_nano=1, rng=Random(1))


def a_router(*exporters: InMemoryFeedbackExporter, exports_unsampled: bool = False) -> Router:
    return Router(exporters, exports_unsampled=exports_unsampled)


ROUTER = a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"))


@pytest.mark.parametrize("wrong", ["orq", InMemoryFeedbackExporter, None, object()])
def test_what_is_no_exporter_is_refused_at_the_door(wrong: Any) -> None:
    """
    A name, a class, or anything else instead of an exporter is named before anything is started.
    """
    with pytest.raises(ConfigurationError, match="is no exporter") as caught:
        a_router(wrong)

    assert "exporters" == caught.value.setting


class TestDestinations:
    @pytest.mark.parametrize(
        ("to", "destinations"),
        [(None, ("a", "b")), (["b"], ("b",)), (("b", "a", "b"), ("b", "a"))],
    )
    def test_by_default_all_of_them_else_those_that_are_named(self, to: Any, destinations: tuple[str, ...]) -> None:
        """
        `to` names destinations in their order, each once; without it a judgement goes everywhere.
        """
        assert destinations == ROUTER.destinations(Feedback(name="rating", to=to))

    @pytest.mark.parametrize("to", ["a", [], (), 5, {"a": 1}, ["c"], [["a"]], [None]])
    def test_what_names_no_exporter_is_refused(self, to: Any) -> None:
        """
        A string instead of a list, an empty list or an unknown name is invalid, and the error says which argument.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            ROUTER.destinations(Feedback(name="rating", to=to))

        assert "to" == caught.value.field

    def test_native_fields_are_for_exporters_that_are_there(self) -> None:
        """
        A vendor's own fields for a destination that this process does not know would be lost, so they are refused.
        """
        with pytest.raises(InvalidFeedbackError, match=r"native names no exporter of this process \(a, b\)") as caught:
            ROUTER.destinations(Feedback(name="rating", native={"weave": {}}))

        assert "native" == caught.value.field

    def test_a_process_without_exporters_says_so(self) -> None:
        """
        The error names what is configured, which may be nothing.
        """
        with pytest.raises(InvalidFeedbackError, match="none is configured"):
            a_router().destinations(Feedback(name="rating", to=["a"]))

    def test_native_of_another_type_is_left_to_the_record(self) -> None:
        """
        What is no mapping at all has no names; the record's own check refuses it.
        """
        assert ("a", "b") == ROUTER.destinations(Feedback(name="rating", native=5))  # type: ignore[arg-type]  # wrong

    @pytest.mark.parametrize("name", ["a", UNROUTED])
    def test_each_name_is_taken_once(self, name: str) -> None:
        """
        Deliveries are kept by name, so two exporters never share one, nor the one of what waits for any.
        """
        with pytest.raises(ConfigurationError, match=f"the exporter name '{name}' is taken"):
            a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter(name))


class TestEntries:
    def test_without_a_destination_a_record_waits(self) -> None:
        """
        Where there is no exporter a record goes to the place from which it is routed later.
        """
        record = a_record()

        assert Entry(record, (UNROUTED,), {}) == a_router().entry(record, ())

    @pytest.mark.parametrize(
        ("is_sampled", "exports_unsampled", "skipped"),
        [
            (True, False, {}),
            (True, True, {}),
            (False, True, {}),
            (False, False, {"trace": "unsampled", "elsewhere": "unsampled"}),
        ],
    )
    def test_feedback_on_an_unsampled_span_is_skipped_where_a_trace_is_needed(
        self, is_sampled: bool, exports_unsampled: bool, skipped: dict[str, str]
    ) -> None:
        """
        Unless the setting says otherwise, only destinations that need no trace get feedback on an unsampled span.
        """
        log = InMemoryFeedbackExporter("log", exports_unsampled=True)
        router = a_router(InMemoryFeedbackExporter("trace"), log, exports_unsampled=exports_unsampled)
        entry = router.entry(a_record(is_sampled=is_sampled), ("trace", "log", "elsewhere"))

        assert (("trace", "log", "elsewhere"), skipped) == (entry.destinations, entry.skipped)


class Partial(InMemoryFeedbackExporter):
    """Carries the value only."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [Part(record=record, kind="value", body={}, carries=frozenset({"value"}))]


class Failing(InMemoryFeedbackExporter):
    """Cannot say what to send, for one reason or another."""

    def __init__(self, error: Exception) -> None:
        super().__init__("failing")
        self.error = error

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        raise self.error


class TestPlans:
    def test_a_plan_names_what_is_not_carried_and_why_it_is_skipped(self) -> None:
        """
        Each destination that is here says its parts, what it leaves out and whether it is skipped.
        """
        router = a_router(Partial("partial"), InMemoryFeedbackExporter("whole"))
        plans = router.plan(a_record(comment="Spot on", is_sampled=False), ("partial", "whole", "elsewhere"))

        assert {"partial": ("comment",), "whole": ()} == {name: plan.not_carried for name, plan in plans.items()}
        assert {"partial": 1, "whole": 1} == {name: len(plan.parts) for name, plan in plans.items()}
        assert {"unsampled"} == {plan.skipped for plan in plans.values()}

    def test_a_retraction_says_nothing_that_could_be_missing(self) -> None:
        """
        Taking a judgement back carries no field, so none is reported as not carried.
        """
        record = FeedbackRecord(id="1", handle=a_record().handle, name="rating", user_id="u-1", retracts=True)
        (plan,) = a_router(Partial("partial")).plan(record, ("partial",)).values()

        assert ([], ()) == (plan.parts, plan.not_carried)

    def test_an_exporter_may_refuse_a_judgement(self) -> None:
        """
        What a destination calls invalid is refused before it is accepted.
        """
        with pytest.raises(InvalidFeedbackError):
            a_router(Failing(InvalidFeedbackError("no", field="native"))).plan(a_record(), ("failing",))

    def test_an_exporter_that_fails_refuses_nothing_and_betrays_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        A bug of an exporter costs no judgement; the log has its kind and place, not its text.
        """
        router = a_router(Failing(RuntimeError("bad comment: Spot on")), InMemoryFeedbackExporter("whole"))
        plans = router.plan(a_record(comment="Spot on"), ("failing", "whole"))

        assert [0, 1] == [len(plan.parts) for plan in plans.values()]
        assert [logging.ERROR] == [record.levelno for record in caplog.records]
        assert "RuntimeError" in caplog.text
        assert "Spot on" not in caplog.text
