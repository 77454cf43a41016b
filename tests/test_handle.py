import copy
import pickle
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_feedback import FeedbackHandle, InvalidFeedbackError

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"

TRACE_IDS = st.integers(1, (1 << 128) - 1)
SPAN_IDS = st.integers(1, (1 << 64) - 1)
FLAGS = st.integers(0, 255)


class TestIds:
    def test_ids_are_lower_case_hex_of_full_length(self) -> None:
        """
        Leading zeros are written, as every vendor wants them.
        """
        handle = FeedbackHandle(SpanContext(0xAB, 0xCD, is_remote=True), root=0xEF)

        assert "0" * 30 + "ab" == handle.trace_id
        assert "0" * 14 + "cd" == handle.span_id
        assert "0" * 14 + "ef" == handle.root_span_id

    def test_a_span_without_a_known_root_is_its_own(self) -> None:
        """
        Where nobody saw the local root, the root span id is the span's.
        """
        assert SPAN == FeedbackHandle.from_traceparent(TRACEPARENT).root_span_id

    @pytest.mark.parametrize(
        ("trace_id", "span_id", "is_valid"), [(1, 1, True), (0, 1, False), (1, 0, False), (0, 0, False)]
    )
    def test_a_handle_is_valid_with_both_ids(self, trace_id: Any, span_id: Any, is_valid: Any) -> None:
        """
        An all-zero id of either kind names no span.
        """
        assert is_valid == FeedbackHandle(SpanContext(trace_id, span_id, is_remote=True)).is_valid

    @given(FLAGS)
    def test_a_handle_is_sampled_by_the_last_bit_of_its_flags(self, flags: Any) -> None:
        """
        Other flags, such as `random`, say nothing about sampling.
        """
        handle = FeedbackHandle(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(flags)))

        assert (flags % 2 == 1) == handle.is_sampled


