import json

import pytest
from sandbox_bench import CHILD, ROOT, TRACE, span, weave_item

from otel_feedback.sandbox._weave import emoji_count, parse_ref, row_id

ID = "018f1f2a-9c2b-7d3e-b5a1-8c9d2e4f6a7b"
AGENTS = "/agents/otel/v1/traces"
AGENT = {"feedback_type": "wandb.agent_user_feedback", "payload": {}, "scorer_tags": ["good"]}


def by_id(value):
    return {"$eq": [{"$getField": "id"}, {"$literal": value}]}


def purge(bench, expression):
    return bench.call("weave", "/feedback/purge", {"project_id": "acme/chat", "query": {"$expr": expression}})


START = {
    "project_id": "acme/chat",
    "id": ID,
    "trace_id": "t-1",
    "op_name": "weave:///acme/chat/op/answer:digest",
    "started_at": "2026-11-22T12:00:00Z",
}
END = {"project_id": "acme/chat", "id": ID, "ended_at": "2026-11-22T12:00:01+00:00"}


class TestCreate:
    def test_it_is_joined_to_the_call_of_its_reference(self, bench):
        """
        A feedback is on the call whose span id its reference names.
        """
        bench.export("weave", span())
        answer = bench.weave(id=ID, creator="u-42")
        entry = bench.only()

        assert {
            "id": ID,
            "created_at": "2026-11-22T12:00:00Z",
            "wb_user_id": "sandbox-user",
            "payload": {"emoji": "👍"},
        } == (answer.json())
        assert (True, [], "u-42", "👍") == tuple(entry[name] for name in ("joined", "flags", "user", "value"))
        assert {"trace_id": TRACE, "span_id": ROOT} == entry["target"]

    def test_it_joins_when_its_span_comes_later(self, bench):
        """
        Feedback before its span is an orphan only for so long.
        """
        bench.weave()
        early = bench.only()["joined"]
        bench.export("weave", span())

        assert (False, True) == (early, bench.only()["joined"])

    @pytest.mark.parametrize(
        ("fields", "flags"),
        [
            ({"weave_ref": f"weave:///acme/chat/call/{ROOT.upper()}"}, ["upper_case_id", "unknown_span"]),
            ({"weave_ref": f"weave:///acme/chat/call/{TRACE}"}, ["trace_id_for_span_id", "unknown_span"]),
            ({"weave_ref": "weave:///acme/chat/call/0000000000000000"}, ["zero_id", "unknown_span"]),
            ({"weave_ref": f"weave:///acme/chat/call/{ID}"}, ["dashed_id", "unknown_span"]),
            ({"weave_ref": f"weave:///acme/chat/call/{ROOT}:digest"}, ["hash_in_ref", "unknown_span"]),
            ({"weave_ref": f"weave:///acme/chat/call/{CHILD}"}, ["unknown_span"]),
            ({"weave_ref": f"weave://acme/chat/call/{ROOT}"}, ["malformed_ref"]),
            ({"weave_ref": f"weave:///acme/chat/agent_span/{ROOT}"}, ["wrong_view"]),
            ({"weave_ref": f"weave:///acme/chat/agent_turn/{TRACE}"}, ["wrong_view"]),
            ({"weave_ref": f"weave:///acme/chat/agent_turn/{ROOT}"}, ["span_id_for_trace_id", "unknown_trace"]),
            ({"weave_ref": f"weave:///acme/other/call/{ROOT}"}, ["project_mismatch", "wrong_project"]),
            (
                {"project_id": "acme%2Fchat", "weave_ref": f"weave:///acme/my%20chat/call/{ROOT}"},
                ["encoded_project", "project_mismatch", "wrong_project"],
            ),
            ({"project_id": "chat"}, ["malformed_project", "project_mismatch"]),
            ({"wb_user_id": "me"}, ["client_wb_user_id"]),
            ({"feedback_type": "wandb.mine", "payload": {"value": 1}}, ["reserved_type"]),
        ],
    )
    def test_what_weave_swallows_is_flagged(self, bench, fields, flags):
        """
        A mistake that Weave answers with 200 is taken, and flagged.
        """
        bench.export("weave", span())
        answer = bench.weave(**fields)

        assert (200, flags) == (answer.status_code, bench.only()["flags"])

    def test_a_reference_into_another_project_does_not_join(self, bench):
        """
        A feedback is in its project; a reference into another one is never shown there.
        """
        bench.export("weave", span())
        bench.weave(project_id="acme/other")

        assert "the reference is in another project than the feedback" == bench.only()["reason"]

    @pytest.mark.parametrize(
        ("fields", "flags"),
        [
            ({"payload": {"emoji": "👍👎"}}, ["not_one_emoji"]),
            ({"payload": {"emoji": "ok"}}, ["not_one_emoji"]),
            ({"payload": {}}, ["not_one_emoji"]),
            ({"feedback_type": "wandb.note.1", "payload": {"note": "x" * 1025}}, ["note_length"]),
            ({"feedback_type": "wandb.note.1", "payload": {"note": ""}}, ["note_length"]),
            ({"feedback_type": "wandb.note.1", "payload": {}}, ["note_length"]),
            ({"scorer_tags": ["x"]}, ["scorer_fields"]),
            ({"feedback_type": "mine", "payload": {}, "scorer_ratings": {"a": 1}}, ["scorer_fields"]),
            ({**AGENT, "scorer_tags": []}, ["no_scorer_tags"]),
            ({"feedback_type": "wandb.annotation.x", "payload": {"value": 1}}, ["no_annotation_ref"]),
        ],
    )
    @pytest.mark.parametrize(("switch", "status"), [("refuse", 400), ("accept", 200)])
    def test_what_breaks_a_rule_of_its_type_is_refused(self, bench_with, fields, flags, switch, status):
        """
        A payload against the rules of its type answers 400 with a reason, or with the switch 200.
        """
        bench = bench_with(weave_bad_payload=switch)
        bench.export("weave", span())
        answer = bench.weave(**fields)

        assert (status, status == 400) == (answer.status_code, "reason" in answer.json())
        assert flags == [each for each in bench.flags() if not each.startswith("unknown")]

    def test_a_large_payload_is_refused(self, bench_with):
        """
        A payload over the limit, as ASCII JSON, answers 400 whatever the switch about payloads says.
        """
        bench = bench_with(weave_payload_limit_bytes=40, weave_bad_payload="accept")
        answers = [bench.weave(feedback_type="mine", payload={"value": text}) for text in ("x" * 20, "é" * 20)]

        assert [200, 400] == [answer.status_code for answer in answers]

    @pytest.mark.parametrize(
        ("fields", "where"),
        [
            ({"payload": "x"}, ["body", "payload"]),
            ({"weave_ref": None}, ["body", "weave_ref"]),
            ({"colour": "red"}, ["body", "colour"]),
        ],
    )
    def test_what_breaks_the_contract_is_unprocessable(self, bench, fields, where):
        """
        A body against the contract answers 422 with the place in it.
        """
        answer = bench.weave(**fields)

        assert (422, where) == (answer.status_code, answer.json()["detail"][0]["loc"])

    def test_what_is_no_json_is_unprocessable(self, bench):
        """
        A body that is no JSON answers 422.
        """
        answer = bench.call("weave", "/feedback/create", content=b"{")

        assert (422, ["unreadable_body"]) == (answer.status_code, bench.flags())

    @pytest.mark.parametrize(
        ("feedback_type", "payload", "more", "kind", "name", "value"),
        [
            ("wandb.note.1", {"note": "hi"}, {}, "note", "note", "hi"),
            ("stars", {"value": 3}, {}, "custom", "stars", 3),
            ("stars", {"n": 3}, {}, "custom", "stars", {"n": 3}),
            ("wandb.annotation.tone", {"value": "dry"}, {"annotation_ref": "r"}, "annotation", "tone", "dry"),
            ("wandb.runnable.judge", {"value": 1}, {"scorer_tags": ["x"]}, "custom", "wandb.runnable.judge", 1),
        ],
    )
    def test_it_is_told_in_plain_words(self, bench, feedback_type, payload, more, kind, name, value):
        """
        The state says what kind of thing was said, under which name, and its value.
        """
        bench.weave(feedback_type=feedback_type, payload=payload, **more)
        entry = bench.only()

        assert (kind, name, value) == (entry["kind"], entry["name"], entry["value"])


