from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from exporter_bench import (
    ID,
    NOON_TEXT,
    REFUSED,
    ROOT,
    SECRET,
    SPAN,
    STATUSES,
    TRACE,
    UNCLEAR,
    answer,
    answering,
    asked,
    changed,
    contract,
    handle,
    judgements,
    paths,
    play,
    published,
    record,
    taken_back,
)
from hypothesis import given, settings

from otel_feedback import FeedbackRecord, Part, WeaveExporter
from otel_feedback._record import part_id
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, PermanentFailure, Result, RetryableFailure, Success, Unclear
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.exporters._weave_rules import (
    MAX_NOTE_CHARS,
    MAX_PAYLOAD_CHARS,
    REACTION_ROOM_CHARS,
    broken_rules,
    check_project_id,
    is_one_emoji,
    weave_ref,
)
from otel_feedback.exporters.weave import MAX_BATCH_ITEMS, NO_BATCH_MILLIS, purge_body
from otel_feedback.testing import ExporterContract, FakeClock

CREATE, BATCH = "/feedback/create", "/feedback/batch/create"
REPLACE, PURGE = "/feedback/replace", "/feedback/purge"
REACTION, NOTE, AGENT = "wandb.reaction.1", "wandb.note.1", "wandb.agent_user_feedback"
PROJECT = "acme/chat"
SCORER_FIELDS: Mapping[str, Any] = {
    "scorer_tags": ["a"],
    "scorer_tag_reasons": {"a": "because"},
    "scorer_tag_confidences": {"a": 0.5},
    "scorer_ratings": {"r": 1},
    "scorer_rating_reasons": {"r": "because"},
    "scorer_rating_confidences": {"r": 0.0},
}
OP, OBJECT, CALL = (
    "weave:///acme/chat/op/judge:d",
    "weave:///acme/chat/object/judge:d",
    "weave:///acme/chat/call/call-1",
)
SPEC = "weave:///acme/chat/object/helpfulness:9zXq"
# The types that Weave takes references on, with what each of them needs (its validate_feedback_create_req).
RUNNABLE: Mapping[str, Any] = {"feedback_type": "wandb.runnable.judge", "runnable_ref": OBJECT}
OP_RUN: Mapping[str, Any] = {"feedback_type": "wandb.runnable.judge", "runnable_ref": OP, "call_ref": CALL}
MONITOR: Mapping[str, Any] = {
    "feedback_type": "wandb.agent_monitor",
    "runnable_ref": OP,
    "call_ref": CALL,
    "trigger_ref": OBJECT,
}
ANNOTATED: Mapping[str, Any] = {"feedback_type": "wandb.annotation.helpfulness", "annotation_ref": SPEC}
OTHER_FIELDS: Sequence[tuple[str, Mapping[str, Any]]] = [
    ("feedback_type", {"feedback_type": "custom"}),
    ("payload", {"payload": {"page": 3}}),
    ("creator", {"creator": "Jane Smith"}),
    ("queue_id", {"queue_id": "018f1f2a-9c2b-7d3e-b5a1-8c9d2e4f6a7b"}),
    ("annotation_ref", ANNOTATED),
    ("runnable_ref", RUNNABLE),
    ("runnable_ref", OP_RUN),
    ("call_ref", OP_RUN),
    ("trigger_ref", {**RUNNABLE, "trigger_ref": OBJECT}),
    ("trigger_ref", MONITOR),
]


def traces(**options: Any) -> WeaveExporter:
    return WeaveExporter(PROJECT, **options)


def agents(**options: Any) -> WeaveExporter:
    return WeaveExporter(PROJECT, view="agents", **options)


def bodies(exporter: WeaveExporter, **said: Any) -> dict[str, Any]:
    """Answer the body of each part of a judgement, by kind."""
    return {part.kind: part.body for part in exporter.parts(record(**said))}


def rest(**more: Any) -> dict[str, Any]:
    """Answer what the payload of the first part has besides its value."""
    return {"name": "rating", "source": "human", "recorded_at": NOON_TEXT, **more}


class TestContract(ExporterContract):
    secret = SECRET

    def answered(self, status: int) -> WeaveExporter:
        made = WeaveExporter(PROJECT, api_key=SECRET, options=answering(status))
        made.start()
        return made

    @pytest.fixture(params=["traces", "agents"])
    def exporter(self, request: pytest.FixtureRequest) -> Iterator[WeaveExporter]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200))
        exporter = WeaveExporter(PROJECT, api_key=SECRET, view=request.param, options=HTTPOptions(transport=transport))
        exporter.start()
        yield exporter
        exporter.shutdown()


class TestTracesView:
    @pytest.mark.parametrize(
        ("said", "feedback_type", "payload"),
        [
            ({"value": True}, REACTION, rest(emoji="👍")),
            ({"value": False}, REACTION, rest(emoji="👎")),
            ({"name": "thumb", "value": True}, REACTION, rest(emoji="👍", name="thumb")),
            ({"name": "toxic", "value": True}, "toxic", rest(value=True, name="toxic")),
            ({"name": "toxic", "value": False}, "toxic", rest(value=False, name="toxic")),
            ({"value": 0.25}, "rating", rest(value=0.25)),
            ({"value": 4, "scale": (1, 5)}, "rating", rest(value=4, scale=[1, 5])),
            ({"name": "tone", "value": "warm"}, "tone", rest(value="warm", name="tone")),
            ({"name": "tone", "value": ["a", "b"]}, "tone", rest(value=["a", "b"], name="tone")),
            ({"correction": {"a": 1}}, "correction", rest(value={"a": 1})),
            ({"correction": False}, "correction", rest(value=False)),
            ({"comment": "Spot on"}, NOTE, rest(note="Spot on")),
            ({"comment": "n" * 1024}, NOTE, rest(note="n" * 1024)),
            ({"comment": "n" * 1025}, "comment", rest(value="n" * 1025)),
            ({"tags": ["a", "b"]}, "rating", rest(tags=["a", "b"])),
            ({"value": True, "tags": ["a"]}, REACTION, rest(emoji="👍", tags=["a"])),
            ({"value": True, "metadata": {"m": 1}}, REACTION, rest(emoji="👍", metadata={"m": 1})),
            ({"value": True, "source": "llm"}, REACTION, rest(emoji="👍", source="llm")),
        ],
    )
    def test_each_field_has_its_type_and_payload(
        self, said: dict[str, Any], feedback_type: str, payload: dict[str, Any]
    ) -> None:
        """
        A thumb is a reaction, a comment a note as long as Weave takes one, anything else a type of its name.
        """
        (body,) = bodies(traces(), **said).values()

        assert (feedback_type, payload) == (body["feedback_type"], body["payload"])

    def test_a_body_has_no_field_that_is_not_needed(self) -> None:
        """
        Older servers refuse fields that they do not know: a thumb has five, and a creator where there is a user.
        """
        plain = bodies(traces(), value=True)["value"]
        personal = bodies(traces(), value=True, user_id="u-1")["value"]

        assert {
            "project_id": PROJECT,
            "weave_ref": f"weave:///acme/chat/call/{SPAN}",
            "feedback_type": REACTION,
            "payload": rest(emoji="👍"),
            "id": ID,
        } == plain
        assert {**plain, "creator": "u-1"} == personal

    def test_the_rest_rides_on_the_first_part(self) -> None:
        """
        Tags and metadata are said once; the user and the time with each row.
        """
        parts = traces().parts(
            record(value=True, comment="c", correction="x", tags=["t"], user_id="u", metadata={"m": 1})
        )

        assert [
            {"value", "tags", "metadata", "user_id"},
            {"correction", "user_id"},
            {"comment", "user_id"},
        ] == [set(part.carries) for part in parts]
        assert [
            rest(emoji="👍", tags=["t"], metadata={"m": 1}),
            {"value": "x", "recorded_at": NOON_TEXT},
            {"note": "c", "recorded_at": NOON_TEXT},
        ] == [part.body["payload"] for part in parts]

    def test_each_part_has_an_id_of_its_own(self) -> None:
        """
        A reaction and a note of one judgement are two rows, the same on every try and in every revision.
        """
        said: dict[str, Any] = {"value": True, "comment": "c", "correction": "x"}
        ids = [part.body["id"] for part in traces().parts(record(**said))]

        assert [ID, part_id(ID, "correction"), part_id(ID, "comment")] == ids
        assert ids == [part.body["id"] for part in traces().parts(record(revision=3, **said))]

    def test_the_names_of_thumbs_are_a_setting(self) -> None:
        """
        A boolean is a reaction under the configured names, and under no other.
        """
        exporter = traces(thumbs=("helpful",))

        assert REACTION == bodies(exporter, name="helpful", value=True)["value"]["feedback_type"]
        assert "rating" == bodies(exporter, value=True)["value"]["feedback_type"]


