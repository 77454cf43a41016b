import pytest
from sandbox_bench import CHILD, ROOT, TRACE, otlp, span

from otel_feedback.sandbox._braintrust import ADDRESS, btql_conditions, project_id

EXPERIMENT = "7d0f4c52-0d5c-4d06-9b0f-0a3b2f1d9a10"


def rows(bench):
    return bench.state()["effective"]["braintrust"]["rows"]


class TestFeedback:
    def test_it_is_joined_to_the_row_of_its_id(self, bench):
        """
        A feedback is on the span whose id is the row's, in the project it was posted to.
        """
        bench.export("braintrust", span())
        answer = bench.braintrust({"id": ROOT, "scores": {"rating": 1}})
        entry = bench.only()

        assert (200, {"status": "success"}) == (answer.status_code, answer.json())
        assert (True, [], "project_name:sandbox") == (entry["joined"], entry["flags"], entry["project"])
        assert {"trace_id": TRACE, "span_id": ROOT} == entry["target"]

    def test_each_thing_it_says_is_an_entry(self, bench):
        """
        Scores, comment, expected and tags of one item are seen singly, with their user and id.
        """
        metadata = {"user_id": "u-42", "feedback_id": "f-1"}
        bench.export("braintrust", span())
        bench.braintrust(
            {"id": ROOT, "scores": {"a": 1, "b": 0}, "comment": "c", "expected": 4, "tags": ["t"], "metadata": metadata}
        )
        feedback = bench.state()["feedback"]

        assert [("score", "a"), ("score", "b"), ("comment", "comment"), ("expected", "expected"), ("tags", "tags")] == [
            (entry["kind"], entry["name"]) for entry in feedback
        ]
        assert [1, 0, "c", 4, ["t"]] == [entry["value"] for entry in feedback]
        assert {("u-42", "f-1")} == {(entry["user"], entry["id"]) for entry in feedback}

    def test_metadata_alone_is_an_entry(self, bench):
        """
        An item with nothing but metadata leaves an audit entry, which is seen and is not empty.
        """
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "metadata": {"label": "kind", "user_id": "u-42"}})
        entry = bench.only()

        assert ("metadata", {"label": "kind", "user_id": "u-42"}, "u-42") == (
            entry["kind"],
            entry["value"],
            entry["user"],
        )
        assert (True, []) == (entry["joined"], bench.flags())

    def test_a_row_shows_the_last_of_everything(self, bench):
        """
        Scores merge by name, expected is replaced, tags are a union, comments are added.
        """
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "scores": {"a": 1, "b": 1}, "comment": "x", "expected": 1, "tags": ["t", "u"]})
        bench.braintrust({"id": ROOT, "scores": {"a": 0}, "comment": "y", "expected": None, "tags": ["u", "v"]})

        assert {
            "project": "project_name:sandbox",
            "scores": {"a": 0, "b": 1},
            "expected": None,
            "tags": ["t", "u", "v"],
            "comments": ["x", "y"],
            "is_span": True,
        } == rows(bench)[ROOT]

    @pytest.mark.parametrize(
        ("row_id", "flags"),
        [
            (ROOT.upper(), ["upper_case_id", "unknown_span", "stray_row"]),
            ("0af76519-16cd-43dd-8448-eb211c80319c", ["dashed_id", "unknown_span", "stray_row"]),
            (TRACE, ["trace_id_for_span_id", "unknown_span", "stray_row"]),
            ("0" * 16, ["zero_id", "unknown_span", "stray_row"]),
            (CHILD, ["unknown_span", "stray_row"]),
        ],
    )
    def test_a_miss_makes_a_stray_row(self, bench, row_id, flags):
        """
        A row id that is no span's is answered with 200, and makes a row of its own.
        """
        bench.export("braintrust", span())
        answer = bench.braintrust({"id": row_id, "scores": {"a": 1}})

        assert 200 == answer.status_code
        assert (False, flags) == (bench.only()["joined"], bench.only()["flags"])
        assert not rows(bench)[row_id]["is_span"]

    def test_the_wrong_project_is_named(self, bench):
        """
        A span of another project is not met; the flag says where it is.
        """
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "scores": {"a": 1}}, project=project_id("other"))
        state = bench.state()

        assert ["wrong_project", "stray_row"] == bench.only()["flags"]
        assert [ROOT, f"project_id:{project_id('other')}/{ROOT}"] == list(rows(bench))
        assert state["flags"][0]["detail"].startswith(f"{ROOT} is in project_name:sandbox, not in project_id:")

    def test_an_experiment_has_rows_of_its_own(self, bench):
        """
        A span sent to an experiment takes feedback posted to that experiment.
        """
        headers = {"x-bt-parent": f"experiment_id:{EXPERIMENT}"}
        bench.export("braintrust", span(), **headers)
        bench.call("braintrust", f"/v1/experiment/{EXPERIMENT}/feedback", {"feedback": [{"id": ROOT, "comment": "x"}]})

        assert (True, f"experiment_id:{EXPERIMENT}") == (bench.only()["joined"], bench.only()["project"])

    def test_a_repeated_comment_is_flagged(self, bench):
        """
        The same comment twice is two comments at Braintrust; another one's is none of its business.
        """
        for user in ("a", "a", "b"):
            bench.braintrust({"id": ROOT, "comment": "same", "metadata": {"user_id": user}})
        first, second = bench.state()["feedback"]

        assert (2, True) == (first["times"], "repeated_comment" in first["flags"])
        assert (1, False) == (second["times"], "repeated_comment" in second["flags"])
        assert ["same"] * 3 == rows(bench)[ROOT]["comments"]

    def test_tags_on_a_child_row_are_flagged(self, bench):
        """
        Tags belong on root rows; on others they are taken and flagged.
        """
        bench.export("braintrust", span(), span(CHILD, ROOT))
        bench.braintrust({"id": CHILD, "tags": ["t"]}, {"id": ROOT, "tags": ["t"]})

        assert [["child_tags"], []] == [entry["flags"] for entry in bench.state()["feedback"]]

    def test_a_repeated_tag_and_an_empty_item_are_flagged(self, bench):
        """
        A tag twice in one list is flagged; an item with nothing but an id makes nothing to see.
        """
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "tags": ["t", "t"]})
        bench.braintrust({"id": CHILD})

        assert ["empty_item", "repeated_tag"] == bench.flags()
        assert not rows(bench)[CHILD]["is_span"]

    @pytest.mark.parametrize(
        ("item", "flags"),
        [
            ({"id": ROOT, "scores": {"a": True}}, ["contract", "boolean_score"]),
            ({"id": ROOT, "scores": {"a": 1.5}}, ["contract", "score_out_of_range"]),
            ({"id": ROOT, "scores": {"a": "1"}}, ["contract"]),
            ({"id": ROOT, "scores": [1]}, ["contract"]),
            ({"scores": {"a": 1}}, ["contract"]),
            ("x", ["contract"]),
        ],
    )
    def test_what_breaks_the_contract_is_refused(self, bench, item, flags):
        """
        A body against the contract answers 400 with a text that holds an address.
        """
        answer = bench.braintrust(item)

        assert (400, True) == (answer.status_code, ADDRESS in answer.text)
        assert flags == bench.flags()

    @pytest.mark.parametrize("content", [b"[]", b'{"feedback": 1}'])
    def test_a_body_of_another_form_is_refused(self, bench, content):
        """
        A body that holds no list of items answers 400.
        """
        path = f"/v1/project_logs/{bench.project}/feedback"

        assert 400 == bench.call("braintrust", path, content=content).status_code
        assert ["contract"] == bench.flags()

    @pytest.mark.parametrize("verb", ["feedback", "insert", "fetch"])
    def test_an_object_is_a_uuid(self, bench, verb):
        """
        An object that is no uuid answers 400.
        """
        answer = bench.call("braintrust", f"/v1/project_logs/sandbox/{verb}", {"feedback": []})

        assert (400, ["contract"]) == (answer.status_code, bench.flags())

    def test_what_is_no_json_is_refused(self, bench):
        """
        A body that is no JSON answers 400 with a text.
        """
        answer = bench.call("braintrust", "/v1/project", content=b"{")

        assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())


