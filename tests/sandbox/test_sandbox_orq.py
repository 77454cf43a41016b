import json

import pytest
from sandbox_bench import CHILD, NOON, ROOT, TRACE, span

from otel_feedback.sandbox._orq import ulid

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER_TRACE = "f" * 32
REMOVAL = {"id": ID, "trace_id": TRACE, "product": "otel"}


class TestFeedback:
    def test_it_is_joined_to_the_otlp_trace_of_its_id(self, bench):
        """
        A feedback with product otel is on the trace that came by OTLP with that id.
        """
        bench.export("orq", span())

        answer = bench.orq(id=ID)
        entry = bench.only()

        assert 200 == answer.status_code
        assert {
            "id": ID,
            "property": "rating",
            "value": ["good"],
            "trace_id": TRACE,
            "product": "otel",
        } == answer.json()
        assert (True, "", []) == (entry["joined"], entry["reason"], entry["flags"])
        assert {"trace_id": TRACE, "span_id": None} == entry["target"]

    def test_it_joins_when_its_trace_comes_later(self, bench):
        """
        Whether a feedback is joined is decided when the state is read.
        """
        bench.orq()
        early = bench.only()["joined"]
        bench.export("orq", span())

        assert (False, True) == (early, bench.only()["joined"])

    def test_it_gets_an_id_where_it_has_none(self, bench):
        """
        The server's id is a ULID of the time of receipt.
        """
        assert ulid(NOON, 1) == bench.orq().json()["id"]

    @pytest.mark.parametrize(
        ("fields", "flags"),
        [
            ({"trace_id": TRACE.upper()}, ["upper_case_id", "unknown_trace"]),
            ({"trace_id": "0af76519-16cd-43dd-8448-eb211c80319c"}, ["dashed_id", "unknown_trace"]),
            ({"trace_id": ROOT}, ["span_id_for_trace_id", "unknown_trace"]),
            ({"trace_id": "0" * 32}, ["zero_id", "unknown_trace"]),
            ({"trace_id": "nonsense"}, ["malformed_id", "unknown_trace"]),
            ({"trace_id": OTHER_TRACE}, ["unknown_trace"]),
            ({"product": "deployments"}, ["default_product"]),
            ({"product": "agents"}, ["foreign_product"]),
            ({"product": "mcp_gateway"}, ["unknown_product"]),
            ({"value": "good"}, ["single_choice_no_list"]),
            ({"value": ("splendid",)}, ["unknown_choice"]),
            ({"property": "correction", "value": "Paris"}, []),
            ({"id": ID.lower()}, ["malformed_feedback_id"]),
        ],
    )
    def test_what_orq_swallows_is_flagged(self, bench, fields, flags):
        """
        A mistake that orq answers with 200 is taken, and flagged.
        """
        bench.export("orq", span())

        answer = bench.orq(**{"id": ID, **fields})

        assert 200 == answer.status_code
        assert flags == bench.only()["flags"]

    def test_without_a_product_orq_looks_among_deployments(self, bench):
        """
        A feedback without a product is an orphan, although its trace has arrived.
        """
        bench.export("orq", span())
        bench.call("orq", "/v2/feedback", {"property": "rating", "value": ["good"], "trace_id": TRACE})

        assert "product 'deployments' does not look among OTLP traces" == bench.only()["reason"]
        assert 1 == bench.state()["orphans"]

    @pytest.mark.parametrize(
        ("body", "flags"),
        [
            ({"property": "rating", "value": True, "trace_id": TRACE, "product": "otel"}, ["contract"]),
            ({"property": "rating", "value": None, "trace_id": TRACE, "product": "otel"}, ["contract"]),
            ({"property": "rating", "value": ["good"]}, ["contract", "default_product"]),
            ({"property": "rating", "value": 1, "trace_id": TRACE, "product": "x"}, ["contract", "unknown_product"]),
            ([], ["contract"]),
        ],
    )
    def test_what_breaks_the_contract_is_refused(self, bench, body, flags):
        """
        A body against the contract is answered with 400 and a message, and flagged.
        """
        answer = bench.call("orq", "/v2/feedback", body)

        assert (400, ["message"]) == (answer.status_code, list(answer.json()))
        assert flags == bench.flags()
        assert [] == bench.state()["feedback"]

    @pytest.mark.parametrize("content", [b"{", b'{"value": NaN}', b"[" * 200_000, b'{"value": 1e999}', b"\xff"])
    def test_what_is_no_json_is_refused(self, bench, content):
        """
        A body that is no JSON, as RFC 8259 has it, is answered with 400.
        """
        answer = bench.call("orq", "/v2/feedback", content=content)

        assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())

    def test_an_undeclared_property_is_not_found(self, bench):
        """
        A property that the workspace does not define answers 404.
        """
        answer = bench.orq(property="stars", value=3)

        assert (404, ["undeclared_property"]) == (answer.status_code, bench.flags())

    def test_a_declared_property_is_taken(self, bench_with):
        """
        Properties declared through the switch are taken like orq's own.
        """
        bench = bench_with(orq_properties=("stars",))

        assert 200 == bench.orq(property="stars", value=3).status_code
        assert (3, "stars") == (bench.only()["value"], bench.only()["name"])