class TestSwitches:
    def test_an_old_server_does_not_know_newer_fields(self, bench_with):
        """
        A field that the switch names answers 422, like one that no version has.
        """
        bench = bench_with(weave_refused_fields=("creator",))

        assert [200, 422] == [bench.weave(**fields).status_code for fields in ({}, {"creator": "me"})]
        assert "undeclared_field" in bench.flags()

    def test_undeclared_fields_can_be_ignored(self, bench_with):
        """
        With the switch on, a field that no version has is passed over.
        """
        assert 200 == bench_with(weave_undeclared_fields="ignore").weave(colour="red").status_code

    def test_a_field_of_the_newest_client_is_known(self, bench):
        """
        Fields younger than the published page are taken.
        """
        assert 200 == bench.weave(span_trace_id="").status_code

    def test_projects_can_be_unknown(self, bench_with):
        """
        With a list of projects, any other answers 404.
        """
        bench = bench_with(weave_projects=("acme/chat",))
        batch = {"batch": [weave_item(project_id="a/b")]}

        assert [200, 404] == [bench.weave(project_id=name).status_code for name in ("acme/chat", "a/b")]
        assert 404 == bench.call("weave", "/feedback/batch/create", batch).status_code

    def test_the_batch_address_can_be_missing(self, bench_with):
        """
        An older server answers 404 to a batch.
        """
        bench = bench_with(weave_batch=False)

        assert 404 == bench.call("weave", "/feedback/batch/create", {"batch": []}).status_code

    def test_rows_of_one_id_collapse_eventually(self, bench_with):
        """
        Two rows of one identity stand side by side until the time that the switch says.
        """
        bench = bench_with(weave_collapse_after_millis=1_000)
        bench.weave(id=ID, payload={"emoji": "👍"})
        bench.weave(id=ID, payload={"emoji": "👎"})
        early = len(bench.state()["effective"]["weave"])
        bench.clock.advance(millis=1_000)

        assert 2 == early
        assert [{"emoji": "👎"}] == [row["payload"] for row in bench.state()["effective"]["weave"]]

    @pytest.mark.parametrize(("switch", "status"), [("accept", 200), ("refuse", 404)])
    def test_purging_nothing_does_what_the_switch_says(self, bench_with, switch, status):
        """
        Purging or replacing what is not there answers 200 or 404.
        """
        bench = bench_with(weave_purge_unknown=switch)

        assert status == purge(bench, by_id(ID)).status_code
        assert status == bench.call("weave", "/feedback/replace", weave_item(feedback_id=ID)).status_code