class TestAgentsView:
    @pytest.mark.parametrize(
        ("said", "fields"),
        [
            ({"value": True}, {"scorer_tags": ["👍"]}),
            ({"value": False}, {"scorer_tags": ["👎"]}),
            ({"name": "toxic", "value": True}, {"scorer_tags": ["toxic"]}),
            ({"name": "toxic", "value": False}, {"scorer_tags": ["not toxic"]}),
            ({"value": 0.25}, {"scorer_tags": ["rating"], "scorer_ratings": {"rating": 0.25}}),
            ({"value": 4, "scale": (1, 5)}, {"scorer_tags": ["rating"], "scorer_ratings": {"rating": 0.75}}),
            ({"value": 1, "scale": (1, 5)}, {"scorer_tags": ["rating"], "scorer_ratings": {"rating": 0.0}}),
            ({"name": "tone", "value": "warm"}, {"scorer_tags": ["warm"]}),
            ({"name": "tone", "value": ["warm", "short"]}, {"scorer_tags": ["warm", "short"]}),
            ({"value": True, "tags": ["a", "👍"]}, {"scorer_tags": ["👍", "a"]}),
            ({"tags": ["a", "b"]}, {"scorer_tags": ["a", "b"]}),
            ({"comment": "c", "tags": ["a"]}, {"scorer_tags": ["a"]}),
        ],
    )
    def test_a_value_is_tags_and_ratings(self, said: dict[str, Any], fields: dict[str, Any]) -> None:
        """
        What is said of an agent's span is a person's feedback with tags, each once, and a rating for a number.
        """
        body = bodies(agents(), **said)["value"]

        assert (AGENT, f"weave:///acme/chat/agent_span/{SPAN}") == (body["feedback_type"], body["weave_ref"])
        assert fields == {name: value for name, value in body.items() if name.startswith("scorer_")}

    def test_notes_and_corrections_are_as_in_the_other_view(self) -> None:
        """
        A comment is a note, a correction a type of its own, and neither has a scorer's fields.
        """
        found = bodies(agents(), comment="c", correction="x")

        assert [("correction", "correction"), ("comment", NOTE)] == [
            (kind, body["feedback_type"]) for kind, body in found.items()
        ]
        assert [] == [name for body in found.values() for name in body if name.startswith("scorer_")]

    def test_the_payload_keeps_the_value_as_it_was_given(self) -> None:
        """
        Besides the rating between 0 and 1 the payload has the number and its scale.
        """
        assert rest(value=4, scale=[1, 5]) == bodies(agents(), value=4, scale=(1, 5))["value"]["payload"]


class TestAnnotations:
    @pytest.mark.parametrize(
        ("said", "payload"),
        [
            ({"value": True}, {"value": True}),
            ({"value": False}, {"value": False}),
            ({"value": 0.0}, {"value": 0.0}),
            ({"value": 4, "scale": (1, 5)}, {"value": 4, "scale": [1, 5]}),
            ({"value": "warm"}, {"value": "warm"}),
            ({"value": ["a", "b"]}, {"value": ["a", "b"]}),
        ],
    )
    def test_a_configured_name_is_an_annotation(self, said: dict[str, Any], payload: dict[str, Any]) -> None:
        """
        Its type ends as the spec is called, whatever the judgement is; a thumb is a boolean and no emoji.
        """
        exporter = traces(annotations={"rating": SPEC})
        body = bodies(exporter, **said)["value"]

        assert ("wandb.annotation.helpfulness", SPEC) == (body["feedback_type"], body["annotation_ref"])
        assert rest(**payload) == body["payload"]

    @pytest.mark.parametrize(
        ("said", "feedback_type"),
        [
            ({"name": "thumb", "value": True}, REACTION),
            ({"comment": "c"}, NOTE),
            ({"correction": "x"}, "correction"),
            ({"tags": ["a"]}, "rating"),
        ],
    )
    def test_nothing_else_is_one(self, said: dict[str, Any], feedback_type: str) -> None:
        """
        Another name, a comment, a correction or tags alone have no value that an annotation could hold.
        """
        (body,) = bodies(traces(annotations={"rating": SPEC}), **said).values()

        assert (feedback_type, False) == (body["feedback_type"], "annotation_ref" in body)

    def test_a_native_type_wins(self) -> None:
        """
        A judgement that is told to be of another type is no annotation, and has no reference to one.
        """
        exporter = traces(annotations={"rating": SPEC})
        body = bodies(exporter, value=0.5, native={"weave": {"feedback_type": "mine"}})["value"]

        assert ("mine", False) == (body["feedback_type"], "annotation_ref" in body)


