from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
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

from otel_feedback import WeaveExporter
from otel_feedback._record import part_id
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import Result, Success
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.exporters.weave import check_project_id, purge_body, weave_ref
from otel_feedback.testing import ExporterContract

CREATE, REPLACE, PURGE = "/feedback/create", "/feedback/replace", "/feedback/purge"
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
OTHER_FIELDS: Mapping[str, Any] = {
    "feedback_type": "custom",
    "creator": "Jane Smith",
    "annotation_ref": "weave:///acme/chat/object/name:digest",
    "runnable_ref": "weave:///acme/chat/op/name:digest",
    "call_ref": "weave:///acme/chat/call/call_id",
    "trigger_ref": "weave:///acme/chat/object/name:digest",
    "queue_id": "018f1f2a-9c2b-7d3e-b5a1-8c9d2e4f6a7b",
}


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


class TestReferences:
    @pytest.mark.parametrize(
        ("view", "expected"),
        [("traces", f"weave:///acme/chat/call/{SPAN}"), ("agents", f"weave:///acme/chat/agent_span/{SPAN}")],
    )
    def test_a_reference_is_to_the_span_itself(self, view: Any, expected: str) -> None:
        """
        The span's id in lower-case hex, with its zeros, neither the root's nor the trace's.
        """
        reference = weave_ref(PROJECT, handle(), view)

        assert expected == reference
        assert (False, False) == (ROOT in reference, TRACE in reference)

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
    def test_one_call_a_part(self) -> None:
        """
        Each part is created by itself, as the user `api` with the key as its password.
        """
        exporter = traces(api_key=SECRET)
        requests, results = play(exporter.exchange(exporter.parts(record(value=True, comment="c"))))

        basic = base64.b64encode(f"api:{SECRET}".encode()).decode()
        assert [Success("HTTP 200")] * 2 == results
        assert [("https://trace.wandb.ai/feedback/create", f"Basic {basic}")] * 2 == [
            (str(request.url), request.headers["authorization"]) for request in requests
        ]

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

    def test_what_is_not_there_is_created_instead(self) -> None:
        """
        After a 404 to a replacement the row is created under the same id, without the field of a replacement.
        """
        exporter = traces()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(404), answer(200))

        assert ([REPLACE, CREATE], [Success("HTTP 200")]) == (paths(requests), results)
        assert parts[0].body == asked(requests[1])[1]

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

    def test_what_is_not_there_is_as_good_as_purged(self) -> None:
        """
        A purge that Weave answers 404 to is a success, not a pause.
        """
        exporter = traces()
        parts = taken_back(exporter.parts(record(value=True)))

        assert [Success("HTTP 404: it was not there")] == play(exporter.exchange(parts), answer(404))[1]

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
            if path != PURGE:
                assert_allowed(body)

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
    @pytest.mark.parametrize(("name", "value"), OTHER_FIELDS.items())
    def test_each_published_field_can_be_set(self, name: str, value: object) -> None:
        """
        A field is sent as it is given.
        """
        assert value == bodies(traces(), value=0.5, native={"weave": {name: value}})["value"][name]

    @pytest.mark.parametrize(("name", "value"), SCORER_FIELDS.items())
    @pytest.mark.parametrize("kind", [AGENT, "wandb.agent_monitor", "wandb.runnable.judge"])
    def test_a_scorers_fields_go_with_a_scorers_types(self, kind: str, name: str, value: object) -> None:
        """
        On the types that Weave allows them on, the fields are sent as they are given.
        """
        native = {"feedback_type": kind, name: value}

        assert value == bodies(traces(), value=0.5, native={"weave": native})["value"][name]

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
        native = {"creator": "Jane", "queue_id": "q-1", "call_ref": "weave:///acme/chat/call/1"}
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