class TestChange:
    def test_the_same_id_collapses(self, bench):
        """
        Two rows with one project, reference and id are one, the later; the same thing twice is counted.
        """
        bench.weave(id=ID)
        bench.weave(id=ID)

        assert (1, 2) == (len(bench.state()["effective"]["weave"]), bench.only()["times"])

    def test_the_same_id_elsewhere_is_flagged(self, bench):
        """
        One id on two targets is two rows, and flagged.
        """
        bench.weave(id=ID)
        bench.weave(id=ID, span_id=CHILD)

        assert 2 == len(bench.state()["effective"]["weave"])
        assert "repeated_id" in bench.flags()

    def test_purging_by_id_removes(self, bench):
        """
        What is purged is no longer seen, and is no orphan; ids may be joined by or.
        """
        for each in ("a", "b", "c"):
            bench.weave(id=each)
        answer = purge(bench, {"$or": [by_id("a"), by_id("b")]})
        state = bench.state()

        assert 200 == answer.status_code
        assert ["c"] == [row["id"] for row in state["effective"]["weave"]]
        assert [True, True, False] == [entry["removed"] for entry in state["feedback"]]

    @pytest.mark.parametrize(
        "expression",
        [
            {"$gt": [{"$getField": "id"}, {"$literal": "a"}]},
            {"$or": []},
            {"$or": [by_id("a"), {"$eq": [{"$getField": "creator"}, {"$literal": "me"}]}]},
            {"$eq": [{"$getField": "id"}, {"$literal": 1}]},
        ],
    )
    def test_purging_otherwise_is_refused(self, bench, expression):
        """
        Only ids may be purged by.
        """
        bench.weave(id="a")

        assert (400, 1) == (purge(bench, expression).status_code, len(bench.state()["effective"]["weave"]))

    def test_replacing_puts_one_in_anothers_place(self, bench):
        """
        The replaced row is gone, under the same id or another; the new one stands.
        """
        bench.weave(id="a")
        answer = bench.call("weave", "/feedback/replace", weave_item(id="a", feedback_id="a", payload={"emoji": "👎"}))
        state = bench.state()

        assert (200, "a") == (answer.status_code, answer.json()["id"])
        assert [("a", {"emoji": "👎"})] == [(row["id"], row["payload"]) for row in state["effective"]["weave"]]
        assert [True, False] == [entry["removed"] for entry in state["feedback"]]

    @pytest.mark.parametrize(("fields", "status"), [({"payload": {}}, 400), ({"payload": 1}, 422)])
    def test_a_bad_replacement_changes_nothing(self, bench, fields, status):
        """
        A refused replacement leaves the row as it is.
        """
        bench.weave(id="a")
        answer = bench.call("weave", "/feedback/replace", weave_item(feedback_id="a", **fields))

        assert (status, False) == (answer.status_code, bench.only()["removed"])

    def test_a_purge_against_the_contract_is_unprocessable(self, bench):
        """
        A purge needs a query.
        """
        assert 422 == bench.call("weave", "/feedback/purge", {"project_id": "acme/chat"}).status_code


