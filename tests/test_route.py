"""Routing: destinations by name, what each would get, what is skipped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback import (
    ConfigurationError,
    Feedback,
    FeedbackHandle,
    FeedbackRecord,
    InvalidFeedbackError,
    Labels,
    OrqExporter,
    Part,
    Rating,
    Thumb,
)
from otel_feedback._declare import Schema
from otel_feedback._record import make_record
from otel_feedback._route import Redact, Router
from otel_feedback.stores import PARKED, UNROUTED, Entry
from otel_feedback.testing import InMemoryFeedbackExporter


def a_record(*, is_sampled: bool = True, **fields: Any) -> FeedbackRecord:
    handle = FeedbackHandle(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(int(is_sampled))))
    feedback = Feedback(**{"name": "rating", "value": True, "target": handle, **fields})
    return make_record(feedback, handle, now_unix_nano=1, rng=Random(1))


def a_router(*exporters: InMemoryFeedbackExporter, exports_unsampled: bool = False, **redact: Redact) -> Router:
    return Router(exporters, exports_unsampled=exports_unsampled, redact=redact)


def filtering(**filters: Any) -> Router:
    """Make a router to `a` and `b`, with filters."""
    return Router(
        [InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")], exports_unsampled=False, filters=filters
    )


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

    @pytest.mark.parametrize("name", ["a", UNROUTED, PARKED])
    def test_each_name_is_taken_once(self, name: str) -> None:
        """
        Deliveries are kept by name, so two exporters never share one, nor that of what waits for any or for its key.
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


def without_comment(feedback: Feedback) -> Feedback:
    return replace(feedback, comment=None)


def without_person(feedback: Feedback) -> Feedback:
    return replace(feedback, user_id=None, metadata={})


