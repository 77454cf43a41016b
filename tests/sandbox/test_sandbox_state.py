import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_bench import CHILD, PROTOBUF, ROOT, TRACE, otlp, span

from otel_feedback.sandbox._flags import MEANINGS, span_id_flags, trace_id_flags
from otel_feedback.sandbox._limits import Limits
from otel_feedback.sandbox._orq import ulid

SURROGATE = b'{"property": "correction", "value": "\\ud800", "trace_id": "x", "product": "otel"}'


class TestState:
    def test_it_is_json(self, bench):
        """
        What the object answers and what the address answers are the same document.
        """
        bench.export("orq", span(tokens=[1, 2.5, True, None, {"a": b"\x01"}]))
        bench.call("orq", "/v2/feedback", content=SURROGATE)

        assert json.loads(json.dumps(bench.state())) == bench.request("GET", "/state").json()

    def test_a_span_is_told_without_what_people_wrote(self, bench):
        """
        Attributes that place a span are shown, prompts and answers are not, and long ones are cut.
        """
        attributes = {
            "gen_ai__operation__name": "chat",
            "gen_ai__usage__input_tokens": 3,
            "gen_ai__input__messages": "secret",
            "gen_ai__request__model": "m" * 600,
            "http__url": "x",
        }
        bench.export("orq", span(CHILD, ROOT, **attributes))
        (shown,) = bench.state()["spans"]

        assert ("chat", "internal", ROOT) == tuple(shown[name] for name in ("operation", "kind", "parent_span_id"))
        assert {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.request.model": "m" * 500,
        } == shown["attributes"]

    def test_a_span_that_comes_twice_is_one(self, bench):
        """
        An exporter's retry makes no second span.
        """
        bench.export("orq", span())
        bench.export("orq", span())

        assert 1 == len(bench.state()["spans"])

    def test_reset_forgets_everything(self, bench):
        """
        After a reset the state is as at the beginning.
        """
        before = bench.state()
        bench.export("orq", span())
        bench.orq(value="x")
        bench.request("POST", "/faults", json={"times": 3})
        answer = bench.request("POST", "/reset")

        assert (204, before, []) == (answer.status_code, bench.state(), bench.core.requests())

    def test_every_flag_has_a_meaning(self, bench):
        """
        Flags that are raised are among those explained.
        """
        bench.orq(trace_id="X-0", value="x")
        bench.braintrust({"id": "X"})
        bench.weave(project_id="x")

        assert set(bench.flags()) <= set(MEANINGS)


class TestMistargeted:
    def test_feedback_on_another_span_is_found(self, bench_with):
        """
        Feedback is compared with the span that was meant for its id, its value or its name.
        """
        bench = bench_with()
        bench.export("braintrust", span(), span(CHILD, ROOT))
        bench.braintrust({"id": ROOT, "comment": "about the child"}, {"id": CHILD, "scores": {"right": 1, "other": 1}})
        found = bench.mistargeted({"about the child": CHILD, "right": CHILD})

        assert ["about the child"] == [entry["value"] for entry in found]

    def test_an_id_outweighs_a_name(self, bench):
        """
        Where several things are expected, the id decides.
        """
        bench.export("weave", span(), span(CHILD, ROOT))
        bench.weave(id="f-1", span_id=CHILD)

        assert [] == bench.mistargeted({"f-1": CHILD, "reaction": ROOT})

    @pytest.mark.parametrize(("span_id", "count"), [(CHILD, 0), ("f" * 16, 1)])
    def test_where_only_traces_are_known_the_trace_decides(self, bench, span_id, count):
        """
        An orq feedback is right on the trace of the expected span.
        """
        bench.export("orq", span(), span(CHILD, ROOT))
        bench.orq()

        assert count == len(bench.mistargeted({"rating": span_id}))