class TestBatch:
    def test_it_is_all(self, bench):
        """
        A batch answers one row for each item, in order.
        """
        answer = bench.call("weave", "/feedback/batch/create", {"batch": [weave_item(id="a"), weave_item()]})

        assert (200, ["a", row_id(bench.clock.now, 1, 1)]) == (
            answer.status_code,
            [row["id"] for row in answer.json()["res"]],
        )

    @pytest.mark.parametrize(("bad", "status"), [({"payload": {}}, 400), ({"colour": 1}, 422), ({"id": 1}, 422)])
    def test_or_nothing(self, bench, bad, status):
        """
        One bad item refuses the whole batch.
        """
        answer = bench.call("weave", "/feedback/batch/create", {"batch": [weave_item(), weave_item(**bad)]})

        assert (status, []) == (answer.status_code, bench.state()["feedback"])


class TestQuery:
    def ask(self, bench, **fields):
        return bench.call("weave", "/feedback/query", {"project_id": "acme/chat", **fields})

    def test_it_answers_a_projects_rows(self, bench):
        """
        A query answers the rows of its project, and how many there are.
        """
        bench.weave(id="a")
        bench.weave(id="b", project_id="acme/other")
        answer = self.ask(bench, query={"$expr": by_id("a")}).json()

        assert ([("a", "sandbox-user")], 1) == (
            [(row["id"], row["wb_user_id"]) for row in answer["result"]],
            answer["total_count"],
        )

    def test_an_unreadable_expression_is_refused(self, bench):
        """
        An operator that the sandbox does not know answers 400 with a reason.
        """
        bench.weave()

        assert 400 == self.ask(bench, query={"$expr": {"$near": []}}).status_code

    def test_one_against_the_contract_is_unprocessable(self, bench):
        """
        A limit is a number.
        """
        assert 422 == self.ask(bench, limit="x").status_code


