"""For the same feedback, our exporters and the vendors' own clients send the same: both are heard on loopback.

Every intended difference is a line of `DIFFERENCES`; a test fails where one is not there any more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from braintrust_api import Braintrust
from exporter_bench import NOON_TEXT, SECRET, SPAN, TRACE, Vendor, handle, record, say
from orq_ai_sdk import Orq

from otel_feedback import BraintrustExporter, OrqExporter, WeaveExporter
from otel_feedback.sandbox import Sandbox, Switches

if TYPE_CHECKING:
    from otel_feedback.exporters._http import HTTPFeedbackExporter

UUID = "5a3c1f0e-8d5a-4d9f-9f6e-0b9a3a3b6f11"
REF = f"weave:///sandbox/sandbox/call/{SPAN}"
# What was recorded, and under which id: Braintrust shows it in the audit log, Weave keeps it in the payload.
ID = "0198f1f2-9c2b-7d3e-b5a1-8c9d2e4f6a7b"
ULID = "01K3RZ571BFMZBB8CCKMQ4YTKV"

# By vendor and case, what a client does not send and we do, or the other way round, and why.
DIFFERENCES: Mapping[str, Mapping[str, str]] = {
    "orq headers": {
        "user-agent": "each says who it is",
        "accept-encoding": "we take no packed answer: a small one could unpack to one that is larger than memory",
        "connection": "keep-alive is what HTTP/1.1 means without it",
    },
    "orq defaults": {
        "id": "its client leaves it to orq; ours makes a repeated try the same feedback, and lets it be taken back",
        "product": "its client says deployments; a trace that came by OpenTelemetry is found under otel",
    },
    "orq boolean": {"value": "its client makes a number of a boolean; ours is the choice true or false"},
    "braintrust metadata": {
        "feedback_id": "which judgement it was",
        "recorded_at": "Braintrust has no time of its own",
    },
    "weave payload": {
        "name": "a reaction says not what was judged",
        "source": "who said it: a human, a model or code",
        "recorded_at": "created_at is the server's",
    },
}

Call = tuple[str, str, Any]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The vendors, as far as anybody here can tell."""
    with Sandbox(port=0) as running:
        yield running


def heard(sandbox: Sandbox, vendor: str, send: Callable[[], object]) -> list[Call]:
    """Answer what was asked of a vendor meanwhile: method, path, and body as JSON."""
    before = len(sandbox.requests)
    send()
    asked = sandbox.requests[before:]
    return [
        (each.method, each.path.removeprefix(f"/{vendor}"), each.json())
        for each in asked
        if each.path.startswith(f"/{vendor}")
    ]


def ours(exporter: HTTPFeedbackExporter, action: Any = "create", **said: Any) -> Callable[[], object]:
    """Send a judgement as our exporter does."""

    def send() -> None:
        exporter.start()
        parts = exporter.parts(record(**{"id": ID, **said}))
        exporter.export(
            [replace(part, action=action, replaces=part if action == "replace" else None) for part in parts]
        )
        exporter.shutdown()

    return send


# --- orq -----------------------------------------------------------------------------------------------------------

ORQ_CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "thumb up": ({"value": True}, {"field": "rating", "value": ["good"]}),
    "thumb down": ({"value": False}, {"field": "rating", "value": ["bad"]}),
    "defects": (
        {"name": "defects", "value": ["spelling", "off_topic"]},
        {"field": "defects", "value": ["spelling", "off_topic"]},
    ),
    "interaction": ({"name": "interactions", "value": "saved"}, {"field": "interactions", "value": ["saved"]}),
    "number": ({"name": "stars", "value": 4, "scale": (1, 5)}, {"field": "stars", "value": 4}),
    "share": ({"name": "stars", "value": 0.5}, {"field": "stars", "value": 0.5}),
    "choice": ({"name": "tone", "value": "warm"}, {"field": "tone", "value": ["warm"]}),
    "several choices": (
        {"name": "tone", "value": ["warm", "short"]},
        {"field": "tone", "value": ["warm", "short"]},
    ),
    "correction": ({"correction": "Paris"}, {"field": "correction", "value": "Paris"}),
    "correction of an object": (
        {"correction": {"city": "Paris"}},
        {"field": "correction", "value": '{"city":"Paris"}'},
    ),
    "comment": ({"comment": "Spot on"}, {"field": "remark", "value": "Spot on"}),
}