def test_each_answer_has_a_request_id(bench):
    """
    An answer carries the id that Braintrust's support asks for, a refusal too.
    """
    answers = [bench.braintrust({"id": ROOT, "comment": "c"}), bench.braintrust({"id": 1})]

    assert ["0" * 31 + "1", "0" * 31 + "2"] == [each.headers["x-bt-internal-trace-id"] for each in answers]


class TestSwitches:
    @pytest.mark.parametrize(("switch", "scores"), [("delete", {}), ("keep", {"a": None}), ("ignore", {"a": 1})])
    def test_a_null_score_does_what_the_switch_says(self, bench_with, switch, scores):
        """
        A null score deletes, stays as null, or changes nothing.
        """
        bench = bench_with(braintrust_null_score=switch)
        bench.braintrust({"id": ROOT, "scores": {"a": 1}})
        bench.braintrust({"id": ROOT, "scores": {"a": None}})

        assert scores == rows(bench)[ROOT]["scores"]

    @pytest.mark.parametrize(("switch", "scores", "joined"), [("merge", {"a": 1}, True), ("overwrite", {}, False)])
    def test_early_feedback_does_what_the_switch_says(self, bench_with, switch, scores, joined):
        """
        An arriving span keeps the scores of its row, or overwrites them; comments are no part of the row.
        """
        bench = bench_with(braintrust_early_feedback=switch)
        bench.braintrust({"id": ROOT, "scores": {"a": 1}, "comment": "c"})
        bench.export("braintrust", span())
        score, comment = bench.state()["feedback"]

        assert (scores, ["c"], True) == tuple(rows(bench)[ROOT][name] for name in ("scores", "comments", "is_span"))
        assert (joined, True) == (score["joined"], comment["joined"])
        assert joined is ("overwritten" not in score["flags"])

    def test_late_feedback_is_never_overwritten(self, bench_with):
        """
        Feedback after its span stands, whatever happens to early feedback.
        """
        bench = bench_with(braintrust_early_feedback="overwrite")
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "scores": {"a": 1}})

        assert (True, {"a": 1}) == (bench.only()["joined"], rows(bench)[ROOT]["scores"])

    def test_tags_on_child_rows_can_be_refused(self, bench_with):
        """
        With the switch on, tags are taken on root rows only.
        """
        bench = bench_with(braintrust_child_tags="refuse")
        bench.export("braintrust", span(), span(CHILD, ROOT))

        assert [200, 400, 200] == [
            bench.braintrust(item).status_code
            for item in ({"id": ROOT, "tags": ["t"]}, {"id": CHILD, "tags": ["t"]}, {"id": CHILD, "comment": "c"})
        ]

    @pytest.mark.parametrize("status", [400, 413])
    def test_a_batch_can_be_too_large(self, bench_with, status):
        """
        With a limit, a larger batch answers what the switch says.
        """
        bench = bench_with(braintrust_batch_limit=1, braintrust_batch_limit_status=status)
        items = [{"id": ROOT, "comment": "c"}, {"id": CHILD, "comment": "c"}]

        assert (200, status) == (bench.braintrust(items[0]).status_code, bench.braintrust(*items).status_code)
        assert "batch_too_large" in bench.flags()

    def test_a_body_can_be_too_large(self, bench_with):
        """
        With a limit, a larger body answers 413.
        """
        bench = bench_with(braintrust_body_limit_bytes=100)

        assert 413 == bench.braintrust({"id": ROOT, "comment": "c" * 100}).status_code
        assert ["body_too_large"] == bench.flags()

    @pytest.mark.parametrize(
        ("switch", "status", "comments"), [("both", 200, ["x", "y"]), ("last", 200, ["y"]), ("refuse", 400, None)]
    )
    def test_a_row_twice_in_a_request_does_what_the_switch_says(self, bench_with, switch, status, comments):
        """
        One row twice in a request counts twice, once, or not at all, and is flagged.
        """
        bench = bench_with(braintrust_row_twice=switch)
        answer = bench.braintrust({"id": ROOT, "comment": "x"}, {"id": ROOT, "comment": "y"})

        assert (status, True) == (answer.status_code, "row_twice" in bench.flags())
        assert comments == rows(bench).get(ROOT, {}).get("comments")

    def test_an_unknown_object_can_be_refused(self, bench_with):
        """
        With the switch on, only objects that exist or got spans are known.
        """
        bench = bench_with(braintrust_unknown_object="refuse")
        bench.export("braintrust", span(), **{"x-bt-parent": f"experiment_id:{EXPERIMENT.upper()}"})
        item = {"id": ROOT, "comment": "c"}

        assert 200 == bench.braintrust(item).status_code
        assert 400 == bench.braintrust(item, project=project_id("other")).status_code
        assert 200 == bench.call("braintrust", f"/v1/experiment/{EXPERIMENT}/feedback", {"feedback": []}).status_code