class TestReferences:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, f"call/{SPAN}"),
            ({"level": "span"}, f"call/{SPAN}"),
            ({"level": "trace"}, f"call/{ROOT}"),
            ({"view": "agents"}, f"agent_span/{SPAN}"),
            ({"view": "agents", "level": "trace"}, f"agent_turn/{TRACE}"),
            ({"view": "agents", "level": "conversation"}, "agent_conversation/chat%2F7%20%C3%A9%3F%3A~"),
        ],
    )
    def test_each_view_and_level_has_its_reference(self, options: Any, expected: str) -> None:
        """
        A span, its trace, or its conversation: ids in lower-case hex with their zeros, a conversation's quoted.
        """
        exporter = WeaveExporter(PROJECT, **options)
        target = handle(gen_ai__conversation__id="chat/7 é?:~")
        found = {part.body["weave_ref"] for part in exporter.parts(record(value=True, comment="c", target=target))}

        assert {f"weave:///acme/chat/{expected}"} == found

    def test_without_a_local_root_the_span_is_its_own_trace(self) -> None:
        """
        In the Traces view a trace is its outermost call.
        """
        (part,) = traces(level="trace").parts(record(value=True, target=handle(root="")))

        assert f"weave:///acme/chat/call/{SPAN}" == part.body["weave_ref"]

    @pytest.mark.parametrize("attributes", [{}, {"gen_ai__conversation__id": " "}])
    def test_without_a_conversation_it_is_put_on_the_trace_and_says_so(self, attributes: Any) -> None:
        """
        A judgement is not lost where a conversation's id is not known: each of its rows names the level it has.
        """
        parts = agents(level="conversation").parts(record(value=True, comment="c", target=handle(**attributes)))

        assert [(f"weave:///acme/chat/agent_turn/{TRACE}", "trace")] * 2 == [
            (part.body["weave_ref"], part.body["payload"]["level"]) for part in parts
        ]

    def test_what_is_where_it_was_meant_to_be_has_no_level(self) -> None:
        """
        Only what was put elsewhere says so.
        """
        for exporter in (traces(level="trace"), agents(level="trace"), agents(level="span"), traces()):
            assert "level" not in bodies(exporter, value=True)["value"]["payload"]

    @pytest.mark.parametrize(
        ("project", "kind", "target"),
        [
            (PROJECT, "call", SPAN.upper().replace("0", "A")),
            (PROJECT, "call", "0" * 16),
            (PROJECT, "call", SPAN[1:]),
            (PROJECT, "call", f"{SPAN}0"),
            (PROJECT, "call", f"{SPAN}\n"),
            (PROJECT, "call", TRACE),
            (PROJECT, "call", ""),
            (PROJECT, "agent_span", TRACE),
            (PROJECT, "agent_span", "0" * 16),
            (PROJECT, "agent_turn", SPAN),
            (PROJECT, "agent_turn", "0" * 32),
            (PROJECT, "agent_turn", TRACE.upper()),
            (PROJECT, "agent_conversation", ""),
            (PROJECT, "agent_conversation", " "),
            (PROJECT, "op", SPAN),
            ("acme", "call", SPAN),
            ("acme%2Fchat", "call", SPAN),
            ("acme/my%20chat", "call", SPAN),
            ("", "call", SPAN),
        ],
    )
    def test_what_can_join_nothing_is_no_reference(self, project: str, kind: Any, target: str) -> None:
        """
        The server never checks one, so that whatever it could not join is refused here.
        """
        with pytest.raises(InvalidFeedbackError, match="Weave") as caught:
            weave_ref(project, kind, target)

        assert "target" == caught.value.field

    @pytest.mark.parametrize("zeros", ["000000000000000a", "a000000000000000"])
    def test_an_id_may_have_zeros(self, zeros: str) -> None:
        """
        Only an id of nothing but zeros is none.
        """
        assert f"weave:///acme/chat/call/{zeros}" == weave_ref(PROJECT, "call", zeros)
        assert f"weave:///acme/chat/agent_turn/{zeros * 2}" == weave_ref(PROJECT, "agent_turn", zeros * 2)

    def test_a_process_that_only_records_needs_no_project(self) -> None:
        """
        What is sent is written where it is delivered.
        """
        (part,) = WeaveExporter().parts(record(value=True))

        assert ("", "") == (part.body["project_id"], part.body["weave_ref"])

    def test_a_project_is_raw(self) -> None:
        """
        Blanks in a project's name are not URL-encoded, neither in the reference nor beside it.
        """
        (part,) = WeaveExporter("my team/my chat").parts(record(value=True))

        assert ("my team/my chat", f"weave:///my team/my chat/call/{SPAN}") == (
            part.body["project_id"],
            part.body["weave_ref"],
        )

    @pytest.mark.parametrize("project", ["acme/chat", "a-b_c.d/e-f_g.h", "my team/my chat", "équipe/проект", ""])
    def test_what_is_a_project(self, project: str) -> None:
        """
        Two non-empty parts of any letters; nothing is no project yet.
        """
        assert project == check_project_id(project)
        assert project == check_project_id(f" {project}\n")

    @pytest.mark.parametrize(
        "project",
        [
            "acme",
            "acme/",
            "/chat",
            "/",
            "acme/chat/prod",
            "acme%2Fchat",
            "acme/my%20chat",
            "acme /chat",
            "acme/ chat",
            "acme/chat:v1",
            "acme/chat#1",
            "acme/chat?x",
            "acme/ch\nat",
            "https://wandb.ai/acme/chat",
        ],
    )
    def test_what_is_no_project(self, project: str) -> None:
        """
        One part, three, an empty or an encoded one is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            WeaveExporter(project)

        assert "WANDB_PROJECT" == caught.value.setting


class TestRequests:
    @pytest.mark.parametrize(("said", "path"), [({"value": True}, CREATE), ({"value": True, "comment": "c"}, BATCH)])
    def test_one_part_is_created_by_itself_and_several_together(self, said: dict[str, Any], path: str) -> None:
        """
        As the user `api` with the key as its password.
        """
        exporter = traces(api_key=SECRET)
        requests, results = play(exporter.exchange(exporter.parts(record(**said))))

        basic = base64.b64encode(f"api:{SECRET}".encode()).decode()
        assert {Success("HTTP 200")} == set(results)
        assert [("POST", f"https://trace.wandb.ai{path}", f"Basic {basic}")] == [
            (request.method, str(request.url), request.headers["authorization"]) for request in requests
        ]

    def test_no_parts_are_no_request(self) -> None:
        """
        Nothing to send, nothing answered.
        """
        assert ([], []) == play(traces().exchange([]))

    def test_a_change_replaces_under_the_same_id(self) -> None:
        """
        A replacement names the row that it replaces and is that row.
        """
        exporter = traces()
        before, after = record(value=True), record(value=False, revision=1)
        (request,), results = play(exporter.exchange(changed(exporter, before, after)))

        path, body = asked(request)
        assert (REPLACE, ID, ID, "👎") == (path, body["feedback_id"], body["id"], body["payload"]["emoji"])
        assert [Success("HTTP 200")] == results

    @pytest.mark.parametrize("purge", [answer(200), answer(404), answer(404, b"<html>")])
    def test_a_server_that_cannot_replace_is_told_in_two_steps(self, purge: httpx.Response) -> None:
        """
        After a 404 to a replacement the row is removed, as far as it is there, and created under the same id: of two
        types under one id both might be shown.
        """
        exporter = traces()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(404), purge, answer(200))

        assert ([REPLACE, PURGE, CREATE], [Success("HTTP 200")]) == (paths(requests), results)
        assert purge_body(PROJECT, ID) == asked(requests[1])[1]
        assert parts[0].body == asked(requests[2])[1]

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300 and status != 404])
    def test_what_could_not_be_removed_is_not_created_beside_it(self, status: int) -> None:
        """
        The answer to the removal is then the result, and the next try begins anew.
        """
        exporter = traces()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(404), answer(status))

        assert ([REPLACE, PURGE], [STATUSES[status]]) == (paths(requests), [type(result) for result in results])

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300 and status != 404])
    def test_another_answer_to_a_replacement_is_the_result(self, status: int) -> None:
        """
        Only a missing row is created.
        """
        exporter = traces()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(status))

        assert ([REPLACE], [STATUSES[status]]) == (paths(requests), [type(result) for result in results])

    def test_a_retraction_purges_each_row_by_its_id(self) -> None:
        """
        Weave purges by id only, in its query language.
        """
        exporter = traces()
        parts = taken_back(exporter.parts(record(value=True, comment="c")))
        requests, results = play(exporter.exchange(parts))

        assert [Success("HTTP 200")] * 2 == results
        assert [
            (
                PURGE,
                {
                    "project_id": PROJECT,
                    "query": {"$expr": {"$eq": [{"$getField": "id"}, {"$literal": part_id(ID, kind)}]}},
                },
            )
            for kind in ("value", "comment")
        ] == [asked(request) for request in requests]

    @pytest.mark.parametrize("body", [{}, {"reason": "Feedback not found"}, {"detail": "Feedback not found"}])
    def test_what_is_not_there_is_as_good_as_purged(self, body: Any) -> None:
        """
        A purge that Weave answers 404 to is a success, not a pause.
        """
        exporter = traces()
        parts = taken_back(exporter.parts(record(value=True)))

        assert [Success("HTTP 404: it was not there")] == play(exporter.exchange(parts), answer(404, body))[1]

    @pytest.mark.parametrize("body", [b"<html>Not Found</html>", b"", b"[]", {"detail": "Not Found"}])
    def test_a_404_that_knows_nothing_of_feedback_is_no_success(self, body: Any) -> None:
        """
        A web server's page, or the words of a server that has no such address, mean that nothing was taken back.
        """
        exporter = traces()
        parts = taken_back(exporter.parts(record(value=True)))

        assert [PauseDestination("HTTP 404")] == play(exporter.exchange(parts), answer(404, body))[1]

    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_each_status_has_its_result(self, status: int, expected: type[Result]) -> None:
        """
        Weave's statuses mean what the shared table says.
        """
        exporter = traces()
        _, results = play(exporter.exchange(exporter.parts(record(value=True))), answer(status))

        assert [expected] == [type(result) for result in results]

    @pytest.mark.parametrize("silence", [UNCLEAR, REFUSED])
    def test_silence_is_the_result(self, silence: Any) -> None:
        """
        Whether something was sent is what the silence says.
        """
        exporter = traces()

        assert [silence.result] == play(exporter.exchange(exporter.parts(record(value=True))), silence)[1]

    def test_weaves_reason_is_in_ours(self) -> None:
        """
        A refusal says what Weave says.
        """
        exporter = traces()
        _, (result,) = play(
            exporter.exchange(exporter.parts(record(value=True))),
            answer(400, {"reason": "Feedback payload too large"}),
        )

        assert "HTTP 400: Feedback payload too large" == result.reason

    @pytest.mark.parametrize(
        "reason",
        [
            "Invalid payload for feedback_type wandb.note.1: input_value='It is Canberra, not Sydney'",
            "Invalid payload: [type=string_too_long, input_value='It is Canber...ot Sydney, input_type=str]",
        ],
    )
    def test_what_was_said_is_in_no_reason(self, reason: str) -> None:
        """
        Weave's validation quotes the note, in full or in part: such a text is left out.
        """
        exporter = traces()
        parts = exporter.parts(record(comment="It is Canberra, not Sydney"))
        _, results = play(exporter.exchange(parts), answer(400, {"reason": reason}))

        assert ["HTTP 400"] == [result.reason for result in results]

    @pytest.mark.parametrize("view", ["traces", "agents"])
    @settings(max_examples=200)
    @given(judgement=judgements())
    def test_every_body_keeps_to_the_contract(self, view: Any, judgement: Any) -> None:
        """
        Whatever is said, each request to create, replace or purge is valid, and none that Weave is known to refuse.
        """
        exporter = WeaveExporter(PROJECT, view=view)
        parts = exporter.parts(judgement)
        requests, _ = play(exporter.exchange([*parts, *changed(exporter, judgement, judgement), *taken_back(parts)]))

        for path, body in map(asked, requests):
            assert [] == list(contract("weave", path).iter_errors(body))
            for item in {BATCH: body.get("batch"), PURGE: []}.get(path, [body]):
                assert_allowed(item)

    def test_every_body_keeps_to_weaves_own_page(self) -> None:
        """
        The same by the page that W&B publishes.
        """
        validator = published("weave", CREATE)

        @settings(max_examples=200)
        @given(judgement=judgements())
        def check(judgement: Any) -> None:
            for exporter in (traces(), agents()):
                for part in exporter.parts(judgement):
                    assert [] == list(validator.iter_errors(json.loads(json.dumps(part.body))))

        check()


class TestStatuses:
    """What each status leads to, by request; where it says nothing else, the shared table."""

    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_to_a_creation(self, status: int, expected: type[Result]) -> None:
        """
        One request, whose status is the result.
        """
        exporter = traces()
        requests, results = play(exporter.exchange(exporter.parts(record(value=True))), answer(status))

        assert ([CREATE], [expected]) == (paths(requests), [type(result) for result in results])

    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_to_a_batch(self, status: int, expected: type[Result]) -> None:
        """
        What concerns an item, or that there are no batches, is asked again of each by itself; all else of all at once.
        """
        exporter = traces()
        requests, results = play(exporter.exchange(created(exporter, 2)), answer(status))
        again = {PermanentFailure: [CREATE, CREATE], PauseDestination: [CREATE] if status in (404, 405) else []}

        assert [BATCH, *again.get(expected, [])] == paths(requests)
        assert [expected] * 2 == [type(result) for result in results]

    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_to_a_replacement(self, status: int, expected: type[Result]) -> None:
        """
        A 404 leads to two steps in its place.
        """
        exporter = traces()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(status))

        assert [REPLACE, *([PURGE, CREATE] if status == 404 else [])] == paths(requests)
        assert [expected] == [type(result) for result in results]

    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_to_a_purge(self, status: int, expected: type[Result]) -> None:
        """
        A 404 is as good as done.
        """
        exporter = traces()
        requests, results = play(exporter.exchange(taken_back(exporter.parts(record(value=True)))), answer(status))

        assert [PURGE] == paths(requests)
        assert [Success if status == 404 else expected] == [type(result) for result in results]

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_wish_to_wait_is_kept_for_all(self, status: int) -> None:
        """
        What `Retry-After` says of a batch holds for each of it, and for what comes after it, which is not tried.
        """
        exporter = traces()
        parts = [*created(exporter, 2), *changed(exporter, record(value=True), record(value=False))]
        requests, results = play(exporter.exchange(parts), answer(status, retry_after="7"))

        assert ([BATCH], [7_000] * 3) == (paths(requests), [result.retry_after_millis for result in results])
        assert [RetryableFailure(f"not tried after: HTTP {status}", 7_000, is_tried=False)] == results[2:]

    @pytest.mark.parametrize("silence", [UNCLEAR, REFUSED])
    def test_silence_ends_the_exchange(self, silence: Any) -> None:
        """
        Whether a batch may have arrived is what the silence says; nothing more is sent.
        """
        exporter = traces()
        parts = [*created(exporter, 2), *changed(exporter, record(value=True), record(value=False))]
        requests, results = play(exporter.exchange(parts), silence)

        assert [BATCH] == paths(requests)
        assert [silence.result] * 2 == results[:2]
        assert [(RetryableFailure, False)] == [(type(result), result.is_tried) for result in results[2:]]


class TestBatches:
    def test_a_batch_has_the_bodies_as_they_are(self) -> None:
        """
        The same as by themselves, in order.
        """
        exporter = traces()
        parts = created(exporter, 3)
        (request,), results = play(exporter.exchange(parts))

        assert (BATCH, {"batch": [part.body for part in parts]}) == asked(request)
        assert [Success("HTTP 200")] * 3 == results

    @pytest.mark.parametrize("status", [400, 409, 413, 422])
    @pytest.mark.parametrize("bad", [{0}, {3}, {7}, {0, 7}, {2, 3, 4}, set(range(8))])
    def test_a_bad_item_sinks_no_other(self, status: int, bad: set[int]) -> None:
        """
        Of a refused batch the halves are sent, down to what is refused by itself; every good item arrives, once.
        """
        exporter = traces()
        parts = created(exporter, 8)
        server = Server(status, {parts[number].id for number in bad})
        _, results = play(exporter.exchange(parts), server)

        assert [PermanentFailure if number in bad else Success for number in range(8)] == [
            type(result) for result in results
        ]
        assert [part.id for number, part in enumerate(parts) if number not in bad] == server.stored

    def test_one_bad_item_costs_few_requests(self) -> None:
        """
        Of a hundred items one is found by seven halvings, two requests each.
        """
        exporter = traces()
        parts = created(exporter, 100)
        requests, _ = play(exporter.exchange(parts), Server(400, {parts[50].id}))

        assert len(requests) <= 1 + 2 * 7

    @pytest.mark.parametrize("status", [404, 405])
    def test_a_server_without_batches_gets_each_by_itself_for_an_hour(self, status: int, clock: FakeClock) -> None:
        """
        It is asked for batches again when it may have become a newer one.
        """
        exporter = traces(options=HTTPOptions(clock=clock))
        server = Server(status, without_batches=True)
        first, results = play(exporter.exchange(created(exporter, 3)), server)
        second, _ = play(exporter.exchange(created(exporter, 2)), server)
        clock.advance(seconds=NO_BATCH_MILLIS / 1_000)
        third, _ = play(exporter.exchange(created(exporter, 2)), server)

        assert [Success("HTTP 200")] * 3 == results
        assert [BATCH, CREATE, CREATE, CREATE] == paths(first)
        assert [CREATE, CREATE] == paths(second)
        assert [BATCH, CREATE, CREATE] == paths(third)

    def test_a_server_without_batches_is_asked_for_one_only_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Further batches of the same export go part by part at once.
        """
        monkeypatch.setattr("otel_feedback.exporters.weave.MAX_BATCH_ITEMS", 2)
        exporter = traces()
        requests, _ = play(exporter.exchange(created(exporter, 5)), Server(404, without_batches=True))

        assert [BATCH, *[CREATE] * 5] == paths(requests)

    def test_a_missing_project_is_not_a_server_without_batches(self) -> None:
        """
        Where the first item by itself is answered 404 too, the destination is paused, and the next export asks again.
        """
        exporter = traces()
        requests, results = play(exporter.exchange(created(exporter, 3)), answer(404, {"reason": "Project not found"}))
        again, _ = play(exporter.exchange(created(exporter, 2)))

        assert ([BATCH, CREATE], [PauseDestination("HTTP 404")] * 3) == (paths(requests), results)
        assert [BATCH] == paths(again)

    def test_the_order_is_kept(self) -> None:
        """
        What is replaced or purged goes by itself, between the batches before and after it.
        """
        exporter = traces()
        before, after = created(exporter, 2), created(exporter, 3)[1:]
        change = changed(exporter, record(value=True), record(value=False))
        gone = taken_back(exporter.parts(record(value=True)))
        requests, results = play(exporter.exchange([*before, *change, *gone, *after]))

        assert ([BATCH, REPLACE, PURGE, BATCH], 6) == (paths(requests), len(results))

    def test_what_may_have_arrived_goes_by_itself(self) -> None:
        """
        An item at which the server fails must not sink its neighbours with it for ever.
        """
        exporter = traces()
        parts = [replace(part, may_have_arrived=True) for part in created(exporter, 2)]
        requests, _ = play(exporter.exchange([*parts, *created(exporter, 4)[2:]]))

        assert [CREATE, CREATE, BATCH] == paths(requests)

    def test_an_unclear_batch_is_repeated_under_the_same_ids(self) -> None:
        """
        Weave collapses rows of one id, so that a repeat is harmless.
        """
        exporter = traces()
        parts = created(exporter, 2)
        first, results = play(exporter.exchange(parts), answer(500))
        second, _ = play(exporter.exchange([replace(part, may_have_arrived=True) for part in parts]))

        assert [Unclear("HTTP 500")] * 2 == results
        assert [item["id"] for item in asked(first[0])[1]["batch"]] == [asked(each)[1]["id"] for each in second]

    def test_a_batch_has_so_many_items_at_the_most(self) -> None:
        """
        As many as Weave's own client sends at once.
        """
        exporter = traces()
        requests, results = play(exporter.exchange(created(exporter, MAX_BATCH_ITEMS + 1)))

        assert ([BATCH, CREATE], MAX_BATCH_ITEMS) == (paths(requests), len(asked(requests[0])[1]["batch"]))
        assert MAX_BATCH_ITEMS + 1 == len(results)

    @pytest.mark.parametrize(("spare", "expected"), [(0, [BATCH]), (-1, [BATCH, CREATE])])
    def test_a_batch_is_no_larger_than_a_body_may_be(
        self, monkeypatch: pytest.MonkeyPatch, spare: int, expected: list[str]
    ) -> None:
        """
        To the byte, as it is sent.
        """
        exporter = traces()
        parts = [part for each in created(exporter, 3) for part in exporter.parts(replace(each.record, comment="é"))][
            :3
        ]
        whole, _ = play(exporter.exchange(parts))
        monkeypatch.setattr("otel_feedback.exporters.weave.MAX_BODY_BYTES", len(whole[0].content) + 1 + spare)
        requests, _ = play(exporter.exchange(parts))

        assert expected == paths(requests)
        assert [part.id for part in parts] == [
            item["id"] for path, body in map(asked, requests) for item in body.get("batch", [body])
        ]

    def test_one_id_is_not_twice_in_a_batch(self) -> None:
        """
        Which of the two the server would keep is not known.
        """
        exporter = traces()
        (part,) = created(exporter, 1)
        requests, _ = play(exporter.exchange([part, *created(exporter, 2)[1:], part]))

        assert [BATCH, CREATE] == paths(requests)

    def test_a_batchs_reason_quotes_nobody(self) -> None:
        """
        A text that answers many cannot be told from what one of them said.
        """
        exporter = traces()
        _, results = play(exporter.exchange(created(exporter, 2)), answer(500, {"reason": "Secret words"}))

        assert ["HTTP 500"] * 2 == [result.reason for result in results]


