from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback import (
    BraintrustExporter,
    ConsoleFeedbackExporter,
    FeedbackHandle,
    FeedbackRecord,
    OrqExporter,
    Part,
    WeaveExporter,
    exporters,
)
from otel_feedback.exporters import Success, changes, not_carried, parts_of

HANDLE = FeedbackHandle.from_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
ELSEWHERE = FeedbackHandle.from_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01")
RECORD = FeedbackRecord(id="12345678-1234-8678-9234-567812345678", handle=HANDLE, name="rating", value=True)


class SplittingExporter:
    """Sends the value, the comment and the tags apart, the person with the value, and no correction at all."""

    name = "splitting"

    def parts(self, record: Any) -> Any:
        found = []
        if record.value is not None:
            carries = {"value", "user_id", "metadata"} & set(record.said)
            found.append(Part(record=record, kind="value", body={}, carries=frozenset(carries)))
        alone = [kind for kind in ("comment", "tags") if kind in record.said]
        return found + [Part(record=record, kind=kind, body={}, carries=frozenset({kind})) for kind in alone]

    def export(self, parts: Any) -> Any:
        return [Success()] * len(parts)

    def force_flush(self, timeout_millis: Any = 30_000) -> Any:
        return True

    def shutdown(self) -> None:
        pass


EXPORTER = SplittingExporter()

RECORDS = st.builds(
    replace,
    st.just(RECORD),
    value=st.none() | st.booleans() | st.sampled_from(["good", 1.0, 0.5, ("a",)]),
    comment=st.none() | st.sampled_from(["x", "y"]),
    tags=st.sampled_from([(), ("a",), ("a", "b")]),
    user_id=st.none() | st.just("u-42"),
    metadata=st.sampled_from([{}, {"a": 1}, {"a": True}]),
)


def wanted(record: Any) -> Any:
    """Say what the exporter would send."""
    return parts_of(EXPORTER, record)


def actions(record: Any, standing: Any) -> Any:
    """Say what is to be done, as kind and action."""
    todo = changes(record, wanted(record), wanted(standing))
    assert list(todo) == [part.kind for part in todo.values()]
    return {kind: part.action for kind, part in todo.items()}


class TestPartsOf:
    def test_parts_are_known_by_kind(self) -> None:
        """
        Each part of a judgement is found under its kind, in the exporter's order.
        """
        parts = wanted(replace(RECORD, comment="x", tags=("a",)))

        assert ["value", "comment", "tags"] == list(parts) == [part.kind for part in parts.values()]

    def test_a_retraction_wants_nothing_there(self) -> None:
        """
        Whatever its fields say, a record that retracts has no parts.
        """
        assert {} == wanted(replace(RECORD, comment="x", retracts=True))


class TestNotCarried:
    def test_what_reaches_the_vendor_in_no_part_is_named(self) -> None:
        """
        A correction that the vendor has no field for is never dropped in silence.
        """
        record = replace(RECORD, correction="Paris", comment="x", user_id="u-42")

        assert ("correction",) == not_carried(record, wanted(record))

    def test_what_was_not_said_is_not_missed(self) -> None:
        """
        A bare thumb is carried whole, whatever else the vendor could not take.
        """
        assert () == not_carried(RECORD, wanted(RECORD))

    def test_with_no_parts_everything_is_missed(self) -> None:
        """
        An exporter that can send nothing carries nothing.
        """
        record = replace(RECORD, value=None, correction={}, user_id="u-42")

        assert ("correction", "user_id") == not_carried(record, {})

    @given(RECORDS)
    def test_what_is_said_is_carried_or_named(self, record: Any) -> None:
        """
        The fields that some part carries and the ones that are named are all that was said, each once.
        """
        carried = {name for part in wanted(record).values() for name in part.carries}
        missing = not_carried(record, wanted(record))

        assert sorted(record.said) == sorted([*carried, *missing])