class TestInsert:
    PATH = f"/v1/project_logs/{project_id('sandbox')}/insert"

    def test_a_child_row_is_joined_to_its_parent(self, bench):
        """
        One rater's scores in a row of their own are about the span that the row is a child of.
        """
        bench.export("braintrust", span())
        event = {"id": "f-1", "span_parents": [ROOT], "root_span_id": TRACE, "scores": {"a": 1}}
        answer = bench.call("braintrust", self.PATH, {"events": [event]})
        entry = bench.only()

        assert {"row_ids": ["f-1"]} == answer.json()
        assert (True, "f-1", {"trace_id": TRACE, "span_id": ROOT}) == (entry["joined"], entry["id"], entry["target"])

    def test_its_trace_is_its_parents_where_it_names_none(self, bench):
        """
        Without a root span id the trace is the one of the parent.
        """
        bench.export("braintrust", span())
        bench.call("braintrust", self.PATH, {"events": [{"span_parents": [ROOT], "scores": {"a": 1}}]})

        assert TRACE == bench.only()["target"]["trace_id"]

    def test_a_child_of_nothing_is_an_orphan(self, bench):
        """
        A child row whose parent is no row is an orphan.
        """
        bench.call("braintrust", self.PATH, {"events": [{"id": "f-1", "span_parents": [ROOT], "comment": "c"}]})

        assert not bench.only()["joined"]

    def test_a_row_takes_feedback_like_a_span(self, bench):
        """
        Rows written by Braintrust's own client have ids of their own, and are met by them.
        """
        (row_id,) = bench.call("braintrust", self.PATH, {"events": [{"scores": {"a": 1}}]}).json()["row_ids"]
        bench.braintrust({"id": row_id, "comment": "c"})

        assert bench.only()["joined"]

    @pytest.mark.parametrize(("merge", "scores"), [(True, {"a": 1, "b": 1}), (False, {"b": 1})])
    def test_writing_again_replaces_or_merges(self, bench, merge, scores):
        """
        A row written again is replaced, unless it is to be merged.
        """
        bench.call("braintrust", self.PATH, {"events": [{"id": "r", "scores": {"a": 1}}]})
        bench.call("braintrust", self.PATH, {"events": [{"id": "r", "scores": {"b": 1}, "_is_merge": merge}]})

        assert scores == rows(bench)["r"]["scores"]

    def test_a_deleted_row_is_gone_with_what_it_said(self, bench):
        """
        What was said by a row stays in the account of what came, as removed; others' rows stand.
        """
        bench.export("braintrust", span())
        for name in ("r", "s"):
            event = {"id": name, "span_parents": [ROOT], "scores": {"a": 1}}
            bench.call("braintrust", self.PATH, {"events": [event]})
        bench.call("braintrust", self.PATH, {"events": [{"id": "r", "_object_delete": True}]})

        assert {ROOT, "s"} == rows(bench).keys()
        assert {"r": True, "s": False} == {entry["id"]: entry["removed"] for entry in bench.state()["feedback"]}

    def test_one_against_the_contract_is_refused(self, bench):
        """
        A row's scores are numbers within 0 and 1.
        """
        answer = bench.call("braintrust", self.PATH, {"events": [{"scores": {"a": 2}}]})

        assert 400 == answer.status_code


