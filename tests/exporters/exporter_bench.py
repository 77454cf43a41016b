"""What the exporters' tests share: judgements, a driver that plays the vendor, and a vendor on loopback."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import jsonschema  # type: ignore[import-untyped]  # its types come apart, as types-jsonschema
import pytest
import yaml  # type: ignore[import-untyped]  # as types-PyYAML
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags
from typing_extensions import Self

import otel_feedback.sandbox
from otel_feedback import FeedbackHandle, FeedbackRecord, Part, Result
from otel_feedback._record import Feedback, make_record
from otel_feedback.exporters import PauseDestination, PermanentFailure, RetryableFailure, Success, Unclear
from otel_feedback.exporters._http import HTTPFeedbackExporter, HTTPOptions, NoAnswer

T = TypeVar("T")

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"
ROOT = "b7ad6b7169203331"
# 2026-01-01T00:00:00Z, where FakeClock starts.
NOON = 1_767_225_600_000_000_000
NOON_TEXT = "2026-01-01T00:00:00.000000Z"
ID = "0198f1f2-9c2b-7d3e-b5a1-8c9d2e4f6a7b"
SECRET = "sk-never-to-be-seen"  # noqa: S105 (made up, to be looked for in what is said)
MEGABYTE = 1_000_000

SPEC = Path(__file__).parents[3] / "shared" / "spec"

# What each status means, where a vendor says nothing else (DESIGN, Stores, Retry).
STATUSES: Mapping[int, type[Result]] = {
    200: Success,
    201: Success,
    204: Success,
    301: PauseDestination,
    302: PauseDestination,
    307: PauseDestination,
    400: PermanentFailure,
    401: PauseDestination,
    402: PauseDestination,
    403: PauseDestination,
    404: PauseDestination,
    405: PauseDestination,
    407: PauseDestination,
    408: RetryableFailure,
    409: PermanentFailure,
    410: PauseDestination,
    413: PermanentFailure,
    421: PauseDestination,
    422: PermanentFailure,
    425: RetryableFailure,
    429: RetryableFailure,
    500: Unclear,
    501: PauseDestination,
    502: Unclear,
    503: Unclear,
    504: Unclear,
    505: PauseDestination,
}


# --- judgements ------------------------------------------------------------------------------------------------


def handle(*, root: str = ROOT, ended_at: int | None = None, span_id: str = SPAN, **attributes: str) -> FeedbackHandle:
    """Make the handle of a span below a root; attributes are given with underscores doubled for dots."""
    context = SpanContext(int(TRACE, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(1))
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    return FeedbackHandle(context, root=int(root or "0", 16), ended_at=ended_at, attributes=named)


def record(
    name: str = "rating",
    value: Any = None,
    *,
    target: FeedbackHandle | None = None,
    revision: int = 0,
    **said: Any,
) -> FeedbackRecord:
    """Record a judgement at noon, under an id that is always the same."""
    target = target or handle()
    feedback = Feedback(name=name, value=value, target=target, **{"id": ID, **said})
    made = make_record(feedback, target, now_unix_nano=NOON, rng=random.Random(1))
    return replace(made, revision=revision)


_WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
_NAMES = st.sampled_from(["rating", "thumb", "toxic", "defects", "interactions", "relevance"]) | _WORDS.filter(
    lambda name: not name.lower().startswith("wandb.")
)
_LABELS = st.lists(_WORDS | st.sampled_from(["good", "spelling", "saved"]), min_size=1, max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1_000, 1_000) | st.floats(allow_nan=False, allow_infinity=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def judgements(draw: st.DrawFn) -> FeedbackRecord:
    """Make any judgement that is accepted."""
    said: dict[str, Any] = {}
    match draw(st.sampled_from(["thumb", "fraction", "stars", "label", "labels", "nothing"])):
        case "thumb":
            said["value"] = draw(st.booleans())
        case "fraction":
            said["value"] = draw(st.floats(0, 1))
        case "stars":
            low = draw(st.integers(-100, 100))
            high = draw(st.integers(low + 1, 200))
            said |= {"value": draw(st.integers(low, high)), "scale": (low, high)}
        case "label":
            said["value"] = draw(_WORDS)
        case "labels":
            said["value"] = draw(_LABELS)
    optional = {
        "comment": _WORDS | st.just("long " * 300),
        "correction": _WORDS | _JSON.filter(lambda value: value is not None),
        "tags": _LABELS,
        "user_id": _WORDS,
        "metadata": st.dictionaries(_WORDS, _JSON, max_size=3),
        "source": st.sampled_from(["human", "llm", "code"]),
    }
    said |= draw(st.fixed_dictionaries({}, optional=optional))
    if said.keys().isdisjoint({"value", "comment", "correction", "tags"}):
        said["comment"] = "fine"
    target = draw(st.sampled_from([handle(), handle(root=""), handle(span_id="00000000000000a1")]))
    return replace(
        record(draw(_NAMES), target=target, **{**said, "id": draw(st.uuids())}), revision=draw(st.integers(0, 2))
    )


def changed(exporter: HTTPFeedbackExporter, before: FeedbackRecord, after: FeedbackRecord) -> list[Part]:
    """Answer the parts of a judgement that replace those of an earlier one."""
    standing = {part.kind: part for part in exporter.parts(before)}
    return [replace(part, action="replace", replaces=standing[part.kind]) for part in exporter.parts(after)]


def taken_back(parts: Iterable[Part], stands: FeedbackRecord | None = None) -> list[Part]:
    """Answer parts as they are when a judgement is retracted."""
    return [replace(part, action="retract", record=replace(part.record, stands=stands)) for part in parts]


# --- playing the vendor, without any I/O -----------------------------------------------------------------------


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    """Make an answer; headers are given with underscores for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        return httpx.Response(status, content=body, headers=named)
    return httpx.Response(status, json={} if body is None else body, headers=named)