class TestOrq:
    @pytest.fixture
    def client(self, sandbox: Sandbox) -> Iterator[Orq]:
        said = sandbox.environment()
        with Orq(api_key=said["ORQ_API_KEY"], server_url=said["ORQ_BASE_URL"]) as client:
            yield client

    def make(self, sandbox: Sandbox, **options: Any) -> OrqExporter:
        said = sandbox.environment()
        return OrqExporter(
            said["ORQ_API_KEY"],
            base_url=said["ORQ_BASE_URL"],
            properties=("stars", "tone", "toxic"),
            comment_property="remark",
            **options,
        )

    @pytest.fixture
    def sandbox(self) -> Iterator[Sandbox]:
        """orq, where these properties are defined in the workspace."""
        with Sandbox(port=0, switches=Switches(orq_properties=("stars", "tone", "toxic", "remark"))) as running:
            yield running

    @pytest.mark.parametrize("case", ORQ_CASES)
    def test_feedback_is_created_as_its_client_does(self, sandbox: Sandbox, client: Orq, case: str) -> None:
        """
        `feedback.create` with the same property, value, trace, product and id.
        """
        said, request = ORQ_CASES[case]
        made = self.make(sandbox)
        (part,) = made.parts(record(**{"id": ID, **said}))
        theirs = heard(
            sandbox,
            "orq",
            lambda: client.feedback.create(
                request={**request, "trace_id": TRACE, "product": "otel", "id": part.body["id"]}
            ),
        )

        assert theirs == heard(sandbox, "orq", ours(made, **said))
        assert part.id != ID or ULID == part.body["id"]

    def test_what_its_client_leaves_out_we_say(self, sandbox: Sandbox, client: Orq) -> None:
        """
        Its client is content with a property, a value and a trace.
        """
        theirs = heard(
            sandbox,
            "orq",
            lambda: client.feedback.create(request={"field": "rating", "value": ["good"], "trace_id": TRACE}),
        )
        ((_, _, their_body),) = theirs
        ((_, _, our_body),) = heard(sandbox, "orq", ours(self.make(sandbox), value=True))

        assert {"property": "rating", "value": ["good"], "trace_id": TRACE, "product": "deployments"} == their_body
        assert DIFFERENCES["orq defaults"].keys() == differing(their_body, our_body)

    def test_a_boolean_that_is_no_thumb_is_a_choice(self, sandbox: Sandbox, client: Orq) -> None:
        """
        Its client has no word for one either, and makes it 1.
        """
        request: Any = {"field": "toxic", "value": True, "trace_id": TRACE, "product": "otel", "id": ULID}
        ((_, _, theirs),) = heard(sandbox, "orq", lambda: client.feedback.create(request=request))
        ((_, _, found),) = heard(sandbox, "orq", ours(self.make(sandbox), name="toxic", value=True))

        assert ((1, False), ["true"]) == ((theirs["value"], isinstance(theirs["value"], bool)), found["value"])
        assert DIFFERENCES["orq boolean"].keys() == differing(theirs, found)

    def test_the_headers_are_those_of_its_client(self) -> None:
        """
        The key as a bearer, and as many bytes of JSON.
        """
        said: Any = {"value": ["good"], "trace_id": TRACE, "product": "otel", "id": ULID}
        with Vendor() as vendor:
            echo = json.dumps({"property": "rating", **said}).encode()
            vendor.script(say(200, echo, content_type="application/json"))
            with Orq(api_key=SECRET, server_url=vendor.url) as client:
                client.feedback.create(request={"field": "rating", **said})
            ours(OrqExporter(SECRET, base_url=vendor.url), value=True)()
            theirs, found = (dict(each.headers) for each in vendor.requests)

        assert f"Bearer {SECRET}" == found["authorization"]
        assert DIFFERENCES["orq headers"].keys() == differing(theirs, found)

    def test_feedback_is_removed_as_its_client_does(self, sandbox: Sandbox, client: Orq) -> None:
        """
        `feedback.remove` with the same id, trace and product.
        """
        theirs = heard(
            sandbox,
            "orq",
            lambda: client.feedback.remove(request={"id": ULID, "trace_id": TRACE, "product": "otel"}),
        )

        assert theirs == heard(sandbox, "orq", ours(self.make(sandbox), "retract", value=True))

    @pytest.mark.parametrize(
        ("said", "key", "value"),
        [
            ({"value": True}, "rating", ["good"]),
            ({"name": "toxic", "value": False}, "toxic", False),
            ({"name": "stars", "value": 4, "scale": (1, 5)}, "stars", 4),
            ({"name": "tone", "value": "warm"}, "tone", ["warm"]),
            ({"correction": "Paris"}, "correction", "Paris"),
        ],
    )
    def test_a_span_is_annotated_as_its_client_does(
        self, sandbox: Sandbox, client: Orq, said: dict[str, Any], key: str, value: Any
    ) -> None:
        """
        `annotations.create` and `annotations.delete`, with the same end user.
        """
        who: Any = {"identity_id": "u-1"}
        theirs = heard(
            sandbox,
            "orq",
            lambda: client.annotations.create(
                trace_id=TRACE, span_id=SPAN, annotations=[{"key": key, "value": value}], metadata=who
            ),
        )
        theirs += heard(
            sandbox,
            "orq",
            lambda: client.annotations.delete(trace_id=TRACE, span_id=SPAN, keys=[key], metadata=who),
        )
        made = self.make(sandbox, api="annotations")

        assert theirs == [
            *heard(sandbox, "orq", ours(made, user_id="u-1", **said)),
            *heard(sandbox, "orq", ours(made, "retract", user_id="u-1", **said)),
        ]

    @pytest.mark.parametrize("more", [{}, {"explanation": "too mild"}])
    def test_an_evaluator_is_corrected_as_its_client_does(
        self, sandbox: Sandbox, client: Orq, more: dict[str, str]
    ) -> None:
        """
        By the id of what it said, with or without a reason, and taken back by that id.
        """
        annotation: Any = {"parent_annotation_id": "eval-1", "value": 0.5, **more}
        theirs = heard(
            sandbox,
            "orq",
            lambda: client.annotations.create(trace_id=TRACE, span_id=SPAN, annotations=[annotation]),
        )
        theirs += heard(
            sandbox,
            "orq",
            lambda: client.annotations.delete(trace_id=TRACE, span_id=SPAN, parent_annotation_ids=["eval-1"]),
        )
        made = self.make(sandbox, api="annotations")
        said: dict[str, Any] = {"value": 0.5, "native": {"orq": {"parent_annotation_id": "eval-1", **more}}}

        assert theirs == [
            *heard(sandbox, "orq", ours(made, **said)),
            *heard(sandbox, "orq", ours(made, "retract", **said)),
        ]