class TestAgentsView:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            (f"agent_span/{ROOT}", {"trace_id": TRACE, "span_id": ROOT}),
            (f"agent_turn/{TRACE}", {"trace_id": TRACE, "span_id": None}),
            ("agent_conversation/a%2Fb", {"trace_id": None, "span_id": None}),
        ],
    )
    def test_feedback_is_joined_by_span_turn_or_conversation(self, bench, target, expected):
        """
        References of the Agents view name a span, a trace, or a quoted conversation.
        """
        bench.export("weave", span(gen_ai__conversation__id="a/b"), path=AGENTS)
        bench.weave(weave_ref=f"weave:///acme/chat/{target}", **AGENT, scorer_ratings={"_rating_": 1})
        entry = bench.only()

        assert (True, expected, "agent_user_feedback") == (entry["joined"], entry["target"], entry["kind"])
        assert {"scorer_tags": ["good"], "scorer_ratings": {"_rating_": 1}} == entry["value"]

    def test_a_call_reference_is_in_the_wrong_view(self, bench):
        """
        A span of the Agents view is no call.
        """
        bench.export("weave", span(), path=AGENTS)
        bench.weave()

        assert ["wrong_view"] == bench.only()["flags"]

    def test_other_types_are_shown_in_the_chat_only(self, bench):
        """
        A note on a span of the Agents view is joined, and it is said where it is not seen.
        """
        bench.export("weave", span(), path=AGENTS)
        bench.weave(weave_ref=f"weave:///acme/chat/agent_span/{ROOT}")
        entry = bench.only()

        assert (True, []) == (entry["joined"], entry["flags"])
        assert "the list of conversations shows wandb.agent_user_feedback only" in entry["reason"]

    def test_an_unknown_conversation_is_flagged(self, bench):
        """
        A conversation that no span names is unknown.
        """
        bench.weave(weave_ref="weave:///acme/chat/agent_conversation/c", **AGENT)

        assert ["unknown_conversation"] == bench.only()["flags"]


class TestExport:
    def test_the_resources_project_wins_over_the_header(self, bench):
        """
        Entity and project of the resource say where spans go, else the header.
        """
        bench.export("weave", span(), resource={"wandb.entity": "acme", "wandb.project": "other"})
        bench.export("weave", span(), resource={"wandb.entity": "acme"})

        assert ["acme/other", "acme/chat"] == [each["project"] for each in bench.state()["spans"]]

    def test_spans_without_a_project_are_thrown_away(self, bench):
        """
        Spans without a project are rejected with 200, and flagged.
        """
        answer = bench.export("weave", span(), project_id="")

        assert (200, [], ["dropped_span"]) == (answer.status_code, bench.state()["spans"], bench.flags())

    def test_one_that_is_none_is_refused(self, bench):
        """
        Bytes that are no export request answer 400.
        """
        answer = bench.call("weave", "/otel/v1/traces", content=b"\xff\xff\xff")

        assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())


class TestClient:
    def spans(self, bench):
        return [
            (each["span_id"], each["trace_id"], each["name"], each["end_time_unix_nano"] - each["start_time_unix_nano"])
            for each in bench.state()["spans"]
        ]

    def test_whole_calls_are_spans(self, bench):
        """
        A call that comes whole is a span whose id is the call's, and takes feedback.
        """
        bench.call("weave", "/v2/acme/chat/calls/complete", {"batch": [{**START, **END}]})
        bench.weave(weave_ref=f"weave:///acme/chat/call/{ID}")

        assert [(ID, "t-1", "answer", 1_000_000_000)] == self.spans(bench)
        assert (True, []) == (bench.only()["joined"], bench.only()["flags"])

    @pytest.mark.parametrize("at_once", [True, False])
    def test_a_call_may_come_in_two_halves(self, bench, at_once):
        """
        Start and end of a call, in one batch or two requests, are one span.
        """
        if at_once:
            batch = [{"mode": "start", "req": {"start": START}}, {"mode": "end", "req": {"end": END}}]
            bench.call("weave", "/call/upsert_batch", {"batch": batch})
        else:
            bench.call("weave", "/v2/acme/chat/call/start", {"start": START})
            bench.call("weave", "/v2/acme/chat/call/end", {"end": END})

        assert [(ID, "t-1", "answer", 1_000_000_000)] == self.spans(bench)

    def test_a_running_call_is_a_span_already(self, bench):
        """
        A call that only began is there; its trace is itself where it names none, its op's name may be plain.
        """
        start = {**START, "trace_id": None, "op_name": "answer"}
        bench.call("weave", "/v2/acme/chat/call/start", {"start": start})

        assert [(ID, ID, "answer", 0)] == self.spans(bench)

    def test_an_end_without_a_start_is_nothing(self, bench):
        """
        The end of a call that nobody began leaves nothing.
        """
        batch = {"batch": [{"req": {"end": END}}, {"req": {}}]}
        answers = [
            bench.call("weave", "/v2/acme/chat/call/end", {"end": END}),
            bench.call("weave", "/call/upsert_batch", batch),
        ]

        assert [200, 200] == [answer.status_code for answer in answers]
        assert [] == self.spans(bench)

    @pytest.mark.parametrize(
        "path", ["/graphql", "/call/upsert_batch", "/v2/a/b/calls/complete", "/v2/a/b/call/start", "/v2/a/b/call/end"]
    )
    @pytest.mark.parametrize("content", [b"{", b"[]"])
    def test_what_is_no_object_is_unprocessable(self, bench, path, content):
        """
        A body that is no JSON object answers 422.
        """
        assert 422 == bench.call("weave", path, content=content).status_code

    @pytest.mark.parametrize("start", [{}, {**START, "started_at": "noon"}, {**START, "started_at": 1}])
    def test_half_a_call_is_unprocessable(self, bench, start):
        """
        A call without an id or a time answers 422, and nothing is kept of its request.
        """
        body = {"batch": [START, {"id": "x", **start}]}

        assert 422 == bench.call("weave", "/v2/acme/chat/calls/complete", body).status_code
        assert [] == self.spans(bench)

    def test_it_learns_who_it_is(self, bench):
        """
        The account's own API says who the user is, and that a project is there.
        """
        data = bench.call("weave", "/graphql", {"query": "…", "variables": {"name": "chat"}}).json()["data"]

        assert ("sandbox", "chat") == (data["viewer"]["username"], data["project"]["name"])

    def test_objects_are_acknowledged(self, bench):
        """
        An object gets a digest and is forgotten; equal objects have equal digests.
        """
        digests = {bench.call("weave", path, {"obj": 1}).json()["digest"] for path in ("/obj/create", "/file/create")}

        assert 1 == len(digests)

    def test_the_server_takes_every_version(self, bench):
        """
        The server's least client version is below any.
        """
        info = bench.call("weave", "/server_info", method="GET").json()

        assert "0.0.1" == info["min_required_weave_python_version"]