UNCLEAR = NoAnswer(Unclear("no answer (ReadTimeout)"))
REFUSED = NoAnswer(RetryableFailure("no connection (ConnectError)"))


def play(
    exchange: Generator[httpx.Request, httpx.Response, T],
    *answers: httpx.Response | NoAnswer | Callable[[httpx.Request], httpx.Response],
) -> tuple[list[httpx.Request], T]:
    """Answer an exchange's requests, the last answer again and again; return what was asked and what it returned."""
    requests: list[httpx.Request] = []
    waiting = list(answers) or [answer()]
    try:
        request = next(exchange)
        while True:
            requests.append(request)
            assert len(requests) < 1_000, "the exchange asks for ever"
            said = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if isinstance(said, NoAnswer):
                request = exchange.throw(said)
            else:
                request = exchange.send(said(request) if callable(said) else said)
    except StopIteration as stop:
        result: T = stop.value
        return requests, result


def answering(status: int) -> HTTPOptions:
    """Options for a vendor that always answers so, and quotes the key that it was given, as vendors do."""

    def said(request: httpx.Request) -> httpx.Response:
        key = request.headers.get("authorization")
        return httpx.Response(status, json={"message": f"not {key}", "reason": f"not {key} {SECRET}"})

    return HTTPOptions(transport=httpx.MockTransport(said))


def asked(request: httpx.Request) -> tuple[str, Any]:
    """Answer a request's path and what its body says."""
    return request.url.path, json.loads(request.content)


def paths(requests: Iterable[httpx.Request]) -> list[str]:
    """Answer the paths that were asked for, in order."""
    return [request.url.path for request in requests]


# --- contracts -------------------------------------------------------------------------------------------------


def contract(vendor: str, path: str, method: str = "post") -> jsonschema.Draft202012Validator:
    """Build the validator of a request's body from the document that the sandbox has of a vendor."""
    text = (Path(otel_feedback.sandbox.__file__).parent / "openapi" / f"{vendor}.json").read_text(encoding="utf-8")
    return _validator(json.loads(text), path, method)