class TestSwitches:
    def test_a_malformed_id_can_be_refused(self, bench_with):
        """
        With the switch on, an id that is no ULID answers 400.
        """
        bench = bench_with(orq_malformed_id="refuse")

        assert [400, 200] == [bench.orq(id=each).status_code for each in ("x", ID)]

    def test_a_missing_trace_can_be_refused(self, bench_with):
        """
        With the switch on, feedback before its trace answers 404, and 200 afterwards.
        """
        bench = bench_with(orq_missing_trace="refuse")
        early = bench.orq().status_code
        bench.export("orq", span())

        assert (404, 200) == (early, bench.orq().status_code)

    @pytest.mark.parametrize(
        ("switch", "values", "joined"),
        [
            ("upsert", [["bad"]], [True, True]),
            ("ignore", [["good"]], [True, False]),
            ("duplicate", [["good"], ["bad"]], [True, True]),
        ],
    )
    def test_a_repeated_id_does_what_the_switch_says(self, bench_with, switch, values, joined):
        """
        The second feedback under one id replaces, is ignored, or stands beside the first.
        """
        bench = bench_with(orq_repeated_id=switch)
        bench.export("orq", span())
        bench.orq(id=ID, value=("good",))
        bench.orq(id=ID, value=("bad",))
        state = bench.state()

        assert values == [row["value"] for row in state["effective"]["orq"]]
        assert joined == [entry["joined"] for entry in state["feedback"]]
        assert ["repeated_id"] == state["feedback"][1]["flags"]

    @pytest.mark.parametrize(("switch", "rows"), [("upsert", 1), ("ignore", 1), ("duplicate", 2)])
    def test_a_retry_is_counted_and_not_flagged(self, bench_with, switch, rows):
        """
        The same feedback twice is one entry that came two times.
        """
        bench = bench_with(orq_repeated_id=switch)
        bench.orq(id=ID)
        bench.orq(id=ID)

        assert 2 == bench.only()["times"]
        assert rows == len(bench.state()["effective"]["orq"])
        assert "repeated_id" not in bench.flags()

    def test_a_repeated_id_can_conflict(self, bench_with):
        """
        With the switch on, a second feedback under one id answers 409.
        """
        bench = bench_with(orq_repeated_id="conflict")

        assert [200, 409] == [bench.orq(id=ID).status_code for _ in range(2)]
        assert "contract" in bench.flags()


class TestRemoval:
    def test_it_takes_a_feedback_back(self, bench):
        """
        What is removed is no longer seen, and is no orphan.
        """
        bench.orq(id=ID)
        bench.orq(value=("bad",))
        answer = bench.call("orq", "/v2/feedback/remove", REMOVAL)
        state = bench.state()

        assert (200, REMOVAL) == (answer.status_code, answer.json())
        assert [True, False] == [entry["removed"] for entry in state["feedback"]]
        assert [["bad"]] == [row["value"] for row in state["effective"]["orq"]]
        assert 1 == state["orphans"]

    def test_a_feedback_given_again_is_there_again(self, bench):
        """
        Recording after a removal counts.
        """
        bench.orq(id=ID)
        bench.call("orq", "/v2/feedback/remove", REMOVAL)
        bench.orq(id=ID)

        assert (False, 2) == (bench.only()["removed"], bench.only()["times"])

    @pytest.mark.parametrize(("switch", "status"), [("accept", 200), ("refuse", 404)])
    def test_removing_nothing_is_flagged(self, bench_with, switch, status):
        """
        A removal whose id, trace or product differ meets nothing.
        """
        bench = bench_with(orq_remove_unknown=switch)
        bench.orq(id=ID, trace_id=OTHER_TRACE)

        assert status == bench.call("orq", "/v2/feedback/remove", REMOVAL).status_code
        assert "removed_nothing" in bench.flags()
        assert not bench.only()["removed"]

    @pytest.mark.parametrize(("switch", "status"), [("accept", 200), ("refuse", 404)])
    def test_what_is_removed_is_not_there_any_more(self, bench_with, switch, status):
        """
        A repeated removal meets nothing, unless it was created anew; being a retry it is not flagged.
        """
        bench = bench_with(orq_remove_unknown=switch)
        bench.orq(id=ID)
        first, again = (bench.call("orq", "/v2/feedback/remove", REMOVAL).status_code for _ in range(2))
        bench.orq(id=ID)
        anew = bench.call("orq", "/v2/feedback/remove", REMOVAL).status_code

        assert (200, status, 200) == (first, again, anew)
        assert "removed_nothing" not in bench.flags()

    def test_a_removal_against_the_contract_is_refused(self, bench):
        """
        A removal names id, trace and product.
        """
        assert 400 == bench.call("orq", "/v2/feedback/remove", {"id": ID}).status_code