def created(exporter: WeaveExporter, count: int) -> list[Part]:
    """Answer the parts of so many judgements."""
    judged = [record(value=0.5, id=f"0198f1f2-9c2b-7d3e-b5a1-{number:012x}") for number in range(count)]
    return [part for each in judged for part in exporter.parts(each)]


class Server:
    """A server that refuses bodies with a bad id, as a whole where they come as a batch."""

    def __init__(self, status: int, bad: set[str] = frozenset(), *, without_batches: bool = False) -> None:  # type: ignore[assignment]  # never changed
        self.status, self.bad, self.without_batches = status, bad, without_batches
        self.stored: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = asked(request)
        if path == BATCH and self.without_batches:
            return answer(self.status, {"detail": "Not Found"})
        ids = [item["id"] for item in body.get("batch", [body])]
        if not self.bad.isdisjoint(ids):
            return answer(self.status)
        self.stored += ids
        return answer()


class TestSizes:
    @pytest.mark.parametrize("letter", ["a", "é", "👍"])
    @pytest.mark.parametrize(
        ("said", "field", "limit"),
        [
            ({"value": 0.5}, "metadata", 1_048_576),
            ({"value": True}, "metadata", 1_048_576 - 512),
            ({"comment": "c"}, "metadata", 1_048_576),
            ({"comment": "long " * 300}, "comment", 1_048_576),
            ({"correction": "x"}, "correction", 1_048_576),
        ],
    )
    def test_a_payload_is_measured_as_weave_measures_it(
        self, said: dict[str, Any], field: str, limit: int, letter: str
    ) -> None:
        """
        As JSON in ASCII, to the character; a reaction leaves room for what the server writes beside the emoji.
        """
        judgement = record(**said)
        (started,) = traces().parts(self._filled(judgement, field, "n" * 1025))
        room = limit + 1025 - len(json.dumps(started.body["payload"]))
        letter_chars = len(json.dumps(letter)) - 2
        text = letter * (room // letter_chars) + "a" * (room % letter_chars)

        (fits,) = traces().parts(self._filled(judgement, field, text))
        with pytest.raises(
            InvalidFeedbackError, match=f"up to {limit} characters of JSON; make {field} shorter"
        ) as caught:
            traces().parts(self._filled(judgement, field, text + "a"))

        assert limit == len(json.dumps(fits.body["payload"]))
        assert field == caught.value.field

    def _filled(self, judgement: FeedbackRecord, field: str, text: str) -> FeedbackRecord:
        return replace(judgement, **({"metadata": {"m": text}} if field == "metadata" else {field: text}))


class TestEmoji:
    @pytest.mark.parametrize(
        "text",
        [
            *("👍", "👎", "👍🏽", "❤️", "❤", "☺︎", "🎉", "©️", "🩷", "🇳🇱", "1️⃣", "#⃣", "👩‍👩‍👧‍👦", "👩🏽‍🚀"),
            *("🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "🏳️‍🌈", "🧑🏻‍❤️‍💋‍🧑🏿"),
        ],
    )
    def test_what_is_one(self, text: str) -> None:
        """
        With skin tones, variation selectors, joined, as a flag or a keycap.
        """
        assert is_one_emoji(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "a",
            "1",
            "é",
            "good",
            ":+1:",
            "👍👎",
            "👍👍",
            "👍 ",
            "ok 👍",
            "🇳",
            "🇳🇱🇳",
            "\u200d",
            "\ufe0f",
            "👍\u200d",
            1,
            None,
            ["👍"],
        ],
    )
    def test_what_is_none_or_more(self, text: object) -> None:
        """
        Weave counts emoji and takes exactly one; text around it is no emoji either.
        """
        assert not is_one_emoji(text)


def assert_allowed(body: Mapping[str, Any]) -> None:
    """Check the rules about types (VENDORS, Weave) that no schema says."""
    kind, payload = body["feedback_type"], body["payload"]
    assert (kind == REACTION) <= (payload.get("emoji") in ("👍", "👎"))
    assert (kind == NOTE) <= (1 <= len(payload.get("note", "")) <= 1024)
    assert kind in (REACTION, NOTE, AGENT) or not kind.startswith("wandb.")
    scored = [name for name in body if name.startswith("scorer_")]
    assert bool(scored) == (kind == AGENT)
    assert (kind == AGENT) <= bool(body.get("scorer_tags"))
    assert all(0 <= rating <= 1 for rating in body.get("scorer_ratings", {}).values())
    assert "wb_user_id" not in body


class TestNative:
    @pytest.mark.parametrize(("name", "native"), OTHER_FIELDS)
    def test_each_published_field_can_be_set(self, name: str, native: Mapping[str, Any]) -> None:
        """
        A field is sent as it is given, with the type that it belongs to.
        """
        body = bodies(traces(), value=0.5, native={"weave": native})["value"]

        assert {**body, **native, "payload": body["payload"]} == body
        assert native.get("payload", {}).items() <= body["payload"].items()
        assert name in native

    @pytest.mark.parametrize(("name", "value"), SCORER_FIELDS.items())
    @pytest.mark.parametrize("of_type", [{"feedback_type": AGENT}, MONITOR, RUNNABLE, OP_RUN])
    def test_a_scorers_fields_go_with_a_scorers_types(
        self, of_type: Mapping[str, Any], name: str, value: object
    ) -> None:
        """
        On the types that Weave allows them on, the fields are sent as they are given.
        """
        native = {**of_type, name: value}

        assert value == bodies(traces(), value=0.5, native={"weave": native})["value"][name]

    def test_a_runnables_payload_is_its_output(self) -> None:
        """
        On a type `wandb.runnable.<name>` Weave looks for the value under `output`.
        """
        payload = bodies(traces(), value=4, scale=(1, 5), native={"weave": RUNNABLE})["value"]["payload"]

        assert rest(output=4, scale=[1, 5]) == payload

    @pytest.mark.parametrize(("name", "value"), SCORER_FIELDS.items())
    @pytest.mark.parametrize("said", [{"value": True}, {"value": 0.5}, {"comment": "c"}])
    def test_a_scorers_fields_go_with_no_other_type(self, said: dict[str, Any], name: str, value: object) -> None:
        """
        Weave refuses them on reactions, notes and custom types: so do we, before acceptance.
        """
        with pytest.raises(InvalidFeedbackError, match="scorer_") as caught:
            bodies(traces(), **said, native={"weave": {name: value}})

        assert "native.weave" == caught.value.field

    @pytest.mark.parametrize(
        ("said", "native"),
        [
            ({"value": True}, {"feedback_type": AGENT, "scorer_tags": []}),
            ({"comment": "c"}, {"feedback_type": AGENT}),
            ({"value": True}, {"feedback_type": "wandb.annotation.tone"}),
            ({"value": True}, {"feedback_type": "wandb.custom"}),
            ({"value": True}, {"feedback_type": "wandb."}),
            ({"value": True}, {"feedback_type": "wandb.reaction.2"}),
            ({"value": True}, {"feedback_type": "wandb.runnable."}),
            ({"value": True}, {"feedback_type": "wandb.agent_monitor_of_mine"}),
            ({"value": True}, {"feedback_type": "wandb.annotation.", "annotation_ref": "weave:///a/b/object/c:d"}),
            ({"value": True}, {"annotation_ref": SPEC}),
            ({"value": True}, {**ANNOTATED, "annotation_ref": "weave:///acme/chat/object/other:d"}),
            ({"value": True}, {**ANNOTATED, "annotation_ref": "weave:///acme/other/object/helpfulness:d"}),
            ({"value": True}, {**ANNOTATED, "annotation_ref": "weave:///acme/chat/op/helpfulness:d"}),
            ({"value": True}, {**ANNOTATED, "annotation_ref": "helpfulness"}),
            ({"tags": ["a"]}, ANNOTATED),
            ({"value": True}, {"runnable_ref": OP}),
            ({"value": True}, {"call_ref": CALL}),
            ({"value": True}, {"trigger_ref": OBJECT}),
            ({"value": True}, {"feedback_type": "wandb.runnable.judge"}),
            ({"value": True}, {"feedback_type": "wandb.runnable.judge", "runnable_ref": OP}),
            ({"value": True}, {"feedback_type": "wandb.runnable.other", "runnable_ref": OBJECT}),
            ({"value": True}, {**RUNNABLE, "annotation_ref": SPEC}),
            ({"value": True}, {**RUNNABLE, "call_ref": OBJECT}),
            ({"value": True}, {**RUNNABLE, "trigger_ref": CALL}),
            ({"tags": ["a"]}, RUNNABLE),
            ({"value": True}, {name: value for name, value in MONITOR.items() if name != "runnable_ref"}),
            ({"value": True}, {name: value for name, value in MONITOR.items() if name != "call_ref"}),
            ({"value": True}, {name: value for name, value in MONITOR.items() if name != "trigger_ref"}),
            ({"value": True}, {"payload": {"emoji": "👍👎"}}),
            ({"value": True}, {"payload": {"emoji": "👍 "}}),
            ({"value": 0.5}, {"feedback_type": REACTION}),
            ({"value": True}, {"payload": {"emoji": "good"}}),
            ({"value": True}, {"payload": {"emoji": ""}}),
            ({"value": True}, {"payload": {"emoji": "é"}}),
            ({"value": True}, {"payload": {"emoji": 1}}),
            ({"comment": "c"}, {"payload": {"note": ""}}),
            ({"comment": "c"}, {"payload": {"note": "n" * 1025}}),
            ({"comment": "c"}, {"payload": {"note": None}}),
            ({"comment": "n" * 1025}, {"feedback_type": NOTE}),
        ],
    )
    def test_what_weave_answers_400_to_is_refused(self, said: dict[str, Any], native: dict[str, Any]) -> None:
        """
        A combination that Weave is known to refuse never becomes a dead letter.
        """
        with pytest.raises(InvalidFeedbackError, match="native"):
            bodies(traces(), **said, native={"weave": native})

    def test_an_annotation_has_the_value_and_its_reference(self) -> None:
        """
        A thumb as an annotation is a boolean under `value`, not an emoji.
        """
        reference = "weave:///acme/chat/object/tone:digest"
        native = {"feedback_type": "wandb.annotation.tone", "annotation_ref": reference}
        body = bodies(traces(), value=True, native={"weave": native})["value"]

        assert (True, reference) == (body["payload"]["value"], body["annotation_ref"])
        assert "emoji" not in body["payload"]

    def test_a_payload_is_added_to_ours(self) -> None:
        """
        Keys of a native payload win over ours and leave the others.
        """
        native = {"payload": {"emoji": "🎉", "page": 3}}
        body = bodies(traces(), value=True, native={"weave": native})["value"]

        assert rest(emoji="🎉", page=3) == body["payload"]

    def test_who_and_where_is_true_of_every_row(self) -> None:
        """
        Creator and queue go with each part, the other fields with the first.
        """
        native = {**OP_RUN, "creator": "Jane", "queue_id": "q-1"}
        found = bodies(traces(), value=0.5, comment="c", user_id="u", native={"weave": native})

        assert [("Jane", "q-1"), ("Jane", "q-1")] == [(body["creator"], body["queue_id"]) for body in found.values()]
        assert [True, False] == ["call_ref" in body for body in found.values()]

    @pytest.mark.parametrize(
        "native",
        [
            {"id": ID},
            {"project_id": "other/project"},
            {"weave_ref": "weave:///acme/chat/call/1"},
            {"wb_user_id": "u"},
            {"feedback_type": 1},
            {"feedback_type": ""},
            {"feedback_type": " "},
            {"payload": "text"},
            {"payload": None},
            {"creator": 7},
            {"creator": None},
            {"creator": ""},
            {"scorer_tags": "a"},
            {"scorer_tags": [1]},
            {"scorer_ratings": {"r": 1.5}},
            {"scorer_ratings": {"r": "high"}},
            {"scorer_ratings": {"r": True}},
            {"scorer_tag_confidences": {"a": -0.1}},
            {"scorer_tag_reasons": {"a": 1}},
        ],
    )
    def test_ids_and_wrong_types_are_refused(self, native: dict[str, Any]) -> None:
        """
        What is not published, or of another type, is refused before acceptance.
        """
        with pytest.raises(InvalidFeedbackError, match="native") as caught:
            bodies(agents(), value=True, native={"weave": native})

        assert f"native.weave.{next(iter(native))}" == caught.value.field[: len(f"native.weave.{next(iter(native))}")]


class TestConstructor:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, "https://trace.wandb.ai"),
            ({"WANDB_BASE_URL": "https://api.wandb.ai"}, "https://trace.wandb.ai"),
            ({"WANDB_BASE_URL": "https://api.wandb.ai/"}, "https://trace.wandb.ai"),
            ({"WANDB_BASE_URL": "https://wandb.acme.com"}, "https://wandb.acme.com/traces"),
            ({"WANDB_BASE_URL": "https://wandb.acme.com/"}, "https://wandb.acme.com/traces"),
            (
                {"WANDB_BASE_URL": "https://wandb.acme.com", "WF_TRACE_SERVER_URL": "https://t.acme.com/"},
                "https://t.acme.com",
            ),
            ({"WF_TRACE_SERVER_URL": "http://127.0.0.1:6345"}, "http://127.0.0.1:6345"),
        ],
    )
    def test_the_trace_server_is_found_by_weaves_own_rule(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
    ) -> None:
        """
        A server of one's own has Weave at `/traces`; the trace server's own variable wins.
        """
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        assert expected == traces().base_url
        assert "https://mine.com" == traces(base_url="https://mine.com").base_url

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({"WANDB_ENTITY": "acme", "WANDB_PROJECT": "chat"}, "acme/chat"),
            ({"WANDB_PROJECT": "acme/chat"}, "acme/chat"),
            ({"WANDB_ENTITY": "other", "WANDB_PROJECT": "acme/chat"}, "acme/chat"),
            ({"WANDB_ENTITY": "acme"}, ""),
            ({}, ""),
        ],
    )
    def test_the_project_is_put_together_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
    ) -> None:
        """
        Entity and project, or a project with a slash.
        """
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        assert (expected, PROJECT) == (WeaveExporter().project_id, traces().project_id)

    def test_annotations_are_of_the_exporters_project_and_of_the_traces_view(self) -> None:
        """
        A spec of another project is never found, and spans of the Agents view have no annotations.
        """
        for options in ({"project_id": "acme/other"}, {"project_id": PROJECT, "view": "agents"}):
            with pytest.raises(ConfigurationError) as caught:
                WeaveExporter(**{"annotations": {"helpful": SPEC}, **options})
            assert "annotations" == caught.value.setting

        assert {"helpful": SPEC} == WeaveExporter(annotations={"helpful": SPEC}).annotations

    def test_half_a_project_in_the_environment_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A project without its entity names nothing.
        """
        monkeypatch.setenv("WANDB_PROJECT", "chat")

        with pytest.raises(ConfigurationError):
            WeaveExporter()

    @pytest.mark.parametrize(
        ("setting", "given_value"),
        [
            ("api_key", 3),
            ("base_url", 3),
            ("name", ""),
            ("name", None),
            ("options", 3),
            ("project_id", 3),
            ("view", "foo"),
            ("view", None),
            ("view", ["traces"]),
            ("level", "root"),
            ("level", None),
            ("level", "conversation"),
            ("annotations", ["helpfulness"]),
            ("annotations", {"helpful": None}),
            ("annotations", {"": SPEC}),
            ("annotations", {3: SPEC}),
            ("annotations", {"helpful": "helpfulness"}),
            ("annotations", {"helpful": "weave:///acme/chat/object/helpfulness"}),
            ("annotations", {"helpful": "weave:///acme/chat/object/helpfulness:"}),
            ("annotations", {"helpful": "weave:///acme/chat/object/:9zXq"}),
            ("annotations", {"helpful": "weave:///acme/chat/op/helpfulness:9zXq"}),
            ("annotations", {"helpful": "weave:///acme/chat/call/9zXq"}),
            ("annotations", {"helpful": "weave://acme/chat/object/helpfulness:9zXq"}),
            ("annotations", {"helpful": "weave:///acme%2Fchat/object/helpfulness:9zXq"}),
            ("annotations", {"helpful": f" {SPEC}"}),
            ("annotations", {"helpful": f"{SPEC}/attr/x"}),
            ("thumbs", "rating"),
            ("thumbs", [3]),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, setting: str, given_value: Any) -> None:
        """
        What would fail later, or do nothing in silence, is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            WeaveExporter(**{setting: given_value})

        assert setting == caught.value.setting

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
    @pytest.mark.parametrize("echo", [lambda request: request.headers["authorization"], lambda _: SECRET])
    def test_the_key_is_in_no_reason(self, status: int, echo: Any) -> None:
        """
        An error that echoes the key, as it is or as the header has it, loses its text.
        """
        exporter = traces(api_key=SECRET)
        _, (result,) = play(
            exporter.exchange(exporter.parts(record(value=True))),
            lambda request: answer(status, {"reason": f"Invalid API key: {echo(request)}"}),
        )

        assert f"HTTP {status}" == result.reason

    @pytest.mark.parametrize(
        ("exporter", "setting"),
        [
            (lambda: WeaveExporter(PROJECT), "WANDB_API_KEY"),
            (lambda: WeaveExporter(api_key=SECRET), "WANDB_PROJECT"),
        ],
    )
    def test_to_deliver_it_needs_a_key_and_a_project(self, exporter: Any, setting: str) -> None:
        """
        Starting without one of them is refused, naming what to set.
        """
        with pytest.raises(ConfigurationError, match=setting) as caught:
            exporter().start()

        assert setting == caught.value.setting

    def test_its_repr_has_no_key(self) -> None:
        """
        The repr names the exporter and its place.
        """
        assert "<WeaveExporter name='weave' base_url='https://trace.wandb.ai'>" == repr(traces(api_key=SECRET))

    def test_a_purge_is_by_one_id(self) -> None:
        """
        The query compares the id and nothing else.
        """
        assert {"$eq": [{"$getField": "id"}, {"$literal": "row"}]} == purge_body(PROJECT, "row")["query"]["$expr"]