class TestTraceparent:
    @given(TRACE_IDS, SPAN_IDS, FLAGS)
    def test_it_round_trips(self, trace_id: Any, span_id: Any, flags: Any) -> None:
        """
        What a handle writes is read as the same ids and flags.
        """
        context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))

        assert FeedbackHandle(context) == FeedbackHandle.from_traceparent(FeedbackHandle(context).to_traceparent())

    def test_it_is_written_as_version_00(self) -> None:
        """
        Version, trace id, span id, flags, in lower-case hex.
        """
        assert TRACEPARENT == FeedbackHandle.from_traceparent(TRACEPARENT).to_traceparent()

    @pytest.mark.parametrize("version", ["01", "cc", "fe"])
    @pytest.mark.parametrize("rest", ["", "-", "-more", "-00-ff"])
    def test_a_later_version_is_read_as_far_as_it_is_known(self, version: Any, rest: Any) -> None:
        """
        W3C: a parser of version 00 takes the four fields of a later version, and ignores what follows a dash.
        """
        assert TRACEPARENT == FeedbackHandle.from_traceparent(f"{version}{TRACEPARENT[2:]}{rest}").to_traceparent()

    @pytest.mark.parametrize(
        "traceparent",
        [
            "",
            "nonsense",
            TRACE,
            f"{TRACE}-{SPAN}",
            TRACEPARENT.upper(),
            TRACEPARENT[:-1],
            TRACEPARENT + "0",
            TRACEPARENT + "-more",
            TRACEPARENT + "-",
            TRACEPARENT + "\n",
            " " + TRACEPARENT,
            "ff" + TRACEPARENT[2:],
            "0" + TRACEPARENT[2:],
            "01" + TRACEPARENT[2:] + "more",
            "01" + TRACEPARENT[2:] + "-a\nb",
            TRACEPARENT.replace("-", "_"),
            TRACEPARENT.replace("a", "g"),
            TRACEPARENT.replace("6", "\u0666"),  # a digit six, to Unicode
            TRACEPARENT.replace("b7", "0x"),
            f"00-{TRACE[:8]}-{TRACE[8:]}-{SPAN}-01",
            TRACEPARENT.encode(),
            None,
            7,
            ("00", TRACE, SPAN, "01"),
        ],
    )
    def test_what_is_malformed_is_refused(self, traceparent: Any) -> None:
        """
        Nothing but the exact form is read; the error names the field, keeps what was given and says what is expected.
        """
        with pytest.raises(InvalidFeedbackError, match="expected '00-<32 hex>-<16 hex>-<2 hex>'") as caught:
            FeedbackHandle.from_traceparent(traceparent)

        assert ("traceparent", traceparent) == (caught.value.field, caught.value.value)

    @pytest.mark.parametrize("traceparent", [f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"])
    def test_an_all_zero_id_is_refused_with_a_message_of_its_own(self, traceparent: Any) -> None:
        """
        It is well-formed and names no span, which is another mistake than a malformed one.
        """
        with pytest.raises(InvalidFeedbackError, match="all-zero id") as caught:
            FeedbackHandle.from_traceparent(traceparent)

        assert ("traceparent", traceparent) == (caught.value.field, caught.value.value)

    @given(st.text(st.sampled_from(string.hexdigits + "-gG \n"), max_size=60))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        """
        A text that is accepted is a traceparent: written again, it is the same up to its version and rest.
        """
        try:
            handle = FeedbackHandle.from_traceparent(text)
        except InvalidFeedbackError:
            return

        assert text[2:55] == handle.to_traceparent()[2:]

    def test_it_takes_what_else_is_known_of_the_span(self) -> None:
        """
        Attributes are copied, so that a later change of the caller's mapping changes no handle.
        """
        given_attributes = {"braintrust.parent": "project_name:chat"}
        handle = FeedbackHandle.from_traceparent(TRACEPARENT, attributes=given_attributes)
        given_attributes["braintrust.parent"] = "project_name:other"

        assert {"braintrust.parent": "project_name:chat"} == handle.attributes

    @pytest.mark.parametrize(
        "attributes",
        [
            {"braintrust.parent": 7},
            {"braintrust.parent": None},
            {7: "project_name:chat"},
            {"braintrust.parent": "\ud83d"},
            {"\ud83d": "x"},
            "braintrust.parent",
            [("braintrust.parent", "x")],
        ],
    )
    def test_attributes_that_are_no_texts_are_refused(self, attributes: Any) -> None:
        """
        A route that no exporter could read is an error now, not a dead letter later.
        """
        with pytest.raises(InvalidFeedbackError, match="attribute") as caught:
            FeedbackHandle.from_traceparent(TRACEPARENT, attributes=attributes)

        assert ("attributes", attributes) == (caught.value.field, caught.value.value)


class TestFromSpan:
    def test_a_recording_span_gives_its_context_times_and_attributes(self) -> None:
        """
        Of the attributes only those of the table are kept, under one set of names.
        """
        span = (
            TracerProvider()
            .get_tracer("test")
            .start_span(
                "chat",
                attributes={"llm.model_name": "gpt-4o", "input.value": "secret", "session.id": "s-1"},
                start_time=5,
            )
        )
        live = FeedbackHandle.from_span(span)
        span.end(end_time=9)
        ended = FeedbackHandle.from_span(span)

        assert span.get_span_context() == live.context
        assert (5, None) == (live.started_at, live.ended_at)
        assert (5, 9) == (ended.started_at, ended.ended_at)
        assert {"gen_ai.request.model": "gpt-4o", "gen_ai.conversation.id": "s-1"} == live.attributes

    def test_an_unsampled_span_gives_ids_that_say_so(self) -> None:
        """
        The ids are valid, and the handle knows that no vendor will have the span.
        """
        handle = FeedbackHandle.from_span(TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_span("chat"))

        assert (True, False) == (handle.is_valid, handle.is_sampled)
        assert (None, None, {}) == (handle.started_at, handle.ended_at, handle.attributes)

    def test_a_remote_span_gives_its_ids(self) -> None:
        """
        A span that is only a context has no times and no attributes.
        """
        remote = FeedbackHandle.from_traceparent(TRACEPARENT)

        assert remote == FeedbackHandle.from_span(NonRecordingSpan(remote.context))

    def test_no_span_gives_a_handle_that_is_not_valid(self) -> None:
        """
        Outside of any span there is a handle all the same, and it says so.
        """
        assert not FeedbackHandle.from_span(trace.get_current_span()).is_valid


class TestValue:
    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))])  # noqa: S301 (our own)
    def test_a_handle_can_be_copied_and_pickled(self, again: Any) -> None:
        """
        A task queue may carry a handle to another process whole.
        """
        handle = FeedbackHandle(
            SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=True, trace_flags=TraceFlags(1)),
            root=7,
            started_at=5,
            ended_at=9,
            attributes=FeedbackHandle.from_traceparent(TRACEPARENT, attributes={"user.id": "u-42"}).attributes,
        )

        assert handle == again(handle)

    def test_the_attributes_of_a_handle_cannot_be_changed(self) -> None:
        """
        What came from a traceparent or a span is read-only.
        """
        handle = FeedbackHandle.from_traceparent(TRACEPARENT, attributes={"user.id": "u-42"})

        with pytest.raises(TypeError):
            handle.attributes["user.id"] = "u-43"  # type: ignore[index]  # that is what is tested

    def test_handles_can_be_members_of_a_set(self) -> None:
        """
        Equal handles are one member, although mappings cannot be hashed.
        """
        one, same = (FeedbackHandle.from_traceparent(TRACEPARENT, attributes={"user.id": "u"}) for _ in range(2))

        assert 1 == len({one, same})


class TestTimes:
    @pytest.mark.parametrize("time_unix_nano", [1 << 63, 1 << 70, -1])
    def test_a_time_that_no_clock_shows_is_not_known(self, time_unix_nano: int) -> None:
        """
        A span that was started or ended in another unit keeps its ids; its times are left out.
        """
        span = TracerProvider().get_tracer("app").start_span("answer", start_time=time_unix_nano)
        span.end(time_unix_nano)
        handle = FeedbackHandle.from_span(span)

        assert (True, None, None) == (handle.is_valid, handle.started_at, handle.ended_at)