class TestChanges:
    def test_what_is_not_there_is_created(self) -> None:
        """
        A first judgement creates each of its parts.
        """
        record = replace(RECORD, comment="x")

        assert {"value": "create", "comment": "create"} == {
            kind: part.action for kind, part in changes(record, wanted(record), {}).items()
        }

    def test_what_is_the_same_is_left_alone(self) -> None:
        """
        A changed mind about the value does not repeat the comment.
        """
        standing = replace(RECORD, comment="x")

        assert {"value": "replace"} == actions(replace(standing, value=False), standing)

    def test_what_is_no_longer_said_is_taken_back(self) -> None:
        """
        A judgement without its earlier comment retracts it.
        """
        assert {"comment": "retract"} == actions(RECORD, replace(RECORD, comment="x"))

    def test_a_retraction_takes_everything_back_and_says_what_stands_instead(self) -> None:
        """
        Each standing part is retracted as it was, with somebody else's judgement beside it.
        """
        standing = replace(RECORD, comment="x")
        other = replace(RECORD, id="00000000-0000-8000-8000-000000000000", value=False)
        todo = changes(replace(RECORD, value=None, retracts=True, stands=other), {}, wanted(standing))

        assert {"value": "retract", "comment": "retract"} == {kind: part.action for kind, part in todo.items()}
        assert [other, other] == [part.record.stands for part in todo.values()]
        assert [True, True] == [part.record.value for part in todo.values()]

    @pytest.mark.parametrize(
        ("standing", "change"),
        [
            ({"value": True}, {"value": False}),
            ({"value": 3, "scale": (1, 5)}, {"value": 3, "scale": (1, 10)}),
            ({"value": True}, {"value": 1, "scale": (0, 1)}),
            ({"value": True}, {"value": 1.0}),
            ({"value": ("a",)}, {"value": "a"}),
            ({}, {"name": "helpful"}),
            ({}, {"source": "llm"}),
            ({}, {"native": {"weave": {"creator": "Ada"}}}),
            ({}, {"handle": ELSEWHERE}),
            ({}, {"is_thumb": True}),
            ({"is_thumb": True}, {"is_thumb": False}),
            ({"value": 3, "scale": (1, 5)}, {"lower_is_better": True}),
            ({"metadata": {"a": 1}}, {"metadata": {"a": True}}),
            ({"metadata": {"a": 1}}, {"metadata": {}}),
            ({"user_id": "u-42"}, {"user_id": "u-43"}),
        ],
    )
    def test_what_a_reader_would_see_as_another_is_replaced(self, standing: Any, change: Any) -> None:
        """
        Another scale, type, name, source, call, native field, or meaning as it was declared, is another value, even
        where Python finds them equal.
        """
        before = replace(RECORD, **standing)

        assert {"value": "replace"} == actions(replace(before, **change), before)

    @pytest.mark.parametrize(
        "change",
        [
            {"time_unix_nano": 5},
            {"recorded_at_unix_nano": 5},
            {"revision": 5},
            {"correction": "not carried here"},
            {"metadata": {"b": [2], "a": 1}},
            {"metadata": MappingProxyType({"a": 1, "b": [2]})},
            {"native": MappingProxyType({})},
        ],
    )
    def test_what_a_reader_would_not_see_is_left_alone(self, change: Any) -> None:
        """
        The same words at another time, or in another order, are the same.
        """
        before = replace(RECORD, metadata={"a": 1, "b": [2]})

        assert {} == actions(replace(before, **change), before)

    @pytest.mark.parametrize("change", [{"name": "helpful"}, {"native": {"weave": {}}}, {"scale": (0, 1)}])
    def test_a_comment_is_not_repeated_for_what_concerns_the_value(self, change: Any) -> None:
        """
        A vendor may show every comment that it gets, so only its own words count.
        """
        before = replace(RECORD, comment="x")

        assert {"value": "replace"} == actions(replace(before, **change), before)

    def test_a_part_that_carries_more_or_less_is_replaced(self) -> None:
        """
        A judgement that is now signed is another one to its readers.
        """
        assert {"value": "replace"} == actions(replace(RECORD, user_id="u-42"), RECORD)

    @given(RECORDS)
    def test_nothing_is_to_be_done_twice(self, record: Any) -> None:
        """
        Once the vendor has what it should have, the same judgement again changes nothing.
        """
        assert {} == actions(record, record)

    @given(RECORDS, RECORDS)
    def test_every_difference_is_acted_on(self, record: Any, standing: Any) -> None:
        """
        New kinds are created, gone ones retracted, and what both have is replaced or the same.
        """
        todo = actions(record, standing)
        now, before = set(wanted(record)), set(wanted(standing))

        assert {kind for kind, action in todo.items() if action == "create"} == now - before
        assert {kind for kind, action in todo.items() if action == "retract"} == before - now
        assert {kind for kind, action in todo.items() if action == "replace"} <= now & before


class TestOptions:
    @pytest.mark.parametrize(
        ("exporter", "orders_by_call"),
        [
            (BraintrustExporter("project_name:chat"), True),
            (OrqExporter(), False),
            (WeaveExporter("acme/chat"), False),
            (ConsoleFeedbackExporter(), False),
            (EXPORTER, False),
        ],
    )
    def test_only_a_vendor_with_one_value_for_all_orders_by_call(self, exporter: Any, orders_by_call: bool) -> None:
        """
        Where each judgement has a place of its own, nobody waits for what somebody else said.
        """
        assert orders_by_call == getattr(exporter, "orders_by_call", False)


class TestResults:
    @pytest.mark.parametrize("result", exporters.Result.__args__)
    def test_what_was_not_tried_is_said_of_nothing_else(self, result: Any) -> None:
        """
        Only what may be tried again can have been left out; by default it was tried.
        """
        assert (True if result is exporters.RetryableFailure else None) == getattr(result("x"), "is_tried", None)

    @pytest.mark.parametrize("result", exporters.Result.__args__)
    def test_every_result_has_a_reason(self, result: Any) -> None:
        """
        What became of a part can always be said.
        """
        assert "reason" in result.__dataclass_fields__