class TestRequests:
    def test_they_are_kept_in_order_without_credentials(self, bench):
        """
        Each request is kept with what was answered, and no key.
        """
        bench.orq(note="x")
        bench.call("weave", "/nowhere?a=b", method="GET")
        first, second = bench.core.requests()

        assert [("POST", "/orq/v2/feedback", 200), ("GET", "/weave/nowhere", 404)] == [
            (each.method, each.path, each.status) for each in (first, second)
        ]
        assert ("x", "a=b") == (first.json()["note"], second.query)
        assert not {"authorization", "wandb-api-key"} & set(first.headers)
        assert "key" not in repr(first)

    def test_the_oldest_go_first(self, bench_with):
        """
        Beyond the limit the oldest requests are forgotten, though still counted.
        """
        bench = bench_with(limits=Limits(logged_requests=2))
        for value in "abc":
            bench.orq(value=value)

        assert ["b", "c"] == [each.json()["value"] for each in bench.core.requests()]
        assert 3 == bench.state()["requests"]

    def test_long_bodies_are_kept_in_part(self, bench_with):
        """
        A body beyond the limit is kept so far; all bodies together have a limit as well.
        """
        bench = bench_with(limits=Limits(logged_body_bytes=10, logged_bytes=15))
        bench.orq()
        bench.orq()

        assert [10] == [len(each.body) for each in bench.core.requests()]


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "send"),
        [
            (Limits(spans=0), lambda bench: bench.export("orq", span())),
            (Limits(submissions=0), lambda bench: bench.orq()),
            (Limits(stored_bytes=0), lambda bench: bench.orq()),
        ],
    )
    def test_a_full_sandbox_says_so(self, bench_with, limit, send):
        """
        What does not fit below the limits answers 507, is flagged, and is not stored.
        """
        bench = bench_with(limits=limit)
        answer = send(bench)
        state = bench.state()

        assert (507, ["storage_full"]) == (answer.status_code, bench.flags())
        assert ([], []) == (state["spans"], state["feedback"])

    def test_flags_have_a_limit(self, bench_with):
        """
        More flags than the limit are dropped.
        """
        bench = bench_with(limits=Limits(flags=1))
        for _ in range(3):
            bench.call("orq", "/nowhere")

        assert ["unknown_path"] == bench.flags()

    @pytest.mark.parametrize("vendor", ["orq", "braintrust", "weave"])
    def test_a_body_over_the_limit_is_refused(self, bench_with, vendor):
        """
        A larger body answers 413.
        """
        bench = bench_with(limits=Limits(body_bytes=10))
        path = {"orq": "/v2/feedback", "braintrust": "/btql", "weave": "/feedback/create"}[vendor]

        assert 413 == bench.call(vendor, path, content=b" " * 11).status_code
        assert ["body_too_large"] == bench.flags()

    def test_a_body_that_unpacks_over_the_limit_is_refused(self, bench_with):
        """
        A small gzip of something large answers 413.
        """
        bench = bench_with(limits=Limits(body_bytes=1_000))
        content = gzip.compress(b"\0" * 10_000)
        answer = bench.call("orq", "/v2/otel/v1/traces", content=content, headers={"content-encoding": "gzip"})

        assert (413, ["body_too_large"]) == (answer.status_code, bench.flags())


class TestEncoding:
    @pytest.mark.parametrize(
        ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
    )
    def test_exports_may_be_packed(self, bench, encoding, pack):
        """
        Spans come as gzip, deflate or as they are.
        """
        headers = {**PROTOBUF, "content-encoding": encoding}
        bench.call("orq", "/v2/otel/v1/traces", content=pack(otlp(span())), headers=headers)

        assert [TRACE] == [each["trace_id"] for each in bench.state()["spans"]]

    @pytest.mark.parametrize(
        ("encoding", "content"), [("gzip", b"no"), ("br", b"no"), ("gzip", gzip.compress(b"x" * 99)[:-5])]
    )
    def test_what_cannot_be_unpacked_is_refused(self, bench, encoding, content):
        """
        A broken or unknown encoding answers 400.
        """
        headers = {"content-encoding": encoding}
        answer = bench.call("orq", "/v2/otel/v1/traces", content=content, headers=headers)

        assert (400, ["unreadable_body"]) == (answer.status_code, bench.flags())


@pytest.mark.parametrize(
    ("vendor", "path", "method"),
    [("orq", "/v2/feedback", "GET"), ("braintrust", "/v1/elsewhere", "POST"), ("weave", "/", "PUT")],
)
def test_an_unknown_address_is_not_found(bench, vendor, path, method):
    """
    An address or method that the vendor does not have answers 404 and is flagged.
    """
    assert 404 == bench.call(vendor, path, method=method).status_code
    assert ["unknown_path"] == bench.flags()


@pytest.mark.parametrize("vendor", ["orq", "braintrust"])
@pytest.mark.parametrize("value", ["", "Bearer ", "Bearer bad", "Basic YXBpOmtleQ=="])
def test_a_missing_or_refused_key_is_unauthorized(bench_with, vendor, value):
    """
    No key, an empty one, another scheme, and the refused key answer 401.
    """
    bench = bench_with(refused_api_key="bad")
    path = {"orq": "/v2/feedback", "braintrust": "/btql"}[vendor]

    assert 401 == bench.call(vendor, path, {}, headers={"authorization": value}).status_code
    assert ["unauthorized"] == bench.flags()


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1"])
def test_only_loopback_names_are_answered(bench, host):
    """
    A page of another name, resolved to this machine, reads nothing.
    """
    assert 400 == bench.request("GET", "/state", headers={"host": host}).status_code


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_right_ids_have_no_flag(trace, span_number):
    """
    Lower-case hex of the right length, not all zeros, is never flagged.
    """
    assert ([], []) == (trace_id_flags(f"{trace:032x}"), span_id_flags(f"{span_number:016x}"))


@given(st.text())
def test_any_other_text_has_a_flag(text):
    """
    Whatever is no span id is flagged by something that has a meaning.
    """
    flags = [flag for flag, _ in span_id_flags(text)]
    is_right = len(text) == 16 and set(text) <= set("0123456789abcdef") and text != "0" * 16

    assert is_right is not bool(flags)
    assert set(flags) <= set(MEANINGS)


@given(st.integers(0, 2**78), st.integers(0, 2**40))
def test_made_ids_are_ulids(nanos, sequence):
    """
    The ids that orq gives have 26 characters of Crockford's base 32.
    """
    made = ulid(nanos, sequence)

    assert 26 == len(made)
    assert set(made) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