class TestAnnotations:
    PATH = f"/v2/traces/{TRACE}/spans/{CHILD}/annotation"

    def annotate(self, bench, value=True, key="good", path=PATH, **more):
        body = {"annotations": [{"key": key, "value": value, **more}], "metadata": {"identity_id": "u-42"}}
        return bench.call("orq", path, body)

    def test_it_is_joined_to_its_span(self, bench):
        """
        An annotation is on a span of a trace, and carries who gave it.
        """
        bench.export("orq", span(), span(CHILD, ROOT))
        answer = self.annotate(bench)
        entry = bench.only()

        assert (200, b"") == (answer.status_code, answer.content)
        assert ("annotation", "good", True, "u-42") == tuple(entry[name] for name in ("kind", "name", "value", "user"))
        assert (True, {"trace_id": TRACE, "span_id": CHILD}) == (entry["joined"], entry["target"])

    def test_one_on_a_span_that_is_not_there_is_an_orphan(self, bench):
        """
        An annotation of an unknown span is taken and flagged.
        """
        bench.export("orq", span())
        self.annotate(bench, path=f"/v2/traces/{TRACE}/spans/{CHILD.upper()}x/annotation")

        assert ["upper_case_id", "malformed_id", "unknown_span"] == bench.only()["flags"]

    @pytest.mark.parametrize(("switch", "values"), [("upsert", [2]), ("append", [1, 2])])
    def test_a_second_one_under_the_key_does_what_the_switch_says(self, bench_with, switch, values):
        """
        A second annotation replaces the first or stands beside it; another key's stays.
        """
        bench = bench_with(orq_annotation_repeat=switch)
        self.annotate(bench, 0, key="other")
        self.annotate(bench, 1)
        self.annotate(bench, 2)

        assert [0, *values] == [row["value"] for row in bench.state()["effective"]["orq"]]

    def test_they_are_taken_off_by_key(self, bench):
        """
        Deleting names the keys, and leaves other feedback of the trace alone.
        """
        self.annotate(bench)
        self.annotate(bench, key="other")
        bench.orq(id=ID)
        body = json.dumps({"keys": ["good"]}).encode()
        answer = bench.call("orq", self.PATH, method="DELETE", content=body)
        state = bench.state()

        assert 200 == answer.status_code
        assert [True, False, False] == [entry["removed"] for entry in state["feedback"]]
        assert ["other", "rating"] == [row["property"] for row in state["effective"]["orq"]]

    def test_a_correction_goes_by_what_it_corrects(self, bench):
        """
        A correction names the evaluation, and is taken off by that name.
        """
        body = {"annotations": [{"parent_annotation_id": "eval-1", "value": "x"}]}
        bench.call("orq", self.PATH, body)
        entry = bench.only()
        bench.call("orq", self.PATH, {"parent_annotation_ids": ["eval-1"]}, method="DELETE")

        assert ("eval-1", None) == (entry["name"], entry["user"])
        assert [] == bench.state()["effective"]["orq"]

    @pytest.mark.parametrize("count", [0, 11])
    def test_there_are_one_to_ten(self, bench, count):
        """
        No annotation, or more than ten, answer 400.
        """
        body = {"annotations": [{"key": f"k{each}", "value": 1} for each in range(count)]}

        assert 400 == bench.call("orq", self.PATH, body).status_code

    @pytest.mark.parametrize("method", ["POST", "DELETE"])
    def test_an_older_server_does_not_have_them(self, bench_with, method):
        """
        With the switch off the address answers 404.
        """
        bench = bench_with(orq_annotations=False)

        assert 404 == bench.call("orq", self.PATH, {}, method=method).status_code

    def test_a_missing_trace_can_be_refused(self, bench_with):
        """
        With the switch on, an annotation before its trace answers 404.
        """
        bench = bench_with(orq_missing_trace="refuse")
        early = self.annotate(bench).status_code
        bench.export("orq", span())

        assert (404, 200) == (early, self.annotate(bench).status_code)


def test_an_export_that_is_none_is_refused(bench):
    """
    Bytes that are no export request answer 400 and are flagged.
    """
    answer = bench.call("orq", "/v2/otel/v1/traces", content=b"\xff\xff\xff")

    assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())