class TestReading:
    def test_fetch_answers_the_rows_of_one_object(self, bench):
        """
        Fetching answers an object's rows, by either method, and no other's.
        """
        bench.export("braintrust", span())
        bench.braintrust({"id": ROOT, "scores": {"a": 1}, "comment": "c"})
        bench.braintrust({"id": ROOT, "scores": {"a": 0}}, project=project_id("other"))
        path = f"/v1/project_logs/{bench.project}/fetch"
        answers = [bench.call("braintrust", path, {}).json(), bench.call("braintrust", path, method="GET").json()]

        assert answers[0] == answers[1]
        assert [(ROOT, {"a": 1}, [{"text": "c"}])] == [
            (row["id"], row["scores"], row["comments"]) for row in answers[0]["events"]
        ]

    def test_btql_finds_a_row_by_its_ids(self, bench):
        """
        A query that compares span and trace finds the row in its project.
        """
        bench.export("braintrust", span(), span(CHILD, ROOT))
        query = (
            f"select: * | from: project_logs('{bench.project}') "
            f"| filter: span_id = '{CHILD}' and root_span_id = \"{TRACE}\""
        )
        answer = bench.call("braintrust", "/btql", {"query": query}).json()

        assert [(CHILD, TRACE)] == [(row["span_id"], row["root_span_id"]) for row in answer["data"]]

    def test_btql_can_be_a_tree(self, bench):
        """
        A query that is no text is searched for the same comparisons.
        """
        assert [("id", "x")] == btql_conditions({"filter": "id = 'x'"})

    def test_btql_needs_a_query(self, bench):
        """
        A request without a query answers 400.
        """
        assert 400 == bench.call("braintrust", "/btql", {}).status_code

    def test_btql_has_a_limit_per_minute(self, bench_with):
        """
        With a limit, more look-ups in one minute answer 429 and when to come back.
        """
        bench = bench_with(braintrust_btql_per_minute=1)
        ask = lambda: bench.call("braintrust", "/btql", {"query": "x"})  # noqa: E731
        answers = [ask(), ask()]
        bench.clock.advance(millis=60_000)

        assert [200, 429, 200] == [each.status_code for each in (*answers, ask())]
        assert "60" == answers[1].headers["retry-after"]