class TestRedaction:
    """What each destination gets, and what is kept of a judgement, where destinations may see different things."""

    FULL = a_record(comment="c", user_id="u-42", id="00000000-0000-8000-8000-000000000001")
    NO_COMMENT = replace(FULL, comment=None)
    NO_PERSON = replace(FULL, user_id=None)
    NEITHER = replace(FULL, comment=None, user_id=None)
    ONLY_COMMENT = a_record(value=None, comment="c", id="00000000-0000-8000-8000-000000000002")
    NOTHING = replace(ONLY_COMMENT, comment=None)

    @pytest.mark.parametrize(
        ("redact", "record", "entry"),
        [
            # nothing to take out
            ({}, FULL, Entry(FULL, ("a", "b"))),
            ({"a": lambda feedback: feedback}, FULL, Entry(FULL, ("a", "b"))),
            ({"a": without_person}, ONLY_COMMENT, Entry(ONLY_COMMENT, ("a", "b"))),
            # one of them sees less
            ({"a": without_comment}, FULL, Entry(FULL, ("a", "b"), {}, {"a": NO_COMMENT})),
            ({"b": without_comment}, FULL, Entry(FULL, ("a", "b"), {}, {"b": NO_COMMENT})),
            # nobody sees all of it: it is not kept
            ({"a": without_comment, "b": without_comment}, FULL, Entry(NO_COMMENT, ("a", "b"))),
            (
                {"a": without_comment, "b": without_person},
                FULL,
                Entry(NO_COMMENT, ("a", "b"), {}, {"b": NO_PERSON}),
            ),
            # nothing is left for one of them, or for any
            ({"a": without_comment}, ONLY_COMMENT, Entry(ONLY_COMMENT, ("a", "b"), {"a": "redacted"})),
            (
                {"a": without_comment, "b": without_comment},
                ONLY_COMMENT,
                Entry(NOTHING, ("a", "b"), {"a": "redacted", "b": "redacted"}),
            ),
        ],
    )
    def test_only_what_some_destination_gets_is_kept(
        self, redact: Mapping[str, Redact], record: FeedbackRecord, entry: Entry
    ) -> None:
        """
        Who may see less gets a variant; where nobody may see all of it the record itself has less.
        """
        router = a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), **redact)

        assert entry == router.entry(record, ("a", "b"))

    def test_what_is_skipped_keeps_nothing_of_its_own(self) -> None:
        """
        A destination that does not get a judgement at all is no reason to keep what only it might have seen.
        """
        log = InMemoryFeedbackExporter("log", exports_unsampled=True)
        router = a_router(InMemoryFeedbackExporter("trace"), log, log=without_comment)
        record = a_record(is_sampled=False, comment="c", id="00000000-0000-8000-8000-000000000001")

        assert Entry(replace(record, comment=None), ("trace", "log"), {"trace": "unsampled"}) == router.entry(
            record, ("trace", "log")
        )

    def test_what_goes_nowhere_is_kept_as_the_strictest_would_see_it(self) -> None:
        """
        Where all skip it for another reason, what any of them may not see is not kept.
        """
        router = a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), a=without_comment)
        record = a_record(is_sampled=False, comment="c", id="00000000-0000-8000-8000-000000000001")
        skipped = {"a": "unsampled", "b": "unsampled"}

        assert Entry(replace(record, comment=None), ("a", "b"), skipped) == router.entry(record, ("a", "b"))

    def test_a_destination_elsewhere_gets_all_of_it(self) -> None:
        """
        A process that delivers to nobody of this name knows of no redaction for it.
        """
        router = a_router(InMemoryFeedbackExporter("a"), a=without_comment)

        assert Entry(self.FULL, ("a", "elsewhere"), {}, {"a": self.NO_COMMENT}) == router.entry(
            self.FULL, ("a", "elsewhere")
        )

    def test_where_it_is_not_known_where_it_goes_everything_is_taken_out(self) -> None:
        """
        What waits for an exporter, or for its key, has nothing in it that some destination may not see.
        """
        router = a_router(
            InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), a=without_comment, b=without_person
        )

        assert self.NEITHER == router.most_redacted(self.FULL)
        assert Entry(self.NEITHER, (UNROUTED,)) == router.entry(self.FULL, ())

    def test_a_retraction_has_nothing_to_take_out(self) -> None:
        """
        No hook sees it, and it is never skipped for saying nothing.
        """

        def redact(feedback: Feedback) -> Feedback:
            raise AssertionError

        record = FeedbackRecord(id="1", handle=a_record().handle, name="rating", retracts=True)
        router = a_router(InMemoryFeedbackExporter("a"), a=redact)

        assert (Entry(record, ("a",)), record) == (router.entry(record, ("a",)), router.most_redacted(record))
        assert [None] == [plan.skipped for plan in router.plan(record, ("a",)).values()]

    def test_the_id_is_the_same_everywhere(self) -> None:
        """
        Whoever is taken out of one variant is the same judgement there, to be replaced and taken back.
        """
        router = a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), a=without_person)
        entry = router.entry(self.FULL, ("a", "b"))

        assert [(None, self.FULL.id)] == [(each.user_id, each.id) for each in entry.variants.values()]

    @pytest.mark.parametrize(("answer", "error"), [(None, InvalidFeedbackError), (RuntimeError("no"), RuntimeError)])
    def test_a_hook_that_fails_refuses_the_judgement_everywhere(self, answer: Any, error: type[Exception]) -> None:
        """
        A judgement that cannot be redacted for one destination is not accepted: nothing passes a hook unseen.
        """

        def redact(feedback: Feedback) -> Feedback:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]  # it is wrong

        router = a_router(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), a=redact)
        for ask in (
            lambda: router.entry(self.FULL, ("a", "b")),
            lambda: router.plan(self.FULL, ("a", "b")),
            lambda: router.most_redacted(self.FULL),
        ):
            with pytest.raises(error):
                ask()
        assert Entry(self.FULL, ("b",)) == router.entry(self.FULL, ("b",))

    def test_a_plan_is_of_what_is_left(self) -> None:
        """
        What one would get is without what it may not see; a destination for which nothing is left says so.
        """
        router = a_router(
            Partial("a"), Partial("b"), a=without_comment, b=lambda f: replace(f, comment=None, value=None)
        )
        plans = router.plan(self.FULL, ("a", "b"))

        assert {"a": None, "b": "redacted"} == {name: plan.skipped for name, plan in plans.items()}
        assert {"a": ("user_id",), "b": ("user_id",)} == {name: plan.not_carried for name, plan in plans.items()}
        assert [True, None] == [part.record.value for plan in plans.values() for part in plan.parts]

    def test_redaction_for_nobody_here_is_refused_at_the_door(self) -> None:
        """
        A misspelt name would let everything pass.
        """
        message = r"redact names no exporter of this process: 'weawe' \(there are: weave\)"
        with pytest.raises(ConfigurationError, match=message) as caught:
            a_router(InMemoryFeedbackExporter("weave"), weawe=without_comment)

        assert "redact" == caught.value.setting