class TestAuthorization:
    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": "Basic YXBpOmtleQ=="},
            {"authorization": "basic YXBpOmtleQ=="},
            {"authorization": "", "wandb-api-key": "key"},
        ],
    )
    def test_a_key_comes_as_basic_or_in_a_header_of_its_own(self, bench, headers):
        """
        The user of HTTP Basic is api; exporters may send the key in a header instead.
        """
        assert 200 == bench.call("weave", "/server_info", method="GET", headers=headers).status_code

    @pytest.mark.parametrize(
        "value",
        ["", "Bearer key", "Basic !", "Basic /w==", "Basic YXBpOg==", "Basic bWU6a2V5", "Basic YXBpOmJhZA=="],
    )
    def test_anything_else_is_unauthorized(self, bench_with, value):
        """
        No key, another scheme, another user, rubbish, and the refused key answer 401.
        """
        bench = bench_with(refused_api_key="bad")
        answer = bench.call("weave", "/server_info", method="GET", headers={"authorization": value})

        assert (401, ["unauthorized"]) == (answer.status_code, bench.flags())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("👍", 1),
        ("👍🏽", 1),
        ("❤️", 1),
        ("👨‍👩‍👧", 1),
        ("🇳🇱", 1),
        ("1️⃣", 1),
        ("👍👍", 2),
        ("", 0),
        ("a", 0),
        ("👍!", 0),
        ("1", 0),
        (None, 0),
    ],
)
def test_emoji_are_counted_as_people_see_them(text, count):
    """
    Skin tones, joiners, flags and keycaps are part of their emoji; other text is none.
    """
    assert count == emoji_count(text)


def test_a_reference_without_a_known_kind_has_no_form():
    """
    A reference to an object cannot join.
    """
    assert parse_ref("weave:///acme/chat/object/name:digest") is None


def test_a_made_id_is_a_uuid_of_version_7():
    """
    The server's ids sort by time, and differ within a batch.
    """
    ids = [row_id(1_700_000_000_000 * 1_000_000, 5, index) for index in (0, 1)]

    assert ["018bcfe5-6800-7000-8000-000000000005", "018bcfe5-6800-7001-8000-000000000005"] == ids
    assert json.dumps(ids) == json.dumps(sorted(ids))