class TestProjects:
    def test_one_is_found_by_its_name(self, bench):
        """
        A look-up by name answers the project of that name, or none.
        """
        found, none = (
            bench.call("braintrust", f"/v1/project?project_name={name}", method="GET").json()["objects"]
            for name in ("sandbox", "nowhere")
        )

        assert [("sandbox", bench.project)] == [(each["name"], each["id"]) for each in found]
        assert [] == none

    def test_a_spans_parent_brings_one_into_being(self, bench):
        """
        A project named by a span's parent exists from then on.
        """
        bench.export("braintrust", span(), **{"x-bt-parent": "project_name:chat"})
        objects = bench.call("braintrust", "/v1/project", method="GET").json()["objects"]

        assert ["sandbox", "chat"] == [each["name"] for each in objects]

    def test_one_can_be_made_and_read(self, bench):
        """
        A project that was made is answered by its id; another id answers 400.
        """
        made = bench.call("braintrust", "/v1/project", {"name": "chat"}).json()
        read = bench.call("braintrust", f"/v1/project/{made['id']}", method="GET").json()
        missed = bench.call("braintrust", f"/v1/project/{EXPERIMENT}", method="GET")

        assert made == read
        assert (400, True) == (missed.status_code, ADDRESS in missed.text)

    def test_one_needs_a_name(self, bench):
        """
        A project without a name answers 400.
        """
        assert 400 == bench.call("braintrust", "/v1/project", {}).status_code


class TestExport:
    def test_a_spans_attribute_wins_over_the_header(self, bench):
        """
        The parent of a span is its own attribute, else the request's header.
        """
        own = span(CHILD, ROOT, braintrust__parent=f"project_id:{EXPERIMENT}")
        bench.export("braintrust", span(), own)

        assert ["project_name:sandbox", f"project_id:{EXPERIMENT}"] == [
            each["project"] for each in bench.state()["spans"]
        ]

    def test_spans_without_a_parent_are_refused(self, bench):
        """
        An export without any parent answers 400.
        """
        answer = bench.export("braintrust", span(), **{"x-bt-parent": ""})

        assert (400, ["dropped_span"]) == (answer.status_code, bench.flags())

    @pytest.mark.parametrize("parent", ["", "project_name:", "nonsense:x", "project_id:"])
    def test_some_without_a_parent_are_rejected(self, bench, parent):
        """
        Of spans with and without a parent those with one are kept, and the answer counts the others.
        """
        body = otlp(span(braintrust__parent="project_name:chat"), span(CHILD, ROOT))
        answer = bench.call("braintrust", "/otel/v1/traces", content=body, headers={"x-bt-parent": parent})

        assert (200, [ROOT]) == (answer.status_code, [each["span_id"] for each in bench.state()["spans"]])
        assert b"no parent" in answer.content

    def test_one_that_is_none_is_refused(self, bench):
        """
        Bytes that are no export request answer 400.
        """
        answer = bench.call("braintrust", "/otel/v1/traces", content=b"\xff\xff\xff")

        assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())
