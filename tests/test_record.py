import json
import random
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags

from otel_feedback import Feedback, FeedbackHandle, FeedbackRecord, InvalidFeedbackError, Part
from otel_feedback._record import (
    KEY_KINDS,
    MAX_JSON_DEPTH,
    MAX_JSON_INT,
    MAX_KEY_BITS,
    MAX_NAME_CHARS,
    MAX_RECORD_BYTES,
    SOURCES,
    check_one_target,
    derived_id,
    handle_from_json,
    handle_to_json,
    judgement_id,
    make_record,
    new_id,
    part_id,
    record_from_json,
    record_to_json,
    redacted,
    stand_in_handle,
)

HANDLE = FeedbackHandle.from_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
NOW = 1_767_225_600_000_000_000
HUGE = 10**5000  # Python itself refuses to write it as text
HALF = "\ud83d"  # half of a surrogate pair

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
WORDS = TEXTS.filter(str.strip)
INTS = st.integers(-MAX_JSON_INT, MAX_JSON_INT)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALES = (
    st.tuples(INTS | FLOATS, INTS | FLOATS)
    .filter(lambda ends: ends[0] < ends[1])
    .filter(lambda ends: abs(ends[1] - ends[0]) != float("inf"))
)
JSON = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)
TIMES = st.integers(0, (1 << 63) - 1)
HANDLES = st.builds(
    FeedbackHandle,
    st.builds(
        lambda trace_id, span_id, flags: SpanContext(trace_id, span_id, True, TraceFlags(flags)),
        st.integers(1, (1 << 128) - 1),
        st.integers(1, (1 << 64) - 1),
        st.integers(0, 255),
    ),
    root=st.integers(0, (1 << 64) - 1),
    started_at=st.none() | TIMES,
    ended_at=st.none() | TIMES,
    attributes=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
VALUES = st.booleans() | INTS | FLOATS | LINES | st.lists(LINES, min_size=1, max_size=3).map(tuple)


def records(stands: st.SearchStrategy[Any]) -> st.SearchStrategy[FeedbackRecord]:
    """Make records of every shape, valid or not: what is stored is read back as it was."""
    return st.builds(
        FeedbackRecord,
        id=st.uuids().map(str),
        handle=HANDLES,
        name=LINES,
        value=st.none() | VALUES,
        scale=st.none() | SCALES,
        comment=st.none() | WORDS,
        correction=st.none() | JSON,
        tags=st.lists(LINES, max_size=3).map(tuple),
        user_id=st.none() | LINES,
        source=st.sampled_from(SOURCES),
        metadata=OBJECTS,
        native=st.dictionaries(LINES, OBJECTS, max_size=2),
        time_unix_nano=TIMES,
        recorded_at_unix_nano=TIMES,
        revision=st.integers(0, 1_000),
        retracts=st.booleans(),
        stands=stands,
        is_thumb=st.none() | st.booleans(),
        lower_is_better=st.booleans(),
    )


# Whole records and time zones take a while to make at first; a slow machine is no defect.
UNHURRIED = settings(deadline=None)


class Colour(str, Enum):
    """What an application uses for a label; `str()` of a member is 'Colour.RED'."""

    RED = "red"


class Origin(str, Enum):
    """What an application uses for a source."""

    LLM = "llm"


class Stars(IntEnum):
    """What an application uses for a number."""

    FOUR = 4


class NumpyLike(float):
    """What numpy.float64 is: a float whose text is another."""

    def __repr__(self) -> str:
        return f"float64({float(self)})"


class Nowhere(tzinfo):
    """A time zone that does not say where it is: Python calls such a time naive."""

    def utcoffset(self, when: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


def make(handle: Any = HANDLE, **given_fields: Any) -> FeedbackRecord:
    """Make a record of a judgement called `rating`, a thumb up unless something else is said."""
    said = {"value", "comment", "correction", "tags"}
    default = {} if said & set(given_fields) else {"value": True}
    feedback = Feedback(**{"name": "rating", **default, **given_fields})
    return make_record(feedback, handle, now_unix_nano=NOW, rng=random.Random(7))


def refusal(**given_fields: Any) -> InvalidFeedbackError:
    """Answer the error that a judgement is refused with."""
    with pytest.raises(InvalidFeedbackError) as caught:
        make(**given_fields)
    return caught.value


def nested(depth: int) -> list[Any]:
    """Nest lists in lists."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


class TestValue:
    @pytest.mark.parametrize(
        ("value", "scale"),
        [
            (True, None),
            (False, None),
            (0.0, None),
            (1.0, None),
            (0.5, None),
            (1, (1, 5)),
            (5, (1, 5)),
            (3.5, (1, 5)),
            (-10, (-10, 10)),
            (0, (0.0, 1.0)),
            (MAX_JSON_INT, (-MAX_JSON_INT, MAX_JSON_INT)),
            ("good", None),
            ("👩‍💻", None),
            ("x" * MAX_NAME_CHARS, None),
        ],
    )
    def test_a_value_is_kept_as_it_was_given(self, value: Any, scale: Any) -> None:
        """
        A thumb, a number within its scale, both ends included, and a label stay what they are, type included.
        """
        kept = make(value=value, scale=scale)

        assert (value, type(value), scale) == (kept.value, type(kept.value), kept.scale)

    @pytest.mark.parametrize("labels", [["a", "b"], ("a", "b"), ["a", "b", "a"]])
    def test_several_labels_are_kept_once_each_in_their_order(self, labels: Any) -> None:
        """
        A list of labels becomes a tuple without repetitions.
        """
        assert ("a", "b") == make(value=labels).value

    @pytest.mark.parametrize(
        ("value", "scale", "kept"),
        [
            (Colour.RED, None, "red"),
            ([Colour.RED, "blue"], None, ("red", "blue")),
            (Stars.FOUR, (1, 5), 4),
            (NumpyLike(0.25), None, 0.25),
            (4, [1, 5], 4),
            (4, (Stars(4), NumpyLike(5)), 4),
        ],
    )
    def test_a_subclass_of_a_plain_type_is_kept_as_the_plain_one(self, value: Any, scale: Any, kept: Any) -> None:
        """
        A member of an enumeration is what it stands for, a numpy number a float: every reader sees the same.
        """
        record = make(value=value, scale=scale)
        found = record.value if isinstance(record.value, tuple) else (record.value,)

        assert kept == record.value
        assert {type(each) for each in found} <= {str, int, float}
        assert all(type(end) in (int, float) for end in record.scale or ())

    @pytest.mark.parametrize(
        ("value", "scale", "field", "message"),
        [
            (float("nan"), None, "value", "not finite"),
            (float("inf"), (0, 1), "value", "not finite"),
            (float("-inf"), None, "value", "not finite"),
            (1, None, "value", r"an int needs its scale, as in scale=\(1, 5\)"),
            (0, None, "value", "an int needs its scale"),
            (Stars.FOUR, None, "value", "an int needs its scale"),
            (1.5, None, "value", r"outside its scale of 0 to 1; give scale="),
            (-0.1, None, "value", "outside its scale"),
            (1.0000001, None, "value", "outside its scale"),
            (6, (1, 5), "value", "outside its scale of 1 to 5$"),
            (0, (1, 5), "value", "outside its scale"),
            (5.000001, (1, 5), "value", "outside its scale"),
            pytest.param(HUGE, (1, 5), "value", "readers of JSON round", id="huge"),
            (MAX_JSON_INT + 1, (0, 1e300), "value", "readers of JSON round"),
            (-MAX_JSON_INT - 1, (-1e300, 0), "value", "readers of JSON round"),
            ("", None, "value", "value is empty; leave it out"),
            (" \t", None, "value", "value is empty"),
            (HALF, None, "value", "surrogate pair"),
            ("a\nb", None, "value", "control character"),
            ("x" * (MAX_NAME_CHARS + 1), None, "value", "longer than 256"),
            ([], None, "value", "empty list"),
            ((), None, "value", "empty list"),
            ([""], None, "value", "value is empty"),
            (["good", None], None, "value", "must be a string, not NoneType"),
            (["good", HALF], None, "value", "surrogate pair"),
            (["x" * (MAX_NAME_CHARS + 1)], None, "value", "longer than 256"),
            ([["good"]], None, "value", "must be a string, not list"),
            ([True], None, "value", "must be a string, not bool"),
            (b"good", None, "value", "not bytes"),
            (bytearray(b"good"), None, "value", "not bytearray"),
            ({"good"}, None, "value", "not set"),
            ({"good": 1}, None, "value", "not dict"),
            ((label for label in ["good"]), None, "value", "not generator"),
            (Decimal("0.5"), None, "value", "not Decimal"),
            (Fraction(1, 2), None, "value", "not Fraction"),
            (0.5j, None, "value", "not complex"),
            (object(), None, "value", "not object"),
        ],
    )
    def test_what_is_no_value_is_refused(self, value: Any, scale: Any, field: str, message: str) -> None:
        """
        The error names the field, keeps what was given, and says what to do.
        """
        with pytest.raises(InvalidFeedbackError, match=message) as caught:
            make(value=value, scale=scale)

        assert field == caught.value.field

    @pytest.mark.parametrize("value", [pytest.param(HUGE, id="huge"), float("nan"), "", 7, b"x"])
    def test_the_error_keeps_what_was_given(self, value: Any) -> None:
        """
        The value is an attribute of the error and never in its message.
        """
        error = refusal(value=value)

        assert value is error.value

    @pytest.mark.parametrize(
        "scale",
        [
            (5, 1),
            (1, 1),
            (1.0, 1),
            (1,),
            (1, 3, 5),
            (),
            "15",
            5,
            {1, 5},
            {1: 5},
            range(1, 5),
            (end for end in (1, 5)),
            (None, 5),
            ("1", "5"),
            (False, True),
            (0, True),
            (float("nan"), 5),
            (0, float("inf")),
            (float("-inf"), float("inf")),
            (Decimal(1), Decimal(5)),
            (-1.7e308, 1.7e308),
        ],
    )
    def test_what_is_no_scale_is_refused(self, scale: Any) -> None:
        """
        A scale is two plain numbers, the lower first, with a finite distance between them.
        """
        error = refusal(value=3, scale=scale)

        assert ("scale", True) == (error.field, error.value is scale or isinstance(error.value, float))

    @pytest.mark.parametrize("scale", [(0, 10**400), (-HUGE, 0), (0, MAX_JSON_INT + 1)])
    def test_a_scale_with_an_integer_that_json_rounds_is_refused(self, scale: Any) -> None:
        """
        An end that no reader could hold is refused before anything overflows.
        """
        error = refusal(value=0, scale=scale)

        assert ("scale", True) == (error.field, "readers of JSON round" in str(error))

    @pytest.mark.parametrize("value", [None, True, "good", ["good"]])
    def test_a_scale_belongs_to_a_number(self, value: Any) -> None:
        """
        A scale for a thumb, a label or nothing is a mistake that somebody should hear of.
        """
        error = refusal(value=value, scale=(1, 5), comment="x")

        assert ("scale", (1, 5)) == (error.field, error.value)

    @given(VALUES, st.none() | SCALES)
    def test_any_value_is_kept_or_refused(self, value: Any, scale: Any) -> None:
        """
        What is accepted says the same as what was given, and a number has a place between 0 and 1.
        """
        try:
            record = make(value=value, scale=scale)
        except InvalidFeedbackError:
            return

        assert (tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value) == record.value
        assert (record.fraction is None) == isinstance(value, (str, tuple))


class TestFraction:
    @pytest.mark.parametrize(
        ("value", "scale", "fraction"),
        [
            (True, None, 1),
            (False, None, 0),
            (0.25, None, 0.25),
            (1, (1, 5), 0),
            (3, (1, 5), 0.5),
            (5, (1, 5), 1),
            (0, (-10, 10), 0.5),
            ("good", None, None),
            (("a", "b"), None, None),
            (None, None, None),
        ],
    )
    def test_a_value_has_its_place_on_the_scale(self, value: Any, scale: Any, fraction: Any) -> None:
        """
        A thumb is at one of the ends, a number where it stands, and a label nowhere; one star of five is 0.
        """
        record = FeedbackRecord(id="x", handle=HANDLE, name="rating", value=value, scale=scale)

        assert fraction == record.fraction

    @pytest.mark.parametrize(
        ("value", "scale", "fraction"),
        [
            (True, None, 0),
            (False, None, 1),
            (0.25, None, 0.75),
            (1, (1, 5), 1),
            (3, (1, 5), 0.5),
            (5, (1, 5), 0),
            ("good", None, None),
            (None, None, None),
        ],
    )
    def test_where_lower_is_better_the_lowest_is_1(self, value: Any, scale: Any, fraction: Any) -> None:
        """
        Whatever the direction, 1 is the best.
        """
        record = FeedbackRecord(id="x", handle=HANDLE, name="effort", value=value, scale=scale, lower_is_better=True)

        assert fraction == record.fraction

    @given(SCALES, st.data())
    def test_the_other_direction_has_the_same_ends(self, scale: Any, data: Any) -> None:
        """
        They are exactly 1 and 0, and what is between stays between and turns round.
        """
        low, high = scale
        pair = sorted(data.draw(st.tuples(st.floats(float(low), float(high)), st.floats(float(low), float(high)))))
        inside = [value for value in pair if low <= value <= high]
        records = [make(value=value, scale=scale) for value in [low, *inside, high]]
        places = [replace(record, lower_is_better=True).fraction or 0.0 for record in records]

        assert (1, 0) == (places[0], places[-1])
        assert sorted(places, reverse=True) == places

    @given(SCALES, st.data())
    @example((MAX_JSON_INT - 1, MAX_JSON_INT), None)
    @example((0, 5e-324), None)
    def test_the_place_is_between_0_and_1_and_grows_with_the_value(self, scale: Any, data: Any) -> None:
        """
        However wide or narrow a scale is, its ends are 0 and 1 and nothing leaves or turns round between them.
        """
        low, high = scale
        drawn = st.one_of(st.sampled_from([low, high]), st.floats(float(low), float(high)))
        pair = [low, high] if data is None else sorted(data.draw(st.tuples(drawn, drawn)))
        inside = [value for value in pair if low <= value <= high]
        places = [make(value=value, scale=scale).fraction or 0.0 for value in [low, *inside, high]]

        assert (0, 1) == (places[0], places[-1])
        assert sorted(places) == places


class TestThumbs:
    @pytest.mark.parametrize("value", [True, False])
    @pytest.mark.parametrize(
        ("name", "is_thumb", "expected"),
        [
            ("rating", None, True),
            ("toxic", None, False),
            ("rating", True, True),
            ("toxic", True, True),
            ("rating", False, False),
            ("toxic", False, False),
        ],
    )
    def test_a_boolean_is_a_thumb_as_declared_else_by_its_name(
        self, name: str, is_thumb: Any, value: bool, expected: bool
    ) -> None:
        """
        What the application declares wins over the names that an exporter takes for thumbs.
        """
        record = FeedbackRecord(id="x", handle=HANDLE, name=name, value=value, is_thumb=is_thumb)

        assert expected is record.is_thumb_under({"rating"})

    @pytest.mark.parametrize("value", [1, 1.0, "good", ("a",), None])
    @pytest.mark.parametrize("is_thumb", [None, True, False])
    def test_what_is_no_boolean_is_no_thumb(self, value: Any, is_thumb: Any) -> None:
        """
        Nor is what a redaction has left of one, whatever was declared.
        """
        record = FeedbackRecord(id="x", handle=HANDLE, name="rating", value=value, is_thumb=is_thumb)

        assert record.is_thumb_under({"rating"}) is False

    @pytest.mark.parametrize(
        ("declared", "written"),
        [
            ({}, {}),
            ({"is_thumb": True}, {"is_thumb": True}),
            ({"is_thumb": False}, {"is_thumb": False}),
            ({"is_thumb": False, "lower_is_better": True}, {"is_thumb": False, "lower_is_better": True}),
        ],
    )
    def test_what_was_declared_is_kept(self, declared: dict[str, Any], written: dict[str, Any]) -> None:
        """
        It is in the store's text where there is something to say, and that of an earlier release has nothing of it.
        """
        given = Feedback(target=HANDLE, name="rating", value=True)
        record = make_record(given, HANDLE, now_unix_nano=NOW, rng=random.Random(7), **declared)
        text = record_to_json(record)
        new = ("is_thumb", "lower_is_better")

        assert written == {name: value for name, value in json.loads(text).items() if name in new}
        assert record == record_from_json(text) == replace(make(value=True), **declared)

    @pytest.mark.parametrize("is_thumb", [None, True, False])
    @pytest.mark.parametrize("lower_is_better", [True, False])
    def test_what_was_declared_outlasts_a_redaction(self, is_thumb: Any, lower_is_better: bool) -> None:
        """
        It is of the name, which no hook changes.
        """
        record = replace(make(value=True, comment="c"), is_thumb=is_thumb, lower_is_better=lower_is_better)
        left = redacted(record, lambda feedback: replace(feedback, comment=None))

        assert replace(record, comment=None) == left


class TestTexts:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("name", "", "name is empty"),
            ("name", "  ", "name is empty"),
            ("name", None, "must be a string, not NoneType"),
            ("name", 7, "must be a string, not int"),
            ("name", b"rating", "must be a string, not bytes"),
            ("name", HALF, "surrogate pair"),
            ("name", "a\nb", "control character"),
            ("name", "a\x00b", "control character"),
            ("name", "a\x85b", "control character"),
            ("name", "x" * (MAX_NAME_CHARS + 1), "longer than 256 characters"),
            ("name", "wandb.reaction.1", "belong to W&B"),
            ("name", "WandB.x", "belong to W&B"),
            ("user_id", "", "user_id is empty"),
            ("user_id", 42, "must be a string, not int"),
            ("user_id", uuid.UUID(int=1), "must be a string, not UUID"),
            ("user_id", HALF, "surrogate pair"),
            ("user_id", "u\x1b[31m", "control character"),
            ("user_id", "x" * (MAX_NAME_CHARS + 1), "longer than 256 characters"),
            ("comment", "", "comment is empty; leave it out"),
            ("comment", "\n \n", "comment is empty"),
            ("comment", 7, "must be a string, not int"),
            ("comment", b"x", "must be a string, not bytes"),
            ("comment", "x" + HALF, "surrogate pair"),
            ("comment", "x" * (MAX_RECORD_BYTES + 1), "longer than 1048576 characters"),
            ("correction", "", "correction is empty"),
            ("correction", HALF, "surrogate pair"),
            ("source", "robot", "one of human, llm, code"),
            ("source", "", "one of human"),
            ("source", None, "one of human"),
            ("source", [], "one of human"),
            ("source", "Human", "one of human"),
            ("tags", "a,b", "list of strings"),
            ("tags", "", "list of strings"),
            ("tags", b"ab", "list of strings"),
            ("tags", 0, "list of strings"),
            ("tags", {"a"}, "list of strings"),
            ("tags", {"a": 1}, "list of strings"),
            ("tags", {}, "list of strings"),
            ("tags", iter(["a"]), "list of strings"),
            ("tags", ["a", ""], "tags is empty"),
            ("tags", ["a", 7], "must be a string, not int"),
            ("tags", [HALF], "surrogate pair"),
            ("tags", ["a\tb"], "control character"),
            ("id", "17", "must be a UUID"),
            ("id", "", "must be a UUID"),
            ("id", 17, "must be a UUID"),
            ("id", "0x345678123456781234567812345678", "must be a UUID"),
            ("id", "1234_678123456781234567812345678a", "must be a UUID"),
            ("id", "{12345678-1234-5678-1234-567812345678}", "must be a UUID"),
            ("id", "12345678-1234-5678-1234-567812345678\n", "must be a UUID"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, field: str, value: Any, message: str) -> None:
        """
        Every text field has an error that names it and says what is the matter.
        """
        with pytest.raises(InvalidFeedbackError, match=message) as caught:
            make(**{"value": True, field: value})

        assert field == caught.value.field

    @pytest.mark.parametrize("field", ["name", "user_id", "comment", "correction", "value"])
    def test_a_message_never_repeats_what_a_person_wrote(self, field: str) -> None:
        """
        Messages are logged, so they hold no text of users: it is an attribute of the error.
        """
        error = refusal(**{"value": True, field: "secret" + HALF})

        assert "secret" not in str(error)
        assert "secret" + HALF == error.value

    @pytest.mark.parametrize("tags", [None, [], ()])
    def test_no_tags_are_no_tags(self, tags: Any) -> None:
        """
        Each of the usual ways to give none is taken as none.
        """
        assert () == make(value=True, tags=tags).tags

    def test_tags_are_kept_once_each_in_their_order(self) -> None:
        """
        Vendors merge tags as a set, so a repetition is none.
        """
        assert ("b", "a") == make(tags=["b", "a", "b"]).tags

    @pytest.mark.parametrize("comment", ["one\ntwo\r\n\tthree", "\x00", "👩‍💻", "x" * 100_000])
    def test_a_comment_may_be_any_text(self, comment: Any) -> None:
        """
        Line breaks, control characters and length are a person's own business.
        """
        assert comment == make(comment=comment).comment

    def test_enumerations_and_subclasses_become_plain_texts(self) -> None:
        """
        A member of an enumeration of texts is stored as its text, in every field, and so is the identity made.
        """
        record = make(name=Colour.RED, comment=Colour.RED, correction=Colour.RED, tags=[Colour.RED], user_id=Colour.RED)
        plain = make(name="red", comment="red", correction="red", tags=["red"], user_id="red")

        assert plain == record
        assert {str} == {type(record.name), type(record.comment), type(record.correction), type(record.user_id)}

    def test_a_source_of_an_enumeration_becomes_plain(self) -> None:
        """
        A source that equals one of the three is that one.
        """
        assert str is type(make(source=Origin.LLM).source)

    @pytest.mark.parametrize("said", [{}, {"tags": []}, {"metadata": {"a": 1}}, {"user_id": "u-42"}])
    def test_a_judgement_that_says_nothing_is_refused(self, said: Any) -> None:
        """
        One of value, comment, correction and tags must be there; who and when say nothing by themselves.
        """
        error = refusal(value=None, **said)

        assert ("value", True) == (error.field, "nothing was said" in str(error))

    @pytest.mark.parametrize(
        "said", [{"value": False}, {"value": 0.0}, {"comment": "x"}, {"tags": ["x"]}, {"correction": False}]
    )
    def test_one_thing_said_is_enough(self, said: Any) -> None:
        """
        What Python takes for false is said all the same.
        """
        assert tuple(said) == make(**said).said


class TestJson:
    @pytest.mark.parametrize("correction", ["Paris", 0, False, 1.5, {}, [], [None], {"a": [{"b": 1}]}])
    def test_a_correction_is_any_json(self, correction: Any) -> None:
        """
        The right answer may be an empty list, nought, or false: it is kept, stored and read as that.
        """
        record = make(correction=correction)

        assert correction == record.correction
        assert type(correction) is type(record_from_json(record_to_json(record)).correction)
        assert correction == record_from_json(record_to_json(record)).correction

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (float("nan"), "not finite"),
            (float("inf"), "not finite"),
            pytest.param(HUGE, "integer beyond 9007199254740991", id="huge"),
            (MAX_JSON_INT + 1, "integer beyond"),
            (-MAX_JSON_INT - 1, "integer beyond"),
            (HALF, "surrogate pair"),
            (b"x", "has a bytes, for which JSON has no word"),
            ({1, 2}, "has a set"),
            (Decimal(1), "has a Decimal"),
            (date(2026, 1, 1), "has a date"),
            (timedelta(1), "has a timedelta"),
            (uuid.UUID(int=1), "has a UUID"),
            ((n for n in [1]), "has a generator"),
            (range(3), "has a range"),
            (object(), "has a object"),
            (object, "has a type"),
            (datetime(2026, 1, 1), "without a time zone"),  # noqa: DTZ001 (that is what is tested)
            (datetime(2026, 1, 1, tzinfo=Nowhere()), "without a time zone"),
            ({1: "x"}, "key that is no string"),
            ({None: "x"}, "key that is no string"),
            ({"a": {("x",): 1}}, "key that is no string"),
            ({HALF: 1}, "surrogate pair"),
            (nested(5_000), "nested deeper than 64 levels"),
        ],
    )
    @pytest.mark.parametrize(
        "where",
        [
            lambda item: ("metadata", {"a": item}),
            lambda item: ("correction", [item]),
            lambda item: ("native['weave']", {"weave": {"payload": {"a": item}}}),
        ],
        ids=["metadata", "correction", "native"],
    )
    def test_what_json_has_no_word_for_is_refused_wherever_it_stands(self, where: Any, item: Any, message: str) -> None:
        """
        The field is named before anything is stored, since no vendor could get it.
        """
        field, given_value = where(item)

        with pytest.raises(InvalidFeedbackError, match=message) as caught:
            make(value=True, **{field.partition("[")[0]: given_value})

        assert caught.value.field in {field, field.partition("[")[0]}

    @pytest.mark.parametrize("value", [7, "x", ["x"], [("a", 1)], True, b"x"])
    @pytest.mark.parametrize("field", ["metadata", "native"])
    def test_what_is_no_mapping_is_refused(self, field: str, value: Any) -> None:
        """
        Metadata and native fields have names.
        """
        assert (field, value) == ((error := refusal(**{"value": True, field: value})).field, error.value)

    def test_the_native_fields_of_one_exporter_are_a_mapping(self) -> None:
        """
        The error names the exporter whose fields they are.
        """
        assert "native['weave']" == refusal(value=True, native={"weave": ["payload"]}).field

    @pytest.mark.parametrize("field", ["metadata", "native"])
    def test_nothing_is_an_empty_mapping(self, field: str) -> None:
        """
        `None` is taken for what it means.
        """
        assert {} == getattr(make(**{"value": True, field: None}), field)

    def test_native_fields_of_nobody_are_empty(self) -> None:
        """
        An exporter whose native fields are `None` has none.
        """
        assert {"weave": {}} == make(native={"weave": None}).native

    def test_subclasses_become_plain(self) -> None:
        """
        Enumerations, numpy-like numbers, tuples and times become what JSON calls them.
        """
        moment = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
        given_metadata = {Colour.RED: [Colour.RED, Stars.FOUR, NumpyLike(0.5), ("x", True), moment]}
        found = make(metadata=given_metadata).metadata

        assert {"red": ["red", 4, 0.5, ["x", True], "2026-01-01T12:00:00+02:00"]} == found
        assert [str] == [type(key) for key in found]
        assert [str, int, float, list, str] == [type(item) for item in found["red"]]

    def test_depth_is_taken_to_the_limit_and_not_beyond(self) -> None:
        """
        The last level that is taken can be written and read; the next one is refused.
        """
        record = make(correction=nested(MAX_JSON_DEPTH))

        assert record == record_from_json(record_to_json(record))
        assert "correction" == refusal(correction=nested(MAX_JSON_DEPTH + 1)).field

    def test_what_contains_itself_is_refused(self) -> None:
        """
        A loop is endless depth.
        """
        loop: dict[str, object] = {}
        loop["again"] = [loop]

        assert "metadata" == refusal(metadata=loop).field

    def test_what_the_caller_changes_later_changes_no_record(self) -> None:
        """
        Everything is copied, at every depth.
        """
        given_metadata: dict[str, Any] = {"a": [1, {"b": 2}]}
        record = make(metadata=given_metadata)
        given_metadata["a"][1]["b"] = 3
        given_metadata["c"] = 4

        assert {"a": [1, {"b": 2}]} == record.metadata

    @given(JSON)
    def test_json_stays_what_it_is(self, value: Any) -> None:
        """
        What is JSON already is not touched.
        """
        assert {"a": value} == make(value=True, metadata={"a": value}).metadata


class TestSize:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("comment", "x" * MAX_RECORD_BYTES),
            ("comment", "é" * (MAX_RECORD_BYTES // 5)),
            ("correction", ["x" * 1_000] * 1_100),
            ("metadata", {"a": "x" * MAX_RECORD_BYTES}),
            ("native", {"weave": {"payload": {"a": "x" * MAX_RECORD_BYTES}}}),
            ("tags", [f"{n:0250}" for n in range(4_500)]),
        ],
    )
    def test_what_no_vendor_would_take_is_refused_by_the_field_that_is_most_of_it(self, field: str, value: Any) -> None:
        """
        The limit is one of bytes of ASCII-escaped JSON, as Weave counts them; "é" is six of them.
        """
        error = refusal(**{"value": True, field: value})

        assert (field, f"make {field} shorter" in str(error)) == (error.field, True)

    def test_a_handle_that_is_too_large_is_refused_as_the_handle(self) -> None:
        """
        The attributes of the call count as well.
        """
        handle = FeedbackHandle(HANDLE.context, attributes={"user.id": "x" * MAX_RECORD_BYTES})

        assert "handle" == refusal(handle=handle).field

    def test_what_fits_is_taken(self) -> None:
        """
        A comment just below the limit is a judgement.
        """
        assert make(comment="x" * (MAX_RECORD_BYTES - 1_000)).comment


class TestTime:
    @pytest.mark.parametrize(
        ("given_time", "time_unix_nano"),
        [
            (None, NOW),
            (1, 1),
            ((1 << 63) - 1, (1 << 63) - 1),
            (datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=timezone.utc), 1_000),
            (datetime(2026, 1, 1, tzinfo=timezone.utc), NOW),
            (datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), NOW),
            (datetime(2026, 1, 1, 0, 0, 0, 123_457, tzinfo=timezone.utc), NOW + 123_457_000),
        ],
    )
    def test_a_time_is_kept_in_nanoseconds(self, given_time: Any, time_unix_nano: Any) -> None:
        """
        Nothing given is now; an integer is nanoseconds; a datetime is taken in its own time zone.
        """
        record = make(time_unix_nano=given_time)

        assert (time_unix_nano, NOW) == (record.time_unix_nano, record.recorded_at_unix_nano)

    @UNHURRIED
    @given(st.datetimes(datetime(1970, 1, 2), datetime(2262, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 (bounds)
    def test_a_datetime_is_exact_to_the_microsecond(self, moment: Any) -> None:
        """
        No microsecond is lost to a float on the way.
        """
        microseconds, rest = divmod(make(time_unix_nano=moment).time_unix_nano, 1_000)

        assert 0 == rest
        # Compared in UTC: Python calls an hour that comes twice equal to no time of another zone.
        assert moment.astimezone(timezone.utc) == datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(
            microseconds=microseconds
        )

    @pytest.mark.parametrize(
        "given_time",
        [
            0,
            -1,
            1 << 63,
            True,
            1.7e18,
            "2026-01-01T00:00:00Z",
            date(2026, 1, 1),
            datetime(2026, 1, 1),  # noqa: DTZ001 (that is what is tested)
            datetime(2026, 1, 1, tzinfo=Nowhere()),
            datetime(1969, 12, 31, tzinfo=timezone.utc),
            datetime(1970, 1, 1, tzinfo=timezone.utc),
            datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        ],
    )
    def test_what_is_no_time_since_1970_is_refused(self, given_time: Any) -> None:
        """
        OTLP has no word for a time before 1970 or after 2262, and a time without a zone is nobody's.
        """
        assert "time_unix_nano" == refusal(time_unix_nano=given_time).field

    def test_a_time_of_an_enumeration_becomes_plain(self) -> None:
        """
        An integer of a subclass is stored as a plain one.
        """
        assert int is type(make(time_unix_nano=Stars.FOUR).time_unix_nano)


class TestTarget:
    @pytest.mark.parametrize(
        "given_fields",
        [
            {"target": HANDLE},
            {"target": "a-token"},
            {"key": "msg-17"},
            {"key": 17},
            {"key": 0},
            {"key": uuid.UUID(int=1)},
            {"key": (1 << MAX_KEY_BITS) - 1},
            *({"key": "c-1", "key_kind": kind} for kind in KEY_KINDS),
        ],
    )
    def test_one_target_is_taken(self, given_fields: Any) -> None:
        """
        A handle, a token, or a key that is a text, an integer or a UUID, of a kind or of any.
        """
        feedback = Feedback(name="rating", **given_fields)
        check_one_target(feedback)  # raises nothing

        assert 1 == (feedback.target is not None) + (feedback.key is not None)

    @pytest.mark.parametrize(
        ("given_fields", "field", "message"),
        [
            ({}, "target", "exactly one of a target and key="),
            ({"target": HANDLE, "key": "msg-17"}, "target", "exactly one of a target and key="),
            ({"target": 0}, "target", "must be a FeedbackHandle"),
            ({"target": []}, "target", "must be a FeedbackHandle"),
            ({"target": b"token"}, "target", "must be a FeedbackHandle"),
            ({"target": HANDLE.context}, "target", "must be a FeedbackHandle"),
            ({"target": FeedbackHandle(INVALID_SPAN_CONTEXT)}, "target", "all-zero ids"),
            ({"target": replace(HANDLE, root=-5)}, "target", "64-bit root"),
            ({"target": replace(HANDLE, root=1 << 64)}, "target", "64-bit root"),
            ({"target": replace(HANDLE, root="abc")}, "target", "64-bit root"),
            ({"target": replace(HANDLE, started_at=1 << 70)}, "target", "Unix nanoseconds"),
            ({"target": replace(HANDLE, ended_at=1.7e9)}, "target", "Unix nanoseconds"),
            ({"target": replace(HANDLE, ended_at="x")}, "target", "Unix nanoseconds"),
            ({"target": replace(HANDLE, context=None)}, "target", "SpanContext"),
            ({"key": ""}, "key", "key is empty"),
            ({"key": " "}, "key", "key is empty"),
            ({"key": HALF}, "key", "surrogate pair"),
            ({"key": True}, "key", "must be a string, not bool"),
            ({"key": b"msg"}, "key", "must be a string, not bytes"),
            ({"key": 1.5}, "key", "must be a string, not float"),
            ({"key": ["msg"]}, "key", "must be a string, not list"),
            ({"key": HUGE}, "key", "must be a string, not int"),
            ({"key": "x" * (MAX_RECORD_BYTES + 1)}, "key", "longer than"),
            ({"key": "msg-17", "key_kind": "thread"}, "key_kind", "one of app, response, conversation"),
            ({"key": "msg-17", "key_kind": []}, "key_kind", "one of app"),
            ({"target": HANDLE, "key_kind": "app"}, "key_kind", "goes with key="),
        ],
    )
    def test_no_target_two_targets_and_false_ones_are_refused(
        self, given_fields: Any, field: str, message: str
    ) -> None:
        """
        A judgement is about exactly one call; the error says which argument is the matter.
        """
        with pytest.raises(InvalidFeedbackError, match=message) as caught:
            check_one_target(Feedback(name="rating", **given_fields))

        assert field == caught.value.field

    @pytest.mark.parametrize("handle", [None, "a-token", HANDLE.context, FeedbackHandle(INVALID_SPAN_CONTEXT)])
    def test_a_record_is_about_a_valid_handle(self, handle: Any) -> None:
        """
        Whatever came before, a record is never made for no span.
        """
        assert "target" == refusal(handle=handle).field

    @pytest.mark.parametrize("attributes", [{"braintrust.parent": 7}, {"user.id": HALF}, None])
    def test_a_hand_made_handle_with_attributes_that_are_no_texts_is_refused(self, attributes: Any) -> None:
        """
        What an exporter could not read, or a store not write, is refused before it is accepted.
        """
        assert "attributes" == refusal(handle=FeedbackHandle(HANDLE.context, attributes=attributes)).field


class TestIdentity:
    @given(TIMES, st.integers())
    def test_a_new_id_is_a_uuid_of_version_7(self, time_unix_nano: Any, seed: int) -> None:
        """
        RFC 9562: version 7, variant 10, and the Unix milliseconds in the first 48 bits.
        """
        made = uuid.UUID(new_id(time_unix_nano, random.Random(seed)))

        assert (7, uuid.RFC_4122) == (made.version, made.variant)
        assert time_unix_nano // 1_000_000 == made.int >> 80

    def test_new_ids_differ_within_one_millisecond(self) -> None:
        """
        The other 74 bits are chance.
        """
        rng = random.Random(1)

        assert 1_000 == len({new_id(NOW, rng) for _ in range(1_000)})

    def test_every_bit_of_chance_is_used(self) -> None:
        """
        Apart from the time, the version and the variant, each bit is sometimes 0 and sometimes 1.
        """
        rng = random.Random(1)
        made = [uuid.UUID(new_id(0, rng)).int for _ in range(200)]
        changing = 0
        for each in made:
            changing |= each ^ made[0]

        assert (1 << 80) - 1 & ~(0xF << 76) & ~(0b11 << 62) == changing

    @given(st.lists(TEXTS, max_size=4))
    def test_a_derived_id_is_a_uuid_of_version_8(self, names: Any) -> None:
        """
        RFC 9562: version 8, variant 10, and the same for the same names.
        """
        made = uuid.UUID(derived_id(*names))

        assert (8, uuid.RFC_4122) == (made.version, made.variant)
        assert derived_id(*names) == str(made)

    @given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4))
    @example(["ab", "c"], ["a", "bc"])
    @example(["a", ""], ["a"])
    @example(['a","b'], ["a", "b"])
    @example(["a\x00b"], ["a", "b"])
    def test_other_names_derive_another_id(self, one: Any, other: Any) -> None:
        """
        Names are told apart wherever one ends and the next begins.
        """
        assert (one == other) == (derived_id(*one) == derived_id(*other))

    def test_derived_ids_are_what_they_have_always_been(self) -> None:
        """
        Another release that derived other ids would no longer replace a person's earlier judgement.
        """
        assert "38b1230a-3380-85f8-9775-1fb42a0fff2b" == judgement_id(HANDLE, "rating", "human", "u-42")

    def test_an_id_is_the_same_in_another_process(self) -> None:
        """
        Hash randomisation has no part in it.
        """
        program = (
            "from otel_feedback._record import judgement_id; from otel_feedback import FeedbackHandle; "
            f"h = FeedbackHandle.from_traceparent({HANDLE.to_traceparent()!r}); "
            "print(judgement_id(h, 'rating', 'human', 'u-42'))"
        )
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

        assert judgement_id(HANDLE, "rating", "human", "u-42") == ran.stdout.strip()

    def test_a_person_s_judgement_is_known_by_call_name_source_and_person(self) -> None:
        """
        Whatever is said, and whenever: the same person's next judgement has the same id.
        """
        first = make(value=True, user_id="u-42")
        second = make(value=False, comment="Changed my mind", user_id="u-42", time_unix_nano=5)

        assert first.id == second.id == judgement_id(HANDLE, "rating", "human", "u-42")

    @pytest.mark.parametrize(
        "other",
        [
            {"user_id": "u-43"},
            {"name": "helpful"},
            {"source": "llm"},
            {"handle": FeedbackHandle(SpanContext(1, HANDLE.context.span_id, is_remote=True))},
            {"handle": FeedbackHandle(SpanContext(HANDLE.context.trace_id, 1, is_remote=True))},
        ],
    )
    def test_another_person_call_name_or_source_is_another_judgement(self, other: Any) -> None:
        """
        Two people never replace each other's.
        """
        assert make(user_id="u-42").id != make(**{"user_id": "u-42", **other}).id

    def test_a_call_is_known_by_its_ids_alone(self) -> None:
        """
        Whether a handle came from the call or from a traceparent, and what else it knows, changes no identity.
        """
        local = FeedbackHandle(
            SpanContext(HANDLE.context.trace_id, HANDLE.context.span_id, is_remote=False),
            root=5,
            started_at=7,
            attributes={"user.id": "u"},
        )

        assert make(user_id="u-42").id == make(handle=local, user_id="u-42").id

    def test_an_anonymous_judgement_is_one_of_its_own(self) -> None:
        """
        Without a user there is nobody whose earlier judgement it could replace.
        """
        rng = random.Random(7)
        feedback = Feedback(name="rating", value=True)
        made = [make_record(feedback, HANDLE, now_unix_nano=NOW, rng=rng).id for _ in range(2)]

        assert made[0] != made[1]
        assert [7, 7] == [uuid.UUID(each).version for each in made]

    @pytest.mark.parametrize(
        "own",
        [
            uuid.UUID("12345678-1234-5678-1234-567812345678"),
            "12345678-1234-5678-1234-567812345678",
            "12345678123456781234567812345678",
        ],
    )
    @pytest.mark.parametrize("user_id", [None, "u-42"])
    def test_an_id_of_one_s_own_wins(self, own: Any, user_id: Any) -> None:
        """
        Every form of a UUID is kept in its usual one.
        """
        assert "12345678-1234-5678-1234-567812345678" == make(id=own, user_id=user_id).id

    def test_an_id_in_capitals_is_the_same_id(self) -> None:
        """
        An id is compared as text by the stores, so it is kept in lower case.
        """
        own = uuid.UUID(int=(1 << 128) - 1)

        assert str(own) == make(id=str(own).upper()).id

    def test_the_value_goes_under_the_record_s_own_id_and_every_other_part_under_one_of_its_own(self) -> None:
        """
        One id finds the value at every vendor; a note or a tag beside it has another, the same on every try.
        """
        record = make(user_id="u-42")
        ids = {kind: Part(record=record, kind=kind, body={}).id for kind in ("value", "comment", "correction", "tags")}

        assert record.id == ids["value"]
        assert 4 == len(set(ids.values()))
        assert part_id(record.id, "comment") == ids["comment"]
        assert 8 == uuid.UUID(ids["comment"]).version

    @given(TEXTS, TEXTS)
    def test_a_stand_in_is_valid_sampled_and_the_same_for_the_same_key(self, kind: Any, key: Any) -> None:
        """
        It stands in for a call that is not known yet, so it must pass for one.
        """
        handle = stand_in_handle(kind, key)

        assert (True, True) == (handle.is_valid, handle.is_sampled)
        assert handle == stand_in_handle(kind, key)
        assert handle == replace(stand_in_handle(kind, key, ["a", "b"]), attributes={})
        assert {"otel_feedback.to": "a,b"} == stand_in_handle(kind, key, ["a", "b"]).attributes
        assert handle != stand_in_handle(kind, key + "x")


class TestSaid:
    def test_it_names_what_a_reader_would_miss(self) -> None:
        """
        All that carries something, in a fixed order, and nothing that follows from the record itself.
        """
        record = make(
            value=0.0, comment="x", correction={}, tags=["x"], user_id="u", metadata={"a": None}, native={"weave": {}}
        )

        assert ("value", "comment", "correction", "tags", "user_id", "metadata") == record.said

    def test_what_was_not_given_is_not_said(self) -> None:
        """
        A bare thumb says its value.
        """
        assert ("value",) == make(value=False).said


REDACTED = Feedback(name="rating", value=True)


class TestSayingNothing:
    @pytest.mark.parametrize(
        ("said", "says_nothing"),
        [
            ({}, True),
            ({"user_id": "u-42", "metadata": {"a": 1}, "native": {"weave": {"creator": "x"}}}, True),
            ({"value": False}, False),
            ({"value": 0.0}, False),
            ({"comment": "x"}, False),
            ({"correction": ""}, False),
            ({"correction": False}, False),
            ({"tags": ("t",)}, False),
        ],
    )
    def test_who_is_meant_and_why_is_not_what_is_said(self, said: dict[str, Any], says_nothing: bool) -> None:
        """
        A judgement says something with a value, a comment, a correction or a tag; a thumb down is a value.
        """
        assert says_nothing == FeedbackRecord(id="1", handle=HANDLE, name="rating", **said).says_nothing


class TestRedacted:
    @UNHURRIED
    @given(
        st.fixed_dictionaries(
            {"name": LINES.filter(lambda name: not name.lower().startswith("wandb."))},
            optional={
                "value": st.booleans() | st.floats(0, 1) | LINES | st.lists(LINES, min_size=1, max_size=3),
                "comment": WORDS,
                "correction": JSON.filter(lambda value: value is not None and value != ""),
                "tags": st.lists(LINES, min_size=1, max_size=3),
                "user_id": LINES,
                "source": st.sampled_from(SOURCES),
                "metadata": OBJECTS,
                "native": st.dictionaries(LINES, OBJECTS, max_size=2),
                "time_unix_nano": TIMES,
                "id": st.uuids(),
            },
        )
    )
    def test_a_hook_that_changes_nothing_changes_nothing(self, given_fields: Any) -> None:
        """
        What an accepted record says is what the hook is given, to the type and the digit.
        """
        try:
            record = make(**given_fields)
        except InvalidFeedbackError:
            return

        assert record_to_json(record) == record_to_json(redacted(record, lambda feedback: feedback))

    def test_stars_keep_their_scale(self) -> None:
        """
        A number is given with what it is a part of.
        """
        record = make(value=4, scale=(1, 5))

        assert record == redacted(record, lambda feedback: feedback)

    def test_the_hook_sees_what_was_said_and_about_what(self) -> None:
        """
        It is given the judgement as it was accepted, with its call as the target; nothing of it is settled yet.
        """
        seen: list[Feedback] = []

        def redact(feedback: Feedback) -> Feedback:
            seen.append(feedback)
            return feedback

        record = make(value=True, comment="Spot on", user_id="u-42", source="llm", tags=["t"], metadata={"a": 1})
        redacted(record, redact)

        assert [
            Feedback(
                name="rating",
                target=HANDLE,
                value=True,
                comment="Spot on",
                tags=("t",),
                user_id="u-42",
                source="llm",
                metadata={"a": 1},
                time_unix_nano=NOW,
                id=record.id,
            )
        ] == seen

    @pytest.mark.parametrize(
        ("change", "redacted_fields"),
        [
            ({"comment": None}, {"comment": None}),
            ({"comment": "…"}, {"comment": "…"}),
            ({"value": None}, {"value": None}),
            ({"value": 3, "scale": (1, 5)}, {"value": 3, "scale": (1, 5)}),
            ({"correction": None}, {"correction": None}),
            ({"tags": ()}, {"tags": ()}),
            ({"tags": ["a"]}, {"tags": ("a",)}),
            ({"metadata": {}}, {"metadata": {}}),
            ({"native": {}}, {"native": {}}),
            ({"user_id": None}, {"user_id": None}),
            ({"user_id": "somebody"}, {"user_id": "somebody"}),
            ({"source": "code"}, {"source": "code"}),
            ({"time_unix_nano": 5}, {"time_unix_nano": 5}),
            ({"time_unix_nano": None}, {"time_unix_nano": NOW}),
        ],
    )
    def test_what_the_hook_changes_is_changed_and_nothing_else(
        self, change: dict[str, Any], redacted_fields: dict[str, Any]
    ) -> None:
        """
        A pseudonym, a comment without names, nothing at all: the record is the same but for that.
        """
        record = make(
            value=True,
            comment="c",
            correction="d",
            tags=["t"],
            user_id="u-42",
            metadata={"a": 1},
            native={"weave": {"creator": "x"}},
        )

        assert replace(record, **redacted_fields) == redacted(record, lambda feedback: replace(feedback, **change))

    @pytest.mark.parametrize("value", [None, "…", True])
    def test_a_number_may_be_taken_out_without_its_scale(self, value: Any) -> None:
        """
        The hook need not know that there was one: what it did not give is not held against it.
        """
        record = make(value=4, scale=(1, 5), comment="c")

        assert replace(record, value=value, scale=None) == redacted(record, lambda given: replace(given, value=value))

    def test_a_scale_that_a_hook_gives_belongs_to_a_number(self) -> None:
        """
        One that was not there before is its own doing.
        """
        with pytest.raises(InvalidFeedbackError, match="a scale belongs to a number"):
            redacted(make(value=4, scale=(1, 5)), lambda given: replace(given, value="x", scale=(0, 9)))

    @pytest.mark.parametrize(
        "change", [{"name": "other"}, {"id": str(uuid.UUID(int=5))}, {"target": None}, {"to": ["x"]}, {"key": "k"}]
    )
    def test_a_hook_cannot_move_a_judgement(self, change: dict[str, Any]) -> None:
        """
        Its id, its call, its name and where it goes are settled: a change of mind still replaces it.
        """
        record = make(value=True, user_id="u-42")

        assert record == redacted(record, lambda feedback: replace(feedback, **change))

    def test_the_id_stays_when_the_person_is_taken_out(self) -> None:
        """
        Two people without a name are still two, and each may change their mind.
        """
        one, other = make(value=True, user_id="u-1"), make(value=True, user_id="u-2")
        taken_out = [redacted(each, lambda feedback: replace(feedback, user_id=None)) for each in (one, other)]

        assert [one.id, other.id] == [each.id for each in taken_out]
        assert [None, None] == [each.user_id for each in taken_out]

    def test_what_is_left_may_say_nothing(self) -> None:
        """
        A judgement that was all comment is one that says nothing, which its destination then skips.
        """
        record = redacted(make(comment="c", user_id="u-42"), lambda feedback: replace(feedback, comment=None))

        assert (True, "u-42") == (record.says_nothing, record.user_id)

    @pytest.mark.parametrize(
        ("answer", "field"),
        [
            (None, "redact"),
            ({"name": "rating"}, "redact"),
            ("…", "redact"),
            (Feedback, "redact"),
            (replace(REDACTED, value=5), "value"),
            (replace(REDACTED, comment=""), "comment"),
            (replace(REDACTED, comment=HALF), "comment"),
            (replace(REDACTED, user_id=""), "user_id"),
            (replace(REDACTED, user_id=cast("Any", 5)), "user_id"),
            (replace(REDACTED, tags="a,b"), "tags"),
            (replace(REDACTED, metadata=cast("Any", [1])), "metadata"),
            (replace(REDACTED, native=cast("Any", {"weave": 1})), "native['weave']"),
            (replace(REDACTED, source=cast("Any", "robot")), "source"),
        ],
    )
    def test_a_hook_that_answers_nonsense_refuses_the_judgement(self, answer: Any, field: str) -> None:
        """
        What is no judgement is named before anything is kept.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            redacted(make(value=True), lambda _: answer)

        assert field == caught.value.field

    def test_a_hook_that_raises_is_heard(self) -> None:
        """
        Its error is the application's own and passes: a judgement that could not be redacted is not kept.
        """

        def redact(feedback: Feedback) -> Feedback:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            redacted(make(value=True), redact)


class TestText:
    @UNHURRIED
    @given(records(st.none()))
    def test_a_record_is_read_as_it_was_written(self, record: Any) -> None:
        """
        Nothing is lost or changed on the way through a store; the revision is a column of the store's.
        """
        assert record == record_from_json(record_to_json(record), revision=record.revision)

    @UNHURRIED
    @given(records(records(st.none())))
    def test_what_stands_instead_of_a_retraction_is_not_stored(self, record: Any) -> None:
        """
        It is what holds when the retraction is leased, and may be another one by then; nothing of it is written.
        """
        written = record_to_json(record)

        assert record_to_json(replace(record, stands=None)) == written
        assert replace(record, stands=None) == record_from_json(written, revision=record.revision)

    def test_what_an_earlier_release_stored_as_standing_is_left_out(self) -> None:
        """
        A text that still has it is read all the same.
        """
        record = make(value=True)
        written = json.loads(record_to_json(record))
        written["stands"] = {**written, "revision": 3}

        assert record == record_from_json(json.dumps(written), revision=0)

    @UNHURRIED
    @given(records(st.none()))
    def test_a_record_is_read_with_the_same_types(self, record: Any) -> Any:
        """
        A float stays a float, a thumb a bool, labels a tuple: `True == 1 == 1.0` hides no change.
        """
        read = record_from_json(record_to_json(record), revision=record.revision)

        def typed(each: Any) -> Any:
            return (
                type(each.value),
                type(each.scale),
                json.dumps([each.value, each.scale, each.correction, each.metadata]),
            )

        assert typed(record) == typed(read)

    @given(HANDLES)
    def test_a_handle_is_read_as_it_was_written(self, handle: Any) -> None:
        """
        Ids, flags, root, times and attributes; a handle from a store is a remote one.
        """
        assert handle == handle_from_json(handle_to_json(handle))

    def test_what_was_not_said_takes_no_room(self) -> None:
        """
        A bare thumb is a short text.
        """
        written = json.loads(record_to_json(make(value=True, user_id="u-42")))

        assert {
            "handle",
            "id",
            "name",
            "recorded_at_unix_nano",
            "retracts",
            "source",
            "time_unix_nano",
            "user_id",
            "value",
        } == set(written)
        assert {"context"} == set(written["handle"])

    @UNHURRIED
    @given(
        st.fixed_dictionaries(
            {"name": LINES.filter(lambda name: not name.lower().startswith("wandb."))},
            optional={
                "value": VALUES,
                "scale": SCALES,
                "comment": WORDS,
                "correction": JSON,
                "tags": st.lists(LINES, max_size=3),
                "user_id": LINES,
                "metadata": OBJECTS,
                "native": st.dictionaries(LINES, OBJECTS, max_size=2),
            },
        )
    )
    def test_what_is_accepted_can_be_stored(self, given_fields: Any) -> None:
        """
        Any arguments are refused with the one error, or make a record that is read as it was written.
        """
        try:
            record = make(**given_fields)
        except InvalidFeedbackError:
            return

        assert record == record_from_json(record_to_json(record))


class TestWhatIsShown:
    @pytest.mark.parametrize("field", ["comment", "correction", "metadata", "native"])
    def test_a_repr_leaves_out_what_a_person_wrote(self, field: str) -> None:
        """
        A judgement in a traceback or a log has its ids and names, and nobody's words.
        """
        said = {field: {"orq": {"value": "secret"}} if field in ("metadata", "native") else "secret"}
        feedback = Feedback(target=HANDLE, name="rating", value=True, **said)
        record = make_record(feedback, HANDLE, now_unix_nano=1, rng=random.Random(1))
        part = Part(record=record, kind="value", body=said)

        assert (False, True) == ("secret" in f"{feedback!r} {record!r} {part!r}", "rating" in repr(record))

    def test_a_record_of_a_newer_release_can_be_read(self) -> None:
        """
        A field that is not known yet is left out, and the rest is what it was.
        """
        record = make_record(
            Feedback(target=HANDLE, name="rating", value=True), HANDLE, now_unix_nano=1, rng=random.Random(1)
        )
        newer = record_to_json(record).replace("{", '{"mood":"new",', 1)

        assert record == record_from_json(newer)
