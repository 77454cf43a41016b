"""The vendors' own Python clients, as they come from the registry, against the sandbox."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap

import braintrust_api
import httpx
import pytest
from braintrust_api import Braintrust
from orq_ai_sdk import Orq
from orq_ai_sdk import models as orq_models
from sandbox_bench import CHILD, PROTOBUF, ROOT, TRACE, otlp, span

from otel_feedback.sandbox import Fault, Sandbox, Switches

EXPERIMENT = "7d0f4c52-0d5c-4d06-9b0f-0a3b2f1d9a10"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def export(sandbox, *, experiment=None):
    """Send one trace to every vendor, with the addresses that the sandbox gives."""
    for endpoint in sandbox.otlp_endpoints():
        headers = {**endpoint.headers, **PROTOBUF}
        if experiment and endpoint.vendor == "braintrust":
            headers["x-bt-parent"] = f"experiment_id:{experiment}"
        answer = httpx.post(endpoint.url, content=otlp(span(), span(CHILD, ROOT)), headers=headers)
        answer.raise_for_status()


class TestOrq:
    @pytest.fixture
    def client(self, sandbox):
        environment = sandbox.environment()
        with Orq(api_key=environment["ORQ_API_KEY"], server_url=environment["ORQ_BASE_URL"]) as client:
            yield client

    def test_feedback_is_created_and_removed(self, sandbox, client):
        """
        `feedback.create` and `feedback.remove` of orq-ai-sdk work unchanged.
        """
        export(sandbox)
        made = client.feedback.create(
            request={"field": "rating", "value": ["good"], "trace_id": TRACE, "id": ULID, "product": "otel"}
        )
        (entry,) = sandbox.state()["feedback"]
        removed = client.feedback.remove(request={"id": ULID, "trace_id": TRACE, "product": "otel"})

        assert (ULID, "rating", ["good"]) == (made.id, made.property, made.value)
        assert (True, []) == (entry["joined"], entry["flags"])
        assert ULID == removed.id
        assert [] == sandbox.state()["effective"]["orq"]

    def test_without_a_product_its_default_is_flagged(self, sandbox, client):
        """
        The client's own default product is the one that OTLP traces are never found under.
        """
        export(sandbox)
        client.feedback.create(request={"field": "rating", "value": ["good"], "trace_id": TRACE})

        assert ["default_product"] == sandbox.state()["feedback"][0]["flags"]

    def test_an_undeclared_property_is_its_error(self, sandbox, client):
        """
        A property that is not found becomes the client's own error, with the server's message.
        """
        with pytest.raises(orq_models.OrqError, match="stars") as caught:
            client.feedback.create(request={"field": "stars", "value": 3, "trace_id": TRACE, "product": "otel"})

        assert 404 == caught.value.status_code

    def test_a_refused_body_is_its_error(self, client, sandbox):
        """
        A 400 is read by the client as its error with a message.
        """
        sandbox.inject(Fault(status=400, headers={"content-type": "application/json"}, body='{"message": "no"}'))
        with pytest.raises(orq_models.OrqError, match="no"):
            client.feedback.create(request={"field": "rating", "value": ["good"], "trace_id": TRACE})

    def test_a_span_is_annotated(self, sandbox, client):
        """
        The newer annotations are made and deleted by the client unchanged.
        """
        export(sandbox)
        client.annotations.create(
            trace_id=TRACE,
            span_id=CHILD,
            annotations=[{"key": "helpful", "value": True}],
            metadata={"identity_id": "u-42"},
        )
        (entry,) = sandbox.state()["feedback"]
        client.annotations.delete(trace_id=TRACE, span_id=CHILD, keys=["helpful"])

        assert (True, "u-42") == (entry["joined"], entry["user"])
        assert [] == sandbox.state()["effective"]["orq"]

    def test_its_async_twin_works_too(self, sandbox, client):
        """
        `create_async` sends the same.
        """

        async def create():
            request = {"field": "rating", "value": ["good"], "trace_id": TRACE, "product": "otel"}
            async with client:
                return await client.feedback.create_async(request=request)

        assert "rating" == asyncio.run(create()).property
        assert 1 == len(sandbox.state()["feedback"])


class TestBraintrust:
    @pytest.fixture
    def client(self, sandbox, monkeypatch):
        for name, value in sandbox.environment().items():
            monkeypatch.setenv(name, value)
        with Braintrust(max_retries=0) as client:
            yield client

    def test_feedback_goes_to_an_experiment(self, sandbox, client):
        """
        `experiments.feedback` of braintrust-api works with the environment alone.
        """
        export(sandbox, experiment=EXPERIMENT)
        answer = client.experiments.feedback(EXPERIMENT, feedback=[{"id": CHILD, "scores": {"rating": 1}}])

        assert "success" == answer.status
        assert [True] == [entry["joined"] for entry in sandbox.state()["feedback"]]

    def test_feedback_goes_to_a_projects_logs(self, sandbox, client):
        """
        `projects.logs.feedback` meets the span in the project that is found by its name.
        """
        export(sandbox)
        (project,) = client.projects.list(project_name="sandbox").objects
        item = {"id": CHILD, "scores": {"rating": 1}, "comment": "Spot on", "metadata": {"user_id": "u-42"}}
        answer = client.projects.logs.feedback(project.id, feedback=[item])
        events = client.projects.logs.fetch(project.id).events

        assert "success" == answer.status
        assert {(True, "u-42")} == {(entry["joined"], entry["user"]) for entry in sandbox.state()["feedback"]}
        assert {"rating": 1} in [event.scores for event in events]

    def test_rows_are_inserted(self, sandbox, client):
        """
        `projects.logs.insert` writes a child row about a span.
        """
        export(sandbox)
        project = client.projects.create(name="sandbox")
        event = {"id": "f-1", "span_parents": [CHILD], "root_span_id": TRACE, "scores": {"rating": 0}}
        client.projects.logs.insert(project.id, events=[event])
        (entry,) = sandbox.state()["feedback"]

        assert (True, "f-1") == (entry["joined"], entry["id"])

    def test_a_refused_body_is_its_error(self, client):
        """
        A score out of range becomes the client's own error.
        """
        with pytest.raises(braintrust_api.BadRequestError):
            client.experiments.feedback(EXPERIMENT, feedback=[{"id": CHILD, "scores": {"rating": 2}}])

    def test_a_refused_key_is_its_error(self, monkeypatch):
        """
        A bad key becomes the client's own error.
        """
        with Sandbox(switches=Switches(refused_api_key="bad")) as sandbox:
            url = sandbox.environment()["BRAINTRUST_BASE_URL"]
            with (
                Braintrust(api_key="bad", base_url=url, max_retries=0) as client,
                pytest.raises(braintrust_api.AuthenticationError),
            ):
                client.projects.list()


WEAVE_ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",  # no telemetry: nothing but 127.0.0.1 may be contacted
    "WEAVE_PRINT_CALL_LINK": "false",
    "WEAVE_USE_SERVER_CACHE": "false",
    "WEAVE_CAPTURE_CODE": "false",
    "PATH": os.environ.get("PATH", ""),
    "PYTHONPATH": os.pathsep.join(sys.path),
}

GUARD = """
import json, socket
_connect = socket.socket.connect
def connect(self, address):
    assert self.family == socket.AF_UNIX or address[0] in {"127.0.0.1", "::1"}, address
    return _connect(self, address)
