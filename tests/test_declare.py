"""Declarations: what each takes, what contradicts itself, and how a judgement is checked and completed by them."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from otel_feedback import (
    ConfigurationError,
    Declaration,
    Feedback,
    Flag,
    InvalidFeedbackError,
    Labels,
    Rating,
    Text,
    Thumb,
)
from otel_feedback._declare import Schema
from otel_feedback._record import MAX_JSON_INT

SCHEMA = Schema(
    {
        "helpfulness": Rating(1, 5),
        "effort": Rating(0, 10, lower_is_better=True),
        "tone": Labels("warm", "cold"),
        "topics": Labels("food", "music", multiple=True),
        "thumb": Thumb(native={"orq": {"property": "quality", "product": "otel"}}),
        "toxic": Flag(lower_is_better=True),
        "cited": Flag(),
        "mood": Text(),
    }
)
ALL = tuple(SCHEMA.declared.values())
NUMBERS = st.integers(-MAX_JSON_INT, MAX_JSON_INT) | st.floats(allow_nan=False, allow_infinity=False)


class Tone(str, Enum):
    WARM = "warm"


def refusal(name: str, **given_fields: Any) -> InvalidFeedbackError:
    """Answer the error that a judgement is refused with."""
    with pytest.raises(InvalidFeedbackError) as caught:
        SCHEMA.check(Feedback(name=name, **given_fields))
    return caught.value


class TestRating:
    @given(NUMBERS, NUMBERS, st.data())
    @example(1, 5, None)
    @example(0.0, 5e-324, None)
    @example(MAX_JSON_INT - 1, MAX_JSON_INT, None)
    def test_it_takes_both_ends_and_everything_between_and_nothing_outside(
        self, low: float, high: float, data: st.DataObject | None
    ) -> None:
        """
        Whatever the range, its ends are in it, and the next number on either side is not.
        """
        assume(low < high and math.isfinite(high - low))
        rating = Rating(low, high)
        between = [] if data is None else [data.draw(st.floats(float(low), float(high)))]
        outside = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf), -math.inf, math.inf, math.nan]

        assert [rating.low, rating.high] == list(rating.samples) == list(rating.scale)
        assert all(map(rating.fits, [low, high, *(value for value in between if low <= value <= high)]))
        assert [] == [value for value in outside if not low <= value <= high and rating.fits(value)]
        assert [] == [value for value in (math.floor(low) - 1, math.ceil(high) + 1) if rating.fits(value)]

    @pytest.mark.parametrize("value", [True, False, "3", (3,), [3], None, 3j])
    def test_only_a_number_is_a_rating(self, value: Any) -> None:
        """
        A thumb is none, nor is a number that is written as a text.
        """
        assert not Rating(0, 5).fits(value)

    @pytest.mark.parametrize(
        ("low", "high"),
        [
            (5, 1),
            (1, 1),
            (math.nan, 5),
            (1, math.nan),
            (-math.inf, 5),
            (1, math.inf),
            (-1.7e308, 1.7e308),
            (False, True),
            ("1", "5"),
            (None, 5),
            (0, MAX_JSON_INT + 1),
        ],
    )
    def test_a_range_that_is_none_is_refused(self, low: Any, high: Any) -> None:
        """
        Two finite numbers, the lower one first; anything else is an error where it is declared.
        """
        with pytest.raises(ConfigurationError, match=r"Rating\(low, high\)") as caught:
            Rating(low, high)

        assert "feedback" == caught.value.setting

    def test_the_ends_keep_their_type(self) -> None:
        """
        Whole stars stay whole, so that a range is written as it was given.
        """
        assert "a number from 1 to 5.5, both included" == Rating(1, 5.5).takes
        assert "a number from 0 to 1000000, both included" == Rating(0, 1_000_000).takes


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "value", "fits"),
        [
            (Labels("warm", "cold"), "warm", True),
            (Labels("warm", "cold"), "cold", True),
            (Labels("warm", "cold"), Tone.WARM, True),
            (Labels("warm", "cold"), "lukewarm", False),
            (Labels("warm", "cold"), "WARM", False),
            (Labels("warm", "cold"), "", False),
            (Labels("warm", "cold"), ["warm"], False),
            (Labels("warm", "cold"), True, False),
            (Labels("warm", "cold"), 1, False),
            (Labels("warm", "cold", multiple=True), "warm", True),
            (Labels("warm", "cold", multiple=True), ["warm"], True),
            (Labels("warm", "cold", multiple=True), ("cold", "warm"), True),
            (Labels("warm", "cold", multiple=True), ["warm", "lukewarm"], False),
            (Labels("warm", "cold", multiple=True), ["warm", ["cold"]], False),
            (Labels("warm", "cold", multiple=True), ["warm", 1], False),
            (Labels("warm", "cold", multiple=True), [], False),
            (Labels("warm", "cold", multiple=True), b"warm", False),
            (Labels("warm", "cold", multiple=True), {"warm": 1}, False),
            (Labels("warm", "cold", multiple=True), "lukewarm", False),
        ],
    )
    def test_it_takes_its_labels_and_no_other(self, labels: Labels, value: Any, fits: bool) -> None:
        """
        One of them as it is written, and where several may be given, a list of them.
        """
        assert fits == labels.fits(value)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ((), "one label or more, each once"),
            (("warm", "cold", "warm"), "one label or more, each once"),
            ((["warm", "cold"],), "one by one: a label must be a string, not list"),
            (("warm", ""), "a label is empty"),
            (("warm\n",), "a label has a control character"),
            ((1, 2), "a label must be a string, not int"),
        ],
    )
    def test_labels_that_are_none_are_refused(self, labels: Any, message: str) -> None:
        """
        Nothing, one twice, a list instead of its words, or what could be nobody's label.
        """
        with pytest.raises(ConfigurationError, match=message) as caught:
            Labels(*labels)

        assert "feedback" == caught.value.setting

    def test_what_it_takes_is_said_in_words(self) -> None:
        """
        A message can name what there is to choose from.
        """
        assert "one of 'warm', 'cold'" == Labels("warm", "cold").takes
        assert "one or more of 'warm', 'cold'" == Labels("warm", "cold", multiple=True).takes

    @pytest.mark.parametrize(
        "labels",
        [Labels("warm"), Labels("warm", "cold", multiple=True), Labels("warm", native={"orq": {"property": "tone"}})],
    )
    def test_it_is_shown_as_it_is_made(self, labels: Labels) -> None:
        """
        Its `repr` is the call that makes it.
        """
        assert labels == eval(repr(labels), {"Labels": Labels})  # noqa: S307 (the subject)


class TestOthers:
    @pytest.mark.parametrize("declared", [Thumb(), Flag()])
    def test_a_thumb_and_a_flag_take_booleans(self, declared: Declaration) -> None:
        """
        True and False, and neither numbers nor words that might mean them.
        """
        assert [True, False] == [
            value for value in (True, False, 1, 0, 1.0, "true", "👍", [True]) if declared.fits(value)
        ]
        assert (True, False) == declared.samples

    def test_a_text_is_any_label(self) -> None:
        """
        In anybody's own words, one at a time.
        """
        assert ["calm"] == [value for value in ("calm", ["calm"], True, 1, b"calm") if Text().fits(value)]

    @pytest.mark.parametrize("declared", ALL)
    def test_every_sample_fits(self, declared: Declaration) -> None:
        """
        What a declaration shows as a sample it takes, and there is one at least.
        """
        assert declared.samples
        assert all(map(declared.fits, declared.samples))

    def test_each_says_what_it_takes(self) -> None:
        """
        In words that no other declaration uses, but for a flag's, which are the same in either direction.
        """
        takes = [each.takes for each in ALL if not isinstance(each, Flag)]

        assert len(set(takes)) == len(takes)
        assert ["a thumb: True is up, False is down", "True or False"] == [Thumb().takes, Flag().takes]
        assert "a string of one line; longer text is a comment" == Text().takes

    @pytest.mark.parametrize("ask", [lambda each: each.takes, lambda each: each.samples, lambda each: each.fits(True)])
    def test_what_is_no_kind_of_declaration_takes_nothing(self, ask: Callable[[Declaration], object]) -> None:
        """
        The base says nothing of its own.
        """
        with pytest.raises(NotImplementedError):
            ask(Declaration())

    @pytest.mark.parametrize("declared", ALL)
    def test_a_declaration_is_a_value(self, declared: Declaration) -> None:
        """
        It can be compared, copied and sent to another process, and not be changed.
        """
        assert declared == copy.deepcopy(declared) == pickle.loads(pickle.dumps(declared))  # noqa: S301 (our own)
        with pytest.raises(AttributeError):
            declared.native = {}  # type: ignore[misc]  # the subject

    @pytest.mark.parametrize("make", [lambda **given: Rating(1, 5, **given), Flag])
    def test_a_direction_is_true_or_false(self, make: Callable[..., Declaration]) -> None:
        """
        "low" would be taken for true.
        """
        with pytest.raises(ConfigurationError, match="lower_is_better must be True or False"):
            make(lower_is_better="low")

    def test_multiple_is_true_or_false(self) -> None:
        """
        A number of labels would be taken for true.
        """
        with pytest.raises(ConfigurationError, match="multiple must be True or False"):
            Labels("warm", "cold", multiple=2)  # type: ignore[arg-type]  # the subject

    @pytest.mark.parametrize(
        "make",
        [
            lambda **given: Rating(1, 5, **given),
            lambda **given: Labels("warm", **given),
            Thumb,
            Flag,
            Text,
        ],
    )
    def test_vendors_own_fields_are_json_by_exporter(self, make: Callable[..., Declaration]) -> None:
        """
        They are copied, so that nothing changes them later, and what JSON has no word for is refused.
        """
        native = {"orq": {"property": "quality"}}
        declared = make(native=native)
        native["orq"]["property"] = "another"

        assert {"orq": {"property": "quality"}} == declared.native
        for wrong in (5, {"orq": 5}, {5: {}}, {"orq": {"value": object()}}):
            with pytest.raises(ConfigurationError, match="feedback: native") as caught:
                make(native=wrong)
            assert "feedback" == caught.value.setting


class TestSchema:
    @pytest.mark.parametrize(
        ("declared", "message"),
        [
            ([("thumb", Thumb())], "feedback maps names to what they take"),
            ("thumb", "feedback maps names to what they take"),
            ({"thumb": Thumb}, r"feedback\['thumb'\] must be a Rating, Labels, Thumb, Flag or Text, as in Thumb\(\)"),
            ({"thumb": bool}, r"feedback\['thumb'\] must be"),
            ({"stars": (1, 5)}, r"feedback\['stars'\] must be"),
            ({"": Thumb()}, "feedback: name is empty"),
            ({5: Thumb()}, "feedback: name must be a string, not int"),
            ({"wandb.reaction.1": Thumb()}, "feedback: names that begin with 'wandb.' belong to W&B"),
        ],
    )
    def test_what_declares_nothing_is_refused(self, declared: Any, message: str) -> None:
        """
        A type instead of an object, a name that no judgement could have: said where it is declared.
        """
        with pytest.raises(ConfigurationError, match=message) as caught:
            Schema(declared)

        assert "feedback" == caught.value.setting

    def test_it_does_not_change_with_what_it_was_made_of(self) -> None:
        """
        A dictionary that is changed later declares nothing more.
        """
        given_names: dict[str, Declaration] = {"thumb": Thumb()}
        schema = Schema(given_names)
        given_names["other"] = Thumb()

        assert (["thumb"], None) == (list(schema.declared), schema.of("other"))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("helpfulness", 1),
            ("helpfulness", 5),
            ("helpfulness", 3.5),
            ("tone", "warm"),
            ("topics", ["food", "music"]),
            ("thumb", False),
            ("toxic", True),
            ("mood", "calm"),
            *((name, None) for name in SCHEMA.declared),
            ("undeclared", 17),
        ],
    )
    def test_what_fits_passes(self, name: str, value: Any) -> None:
        """
        So does a comment alone under any declared name, and whatever was not declared.
        """
        SCHEMA.check(Feedback(name=name, value=value, comment="c"))

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("helpfulness", 6, "'helpfulness' takes a number from 1 to 5, both included, as declared: give that"),
            ("helpfulness", 0.99, "a number from 1 to 5"),
            ("helpfulness", True, "a number from 1 to 5"),
            ("helpfulness", "5", "a number from 1 to 5"),
            ("helpfulness", math.nan, "a number from 1 to 5"),
            ("tone", "lukewarm", "'tone' takes one of 'warm', 'cold', as declared"),
            ("tone", ["warm"], "'tone' takes one of 'warm', 'cold'"),
            ("topics", ["food", "sport"], "one or more of 'food', 'music'"),
            ("thumb", 1, "'thumb' takes a thumb: True is up, False is down"),
            ("toxic", "yes", "'toxic' takes True or False"),
            ("mood", 5, "a string of one line; longer text is a comment"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_told_what_would(self, name: str, value: Any, message: str) -> None:
        """
        The message says what to give, and never what was given.
        """
        error = refusal(name, value=value)

        assert message in str(error)
        assert "value" == error.field
        assert value is error.value
        assert "lukewarm" not in str(error)
        assert "sport" not in str(error)

    @pytest.mark.parametrize("scale", [(1, 5), (1.0, 5.0), [1, 5]])
    def test_the_declared_scale_may_be_given(self, scale: Any) -> None:
        """
        However its ends are written; what is kept is the scale as it was declared.
        """
        feedback = Feedback(name="helpfulness", value=4, scale=scale)
        SCHEMA.check(feedback)

        assert "(1, 5)" == repr(SCHEMA.completed(feedback).scale)

    @pytest.mark.parametrize("scale", [(0, 5), (1, 4), (5, 1), [1], "15", 5, (1, 5, 9)])
    def test_another_scale_is_refused(self, scale: Any) -> None:
        """
        Two ranges for one name would make its numbers mean two things.
        """
        error = refusal("helpfulness", value=4, scale=scale)

        assert ("scale", scale) == (error.field, error.value)
        assert "'helpfulness' is declared from 1 to 5: leave out its scale" == str(error)

    def test_a_scale_of_what_is_no_rating_is_left_to_the_record(self) -> None:
        """
        It is refused with the rest, as it is of an undeclared name.
        """
        feedback = Feedback(name="tone", value="warm", scale=(1, 5))
        SCHEMA.check(feedback)

        assert feedback.scale == SCHEMA.completed(feedback).scale

    @pytest.mark.parametrize(
        ("name", "value", "scale", "completed"),
        [
            ("helpfulness", 4, None, (1, 5)),
            ("helpfulness", 4, (1, 5), (1, 5)),
            ("helpfulness", 4, (0, 9), (0, 9)),  # what a redaction answers is its own
            ("helpfulness", None, None, None),
            ("helpfulness", "…", None, None),
            ("helpfulness", True, None, None),
            ("effort", 0.5, None, (0, 10)),
            ("thumb", True, None, None),
            ("tone", "warm", None, None),
            ("undeclared", 4, None, None),
        ],
    )
    def test_a_number_gets_its_declared_scale(self, name: str, value: Any, scale: Any, completed: Any) -> None:
        """
        And nothing else does: a thumb has none, and neither has what was taken out.
        """
        assert completed == SCHEMA.completed(Feedback(name=name, value=value, scale=scale)).scale

    @pytest.mark.parametrize(
        ("name", "native", "completed"),
        [
            ("thumb", {}, {"orq": {"property": "quality", "product": "otel"}}),
            ("thumb", None, {"orq": {"property": "quality", "product": "otel"}}),
            ("thumb", {"orq": {"property": "other"}}, {"orq": {"property": "other", "product": "otel"}}),
            ("thumb", {"orq": {}}, {"orq": {"property": "quality", "product": "otel"}}),
            (
                "thumb",
                {"weave": {"creator": "x"}},
                {"orq": {"property": "quality", "product": "otel"}, "weave": {"creator": "x"}},
            ),
            ("thumb", 5, 5),
            ("thumb", {"orq": 5}, {"orq": 5}),
            ("tone", {"weave": {"creator": "x"}}, {"weave": {"creator": "x"}}),
            ("undeclared", {"weave": {"creator": "x"}}, {"weave": {"creator": "x"}}),
        ],
    )
    def test_vendors_own_fields_are_merged_under_those_of_the_call(
        self, name: str, native: Any, completed: Any
    ) -> None:
        """
        Field by field, and the call wins; what is no mapping is left for the record to refuse.
        """
        assert completed == SCHEMA.completed(Feedback(name=name, value=None, comment="c", native=native)).native

    @pytest.mark.parametrize(
        ("name", "is_thumb", "lower_is_better"),
        [
            ("thumb", True, False),
            ("toxic", False, True),
            ("cited", False, False),
            ("helpfulness", False, False),
            ("effort", False, True),
            ("tone", False, False),
            ("mood", False, False),
            ("undeclared", None, False),
            (None, None, False),
            (["thumb"], None, False),
        ],
    )
    def test_what_a_name_means_is_known(self, name: Any, is_thumb: bool | None, lower_is_better: bool) -> None:
        """
        A thumb, anything else that is declared, or nothing that is known; and in which direction it goes.
        """
        assert (is_thumb, lower_is_better) == (SCHEMA.is_thumb(name), SCHEMA.lower_is_better(name))

    def test_without_declarations_everything_passes_as_it_is(self) -> None:
        """
        An application that declares nothing notices nothing.
        """
        feedback = Feedback(name="thumb", value=5, scale=(1, 5), native={"orq": {}})
        Schema().check(feedback)

        assert feedback is Schema().completed(feedback)