def published(vendor: str, path: str) -> jsonschema.Draft202012Validator:
    """Build the same from the vendor's own page, where it is there."""
    page = SPEC / f"{vendor}-feedback.openapi.yaml"
    if not page.exists():
        pytest.skip(f"the reference documents are not there ({page})")
    return _validator(yaml.safe_load(page.read_text(encoding="utf-8")), path)


def _validator(document: Mapping[str, Any], path: str, method: str = "post") -> jsonschema.Draft202012Validator:
    body = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator({"allOf": [body], "components": document["components"]})


# --- an exporter as a third party writes one -------------------------------------------------------------------


class PlainExporter(HTTPFeedbackExporter):
    """The least that an HTTP exporter has to say: what is sent, and how."""

    def __init__(self, base_url: str = "http://127.0.0.1:9", options: HTTPOptions | None = None) -> None:
        super().__init__(name="plain", base_url=base_url, options=options)

    @property
    def headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {SECRET}"}

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        return [Part(record=record, kind="value", body={"comment": record.comment}, carries=frozenset({"comment"}))]

    def exchange(self, parts: Sequence[Part]) -> Generator[httpx.Request, httpx.Response, Sequence[Result]]:
        results = []
        for part in parts:
            response = yield self.request("POST", "/feedback", part.body)
            results.append(self.result(response))
        return results


E = TypeVar("E", bound=HTTPFeedbackExporter)


@contextlib.contextmanager
def running(exporter: E) -> Iterator[E]:
    """Shut an exporter down at the end."""
    try:
        yield exporter
    finally:
        exporter.shutdown()


# --- a vendor on loopback --------------------------------------------------------------------------------------

Step = Callable[[socket.socket, threading.Event], bool]


def say(status: int = 200, body: bytes = b"{}", *, length: int | None = None, **headers: str) -> Step:
    """Answer; `length` is what the head says of the body."""
    named = {"content-length": str(len(body) if length is None else length)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in named.items()), "", ""]

    def step(connection: socket.socket, _stopped: threading.Event) -> bool:
        connection.sendall("\r\n".join(lines).encode() + body)
        return length is None

    return step


def reset(connection: socket.socket, _stopped: threading.Event) -> bool:
    """Reset the connection without an answer (linger of zero sends RST)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def close(_connection: socket.socket, _stopped: threading.Event) -> bool:
    """Close the connection without an answer."""
    return False


def hang(_connection: socket.socket, stopped: threading.Event) -> bool:
    """Never answer."""
    stopped.wait()
    return False


def drip(connection: socket.socket, stopped: threading.Event) -> bool:
    """Answer a byte of a long body now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while not stopped.wait(0.005):
        connection.sendall(b" ")
    return False


class Vendor:
    """A server on loopback that answers by a script, the last step again and again; it counts connections."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.connections = 0
        self._steps: list[Step] = [say()]
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        vendor = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                vendor.connections += 1
                vendor._open.add(self.request)
                with contextlib.suppress(OSError):
                    while vendor._serve(self.request):
                        pass
                vendor._open.discard(self.request)

            def finish(self) -> None:
                self.request.close()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = False

            def shutdown_request(self, request: Any) -> None:
                """Leave it to the handler: shutting down first would turn a reset into a close."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *steps: Step) -> None:
        self._steps = list(steps)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def _serve(self, connection: socket.socket) -> bool:
        """Read one request and take one step; say whether the connection stays open."""
        data = b""
        while b"\r\n\r\n" not in data:
            received = connection.recv(65_536)
            if not received:
                return False
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("Content-Length", headers.get("content-length", "0")))
        while len(body) < length:
            body += connection.recv(65_536)
        method, target, _ = first.split(" ")
        self.requests.append(httpx.Request(method, f"{self.url}{target}", headers=headers, content=body))
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        return step(connection, self._stopped)