socket.socket.connect = connect
"""


def run_weave(sandbox, tmp_path, code):
    """Run code in a process of its own, with the sandbox's environment alone, and answer what it prints last."""
    environment = {**WEAVE_ENVIRONMENT, **sandbox.environment(), "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", GUARD + textwrap.dedent(code)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


class TestWeave:
    def test_the_trace_servers_client_works(self, sandbox, tmp_path):
        """
        Creating, replacing, batching, querying and purging work through `RemoteHTTPTraceServer`.
        """
        export(sandbox)
        code = f"""
        import os
        from weave.trace_server_bindings.remote_http_trace_server import RemoteHTTPTraceServer
        server = RemoteHTTPTraceServer.from_env()
        server.set_auth(("api", os.environ["WANDB_API_KEY"]))
        item = dict(project_id="sandbox/sandbox", weave_ref="weave:///sandbox/sandbox/call/{CHILD}",
                    feedback_type="wandb.reaction.1", payload={{"emoji": "👍"}}, creator="u-42")
        first = server.feedback_create(item)
        server.feedback_replace({{**item, "feedback_id": first.id, "id": first.id, "payload": {{"emoji": "👎"}}}})
        note = {{**item, "feedback_type": "wandb.note.1", "payload": {{"note": "hi"}}}}
        batch = server.feedback_create_batch({{"batch": [note, note]}})
        server.feedback_purge({{"project_id": "sandbox/sandbox", "query": {{"$expr": {{"$eq": [
            {{"$getField": "id"}}, {{"$literal": batch.res[0].id}}]}}}}}})
        found = server.feedback_query({{"project_id": "sandbox/sandbox", "fields": ["payload", "creator"]}})
        print(json.dumps(found.result))
        """
        rows = run_weave(sandbox, tmp_path, code)
        state = sandbox.state()

        assert [
            {"payload": {"emoji": "👎"}, "creator": "u-42"},
            {"payload": {"note": "hi"}, "creator": "u-42"},
        ] == rows
        assert 0 == state["orphans"]
        assert [True, False, True, False] == [entry["removed"] for entry in state["feedback"]]

    def test_init_and_the_feedback_of_a_call_work(self, sandbox, tmp_path):
        """
        `weave.init` works with the environment alone; reactions and notes land on the traced call.
        """
        code = """
        import weave
        client = weave.init("sandbox/sandbox")
        @weave.op
        def answer(question): return 42
        _, call = answer.call("?")
        call.feedback.add_reaction("👍")
        call.feedback.add_note("Spot on")
        client.finish()
        print(json.dumps([call.id, [each.feedback_type for each in call.feedback]]))
        """
        call_id, kinds = run_weave(sandbox, tmp_path, code)
        state = sandbox.state()

        assert ["wandb.reaction.1", "wandb.note.1"] == kinds
        assert [(call_id, "answer")] == [(each["span_id"], each["name"]) for each in state["spans"]]
        assert [(True, call_id), (True, call_id)] == [
            (entry["joined"], entry["target"]["span_id"]) for entry in state["feedback"]
        ]
        assert [] == state["flags"]