# --- Braintrust ----------------------------------------------------------------------------------------------------

BRAINTRUST_CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "thumb": ({"value": True}, {"scores": {"rating": 1}}),
    "number": ({"name": "stars", "value": 4, "scale": (1, 5)}, {"scores": {"stars": 0.75}}),
    "correction": ({"correction": {"city": "Paris"}}, {"expected": {"city": "Paris"}}),
    "comment": ({"comment": "Spot on"}, {"comment": "Spot on"}),
    "tags": ({"tags": ["a", "b"]}, {"tags": ["a", "b"]}),
}


class TestBraintrust:
    @pytest.fixture
    def client(self, sandbox: Sandbox) -> Iterator[Braintrust]:
        said = sandbox.environment()
        with Braintrust(
            api_key=said["BRAINTRUST_API_KEY"], base_url=said["BRAINTRUST_BASE_URL"], max_retries=0
        ) as client:
            yield client

    def make(self, sandbox: Sandbox, parent: str, **options: Any) -> BraintrustExporter:
        said = sandbox.environment()
        return BraintrustExporter(
            parent, api_key=said["BRAINTRUST_API_KEY"], base_url=said["BRAINTRUST_API_URL"], tags_on="span", **options
        )

    @pytest.mark.parametrize("case", BRAINTRUST_CASES)
    @pytest.mark.parametrize("kind", ["project_id", "experiment_id"])
    def test_feedback_goes_as_its_client_sends_it(
        self, sandbox: Sandbox, client: Braintrust, kind: str, case: str
    ) -> None:
        """
        `projects.logs.feedback` and `experiments.feedback`; the metadata has what we know besides.
        """
        said, item = BRAINTRUST_CASES[case]
        sends = client.projects.logs.feedback if kind == "project_id" else client.experiments.feedback
        feedback: Any = [{"id": SPAN, "source": "external", "metadata": {"user_id": "u-1"}, **item}]
        theirs = heard(sandbox, "braintrust", lambda: sends(UUID, feedback=feedback))
        found = heard(sandbox, "braintrust", ours(self.make(sandbox, f"{kind}:{UUID}"), user_id="u-1", **said))

        assert DIFFERENCES["braintrust metadata"].keys() == without(
            found[0][2]["feedback"][0]["metadata"], "braintrust metadata"
        )
        assert theirs == found

    def test_a_project_is_looked_up_as_its_client_does(self, sandbox: Sandbox, client: Braintrust) -> None:
        """
        `projects.list(project_name=…)`.
        """
        client.projects.list(project_name="sandbox")
        ours(self.make(sandbox, "project_name:sandbox"), value=True)()
        first, second = (each for each in sandbox.requests if each.method == "GET")

        assert (first.path, first.query) == (second.path, second.query)

    def test_a_row_is_written_as_its_client_writes_it(self, sandbox: Sandbox, client: Braintrust) -> None:
        """
        `projects.logs.insert`, and the same to delete it.
        """
        event: Any = {
            "id": ID,
            "span_id": ID,
            "root_span_id": TRACE,
            "span_parents": [SPAN],
            "created": NOON_TEXT,
            "span_attributes": {"name": "rating", "type": "review"},
            "scores": {"rating": 1},
            "metadata": {"source": "external"},
        }
        gone: Any = {"id": ID, "_object_delete": True}
        theirs = [
            call
            for each in (event, gone)
            for call in heard(sandbox, "braintrust", lambda each=each: client.projects.logs.insert(UUID, events=[each]))  # type: ignore[misc]
        ]
        made = self.make(sandbox, f"project_id:{UUID}", per_rater="child")
        found = [
            *heard(sandbox, "braintrust", ours(made, value=True)),
            *heard(sandbox, "braintrust", ours(made, "retract", value=True)),
        ]

        without(found[0][2]["events"][0]["metadata"], "braintrust metadata")
        assert theirs == found