class TestFilters:
    """What goes where, where an application says so of each judgement."""

    def test_what_a_filter_refuses_is_skipped_there_and_nowhere_else(self) -> None:
        """
        Each destination has a filter of its own, or none; the reason is kept.
        """
        router = filtering(a=lambda record: record.name == "thumb")
        rating, thumb = a_record(), a_record(name="thumb")

        assert Entry(rating, ("a", "b"), {"a": "filtered"}) == router.entry(rating, ("a", "b"))
        assert Entry(thumb, ("a", "b")) == router.entry(thumb, ("a", "b"))

    def test_a_plan_says_what_is_filtered(self) -> None:
        """
        What one would have got is there all the same, to be looked at.
        """
        plans = filtering(a=lambda _: False).plan(a_record(), ("a", "b"))

        assert {"a": "filtered", "b": None} == {name: plan.skipped for name, plan in plans.items()}
        assert [1, 1] == [len(plan.parts) for plan in plans.values()]

    def test_what_is_not_joined_yet_is_not_filtered_yet(self) -> None:
        """
        A filter may ask about the call, which is not known before.
        """
        router = filtering(a=lambda record: record.handle.attributes["tenant"] == "a")
        plans = router.plan(a_record(), ("a", "b"), is_joined=False)

        assert [None, None] == [plan.skipped for plan in plans.values()]
        assert {} == router.missing(a_record(), ("a", "b"))

    def test_a_filter_sees_what_its_destination_would_get(self) -> None:
        """
        It is asked of what redaction has left, joined to its call, and once.
        """
        seen: list[FeedbackRecord] = []
        exporters = [InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")]
        router = Router(
            exporters,
            exports_unsampled=False,
            redact={"a": without_comment},
            filters={"a": lambda record: seen.append(record) is None},
        )
        record = a_record(comment="c")
        router.entry(record, ("a", "b"))

        assert [replace(record, comment=None)] == seen

    def test_a_filter_is_not_asked_of_what_does_not_go_there_anyway(self) -> None:
        """
        The reason is then another one: nothing is left of it, or its span was not sampled.
        """
        asked: list[FeedbackRecord] = []
        redact: Mapping[str, Redact] = {"a": lambda feedback: replace(feedback, value=None)}
        filters = {"a": lambda record: asked.append(record) is None}
        router = Router([InMemoryFeedbackExporter("a")], exports_unsampled=False, redact=redact, filters=filters)

        assert {"a": "redacted"} == router.entry(a_record(), ("a",)).skipped
        assert {"a": "unsampled"} == filtering(**filters).entry(a_record(is_sampled=False), ("a",)).skipped
        assert [] == asked

    def test_what_is_skipped_as_filtered_keeps_nothing_of_its_own(self) -> None:
        """
        What only that destination might have seen is not kept.
        """
        exporters = [InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")]
        router = Router(
            exporters, exports_unsampled=False, redact={"a": without_comment}, filters={"b": lambda _: False}
        )
        record = a_record(comment="c")

        assert Entry(replace(record, comment=None), ("a", "b"), {"b": "filtered"}) == router.entry(record, ("a", "b"))

    def test_what_waited_for_its_key_is_filtered_when_it_is_joined(self) -> None:
        """
        Then the call is known, and what a filter may ask of it.
        """
        record = a_record()
        entry = filtering(b=lambda _: False).entry(record, ("a", "b"), is_redacted=True)

        assert Entry(record, ("a", "b"), {"b": "filtered"}) == entry

    def test_a_retraction_passes_every_filter(self) -> None:
        """
        It takes back what is there, whatever a filter would say of it now.
        """
        record = FeedbackRecord(id="1", handle=a_record().handle, name="rating", retracts=True)
        router = filtering(a=lambda _: False)

        assert Entry(record, ("a",)) == router.entry(record, ("a",))
        assert [None] == [plan.skipped for plan in router.plan(record, ("a",)).values()]

    @pytest.mark.parametrize("answer", [None, 0, 1, "no", [], object()])
    def test_an_answer_that_is_neither_yes_nor_no_is_refused(self, answer: Any) -> None:
        """
        A filter that forgot to answer would lose everything, one that answers a coroutine would let everything pass.
        """
        message = f"the filter of 'a' answered {type(answer).__name__}, not True or False"
        with pytest.raises(ConfigurationError, match=message) as caught:
            filtering(a=lambda _: answer).entry(a_record(), ("a", "b"))

        assert "filters" == caught.value.setting

    def test_a_filter_that_raises_is_named_and_its_words_are_not(self) -> None:
        """
        Its error is the cause; the message says which filter, and neither keeps nor loses anything in silence.
        """
        router = filtering(a=lambda record: record.handle.attributes["tenant"] == "a")
        for ask in (router.entry, router.plan):
            with pytest.raises(ConfigurationError, match="the filter of 'a' raised KeyError: whether") as caught:
                ask(a_record(), ("a", "b"))

            assert ("filters", KeyError) == (caught.value.setting, type(caught.value.__cause__))
            assert "tenant" not in str(caught.value)

    @pytest.mark.parametrize("exporters", [(), (InMemoryFeedbackExporter("weave"), InMemoryFeedbackExporter("orq"))])
    def test_a_filter_for_nobody_here_is_refused_at_the_door(
        self, exporters: Sequence[InMemoryFeedbackExporter]
    ) -> None:
        """
        A misspelt name would let everything pass; the message has those that there are.
        """
        known = "weave, orq" if exporters else "none is configured"
        message = rf"filters names no exporter of this process: 'weawe' \(there are: {known}\)"
        with pytest.raises(ConfigurationError, match=message) as caught:
            Router(exporters, exports_unsampled=False, filters={"weawe": lambda _: True})

        assert "filters" == caught.value.setting


class TestDeclared:
    """What is declared of vendors' own fields, checked before anything is judged."""

    def test_fields_that_a_destination_takes_pass(self) -> None:
        """
        Whatever may be given under the name.
        """
        native = {"orq": {"property": "quality", "product": "otel"}}
        Router([OrqExporter()], exports_unsampled=False).check_declared(
            Schema({"helpfulness": Rating(1, 5, native=native), "thumb": Thumb(), "tone": Labels("a", native=native)})
        )

    @pytest.mark.parametrize(
        ("native", "message"),
        [
            ({"orq": {"propery": "quality"}}, r"feedback\['quality'\]: native\['orq'\] cannot set propery"),
            ({"orq": {"property": 5}}, r"feedback\['quality'\]: native\['orq'\] cannot set property"),
            (
                {"orq": {"property": "q"}, "orqq": {"property": "q"}},
                r"feedback\['quality'\].native names no exporter of this process: 'orqq' \(there are: orq\)",
            ),
        ],
    )
    def test_fields_that_no_destination_takes_are_refused(self, native: Any, message: str) -> None:
        """
        A misspelt field, or exporter, is an error at the start and not at the first judgement.
        """
        router = Router([OrqExporter()], exports_unsampled=False)
        with pytest.raises(ConfigurationError, match=message) as caught:
            router.check_declared(Schema({"thumb": Thumb(), "quality": Rating(1, 5, native=native)}))

        assert "feedback" == caught.value.setting

    def test_every_sample_is_asked_about(self) -> None:
        """
        A field that goes with one label and not with another is found.
        """

        class Picky(InMemoryFeedbackExporter):
            def parts(self, record: FeedbackRecord) -> Sequence[Part]:
                if record.native and record.value == "cold":
                    raise InvalidFeedbackError("no", field="native")
                return super().parts(record)

        router = a_router(Picky("picky"))
        router.check_declared(Schema({"tone": Labels("warm", "cold")}))
        with pytest.raises(ConfigurationError, match=r"feedback\['tone'\]: no"):
            router.check_declared(Schema({"tone": Labels("warm", "cold", native={"picky": {"a": 1}})}))

    def test_without_a_destination_nothing_can_be_checked(self) -> None:
        """
        What is recorded then waits for the destinations of another process.
        """
        a_router().check_declared(Schema({"thumb": Thumb(native={"orq": {"propery": "quality"}})}))


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