class TestRules:
    """The edges of `_weave_rules`, where the mapping leads nobody."""

    def test_the_limits_are_weaves(self) -> None:
        """
        As its server has them.
        """
        assert (1_048_576, 1024, 512) == (MAX_PAYLOAD_CHARS, MAX_NOTE_CHARS, REACTION_ROOM_CHARS)

    @pytest.mark.parametrize("text", ["X", "XX", "a", "-", "0"])
    def test_a_character_that_is_no_emoji_is_none(self, text: str) -> None:
        """
        Nothing slips in between the ranges of the table.
        """
        assert not is_one_emoji(text)

    def test_a_conversations_id_may_have_lines(self) -> None:
        """
        It is any text, and quoted.
        """
        assert weave_ref(PROJECT, "agent_conversation", "a\nb").endswith("/agent_conversation/a%0Ab")

    @pytest.mark.parametrize(("name", "is_right"), [("a.b", True), ("b", False)])
    def test_an_annotations_name_may_have_dots(self, name: str, is_right: bool) -> None:
        """
        Its reference is to the object of the whole name.
        """
        body = {
            "project_id": PROJECT,
            "feedback_type": "wandb.annotation.a.b",
            "payload": {"value": 1},
            "annotation_ref": f"weave:///{PROJECT}/object/{name}:digest",
        }

        assert is_right == (list(broken_rules(body)) == [])

    def test_a_type_of_weaves_own_may_have_lines(self) -> None:
        """
        The server asks only how it begins.
        """
        body = {"project_id": PROJECT, "feedback_type": "wandb.annotation.a\nb", "payload": {"value": 1}}

        assert not any("one of W&B's own" in rule for rule in broken_rules(body))