# --- Weave ---------------------------------------------------------------------------------------------------------

WEAVE_CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "thumb up": ({"value": True}, {"feedback_type": "wandb.reaction.1", "payload": {"emoji": "👍"}}),
    "note": ({"comment": "Spot on"}, {"feedback_type": "wandb.note.1", "payload": {"note": "Spot on"}}),
    "custom": (
        {"name": "stars", "value": 4, "scale": (1, 5)},
        {"feedback_type": "stars", "payload": {"value": 4, "scale": [1, 5]}},
    ),
}

# A process of its own: the package takes seconds to load, and changes whoever loads it.
WEAVE_CLIENT = """
import json, socket, sys
_connect = socket.socket.connect
def connect(self, address):
    assert self.family == socket.AF_UNIX or address[0] in {"127.0.0.1", "::1"}, address
    return _connect(self, address)
socket.socket.connect = connect

import os
from weave.trace_server_bindings.remote_http_trace_server import RemoteHTTPTraceServer
server = RemoteHTTPTraceServer.from_env()
server.set_auth(("api", os.environ["WANDB_API_KEY"]))
for method, body in json.load(sys.stdin):
    getattr(server, method)(body)
"""


def weave_sends(sandbox: Sandbox, folder: Path, *calls: tuple[str, dict[str, Any]]) -> Callable[[], object]:
    """Let Weave's own client send these."""
    environment = {
        "WANDB_ERROR_REPORTING": "false",  # nothing but 127.0.0.1 may be contacted
        "WEAVE_USE_SERVER_CACHE": "false",
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(folder),
        **sandbox.environment(),
    }

    def send() -> None:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(WEAVE_CLIENT)],
            input=json.dumps(calls),
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert 0 == done.returncode, done.stderr

    return send


def test_weave_gets_what_its_client_sends(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    To create, one or several, to replace and to purge; what its client sends as null we leave out, since older servers
    refuse fields that they do not know.
    """
    said = sandbox.environment()
    made = WeaveExporter("sandbox/sandbox", api_key=said["WANDB_API_KEY"], base_url=said["WF_TRACE_SERVER_URL"])
    calls: list[tuple[str, dict[str, Any]]] = []
    found: list[Call] = []
    for mine, item in WEAVE_CASES.values():
        (part,) = made.parts(record(id=ID, user_id="u-1", **mine))
        body = {"project_id": "sandbox/sandbox", "weave_ref": REF, "id": part.id, "creator": "u-1", **item}
        query = {"$expr": {"$eq": [{"$getField": "id"}, {"$literal": part.id}]}}
        calls += [
            ("feedback_create", body),
            ("feedback_replace", {**body, "feedback_id": part.id}),
            ("feedback_purge", {"project_id": "sandbox/sandbox", "query": query}),
        ]
        for action in ("create", "replace", "retract"):
            found += heard(sandbox, "weave", ours(made, action, user_id="u-1", **mine))
    for _, _, body in found:
        if "payload" in body:
            without(body["payload"], "weave payload")
    theirs = heard(sandbox, "weave", weave_sends(sandbox, tmp_path, *calls))

    assert [(method, path, said_of(body)) for method, path, body in theirs] == found


def test_weave_gets_a_batch_as_its_client_sends_it(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    Several rows in one request.
    """
    said = sandbox.environment()
    made = WeaveExporter("sandbox/sandbox", api_key=said["WANDB_API_KEY"], base_url=said["WF_TRACE_SERVER_URL"])
    ((method, path, body),) = heard(sandbox, "weave", ours(made, value=True, comment="c"))
    batch = json.loads(json.dumps(body))
    ((their_method, their_path, theirs),) = heard(
        sandbox, "weave", weave_sends(sandbox, tmp_path, ("feedback_create_batch", batch))
    )

    assert 2 == len(body["batch"])
    assert (method, path, body) == (their_method, their_path, said_of(theirs))


def said_of(body: Any) -> Any:
    """Leave out what a client sends as null, and Weave's names for what it never reads of a client."""
    if isinstance(body, list):
        return [said_of(each) for each in body]
    if not isinstance(body, dict):
        return body
    return {name: said_of(value) for name, value in body.items() if value is not None}


def without(found: dict[str, Any], case: str) -> set[str]:
    """Take out of what we sent what is intended to be there besides; answer what of it was there."""
    return {name for name in DIFFERENCES[case] if found.pop(name, None) is not None}


def differing(theirs: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
    """Answer what the one has and the other has not, or has otherwise."""
    return {name for name in theirs.keys() | found.keys() if theirs.get(name) != found.get(name)}


def test_the_handle_is_the_one_that_is_spoken_of() -> None:
    """
    The ids above are those of the judgements that are sent.
    """
    assert (TRACE, SPAN) == (handle().trace_id, handle().span_id)
