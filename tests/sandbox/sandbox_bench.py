"""What the sandbox's tests share: a bench without sockets, a clock that stands, spans as OTLP bytes."""

from __future__ import annotations

import asyncio
import random

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from otel_feedback.sandbox import Switches
from otel_feedback.sandbox._app import build
from otel_feedback.sandbox._braintrust import project_id
from otel_feedback.sandbox._core import Core
from otel_feedback.sandbox._limits import Limits
from otel_feedback.sandbox._state import mistargeted

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT = "b7ad6b7169203331"
CHILD = "00f067aa0ba902b7"
NOON = 1_795_348_800_000_000_000
PROTOBUF = {"content-type": "application/x-protobuf"}

AUTH = {
    "orq": {"authorization": "Bearer key"},
    "braintrust": {"authorization": "Bearer key"},
    "weave": {"authorization": "Basic YXBpOmtleQ=="},  # api:key
}


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now

    def advance(self, *, millis):
        self.now += millis * 1_000_000


def any_value(value):  # noqa: PLR0911  one line for each kind of value
    """Write a JSON value as OTLP does."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, list):
        found = AnyValue()
        found.array_value.values.extend(any_value(each) for each in value)
        return found
    if isinstance(value, dict):
        found = AnyValue()
        found.kvlist_value.values.extend(pairs(value))
        return found
    return AnyValue() if value is None else AnyValue(string_value=value)


def pairs(attributes):
    return [KeyValue(key=name, value=any_value(value)) for name, value in attributes.items()]


def span(span_id=ROOT, parent=None, trace_id=TRACE, name="answer", start=NOON, **attributes):
    """Describe a span; attributes are given with underscores doubled for dots."""
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "parent": parent,
        "name": name,
        "start": start,
        "attributes": {key.replace("__", "."): value for key, value in attributes.items()},
    }


def otlp(*spans, resource=None):
    """Write an export request."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(pairs(resource or {}))
    scope_spans = resource_spans.scope_spans.add()
    for each in spans:
        made = scope_spans.spans.add(
            trace_id=bytes.fromhex(each["trace_id"]),
            span_id=bytes.fromhex(each["span_id"]),
            parent_span_id=bytes.fromhex(each["parent"] or ""),
            name=each["name"],
            kind=1,
            start_time_unix_nano=each["start"],
            end_time_unix_nano=each["start"] + 5_000_000,
        )
        made.attributes.extend(pairs(each["attributes"]))
    return request.SerializeToString()


class Bench:
    """The sandbox's app, called in this process."""

    def __init__(self, *, limits=None, **switches):
        self.clock = Clock()
        self.core = Core(Switches(**switches), self.clock, random.Random(7), limits=limits or Limits())
        self.app, _ = build(self.core, lambda: None)
        self.project = project_id("sandbox")

    def call(self, vendor, path, body=None, *, method="POST", headers=None, content=None):
        headers = {**AUTH[vendor], **(headers or {})}
        return self.request(method, f"/{vendor}{path}", json=body, content=content, headers=headers)

    def request(self, method, path, **given):
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **given)

        return asyncio.run(send())

    def orq(self, property="rating", value=("good",), trace_id=TRACE, product="otel", **fields):  # noqa: A002
        given = {"property": property, "value": list(value) if isinstance(value, tuple) else value}
        return self.call("orq", "/v2/feedback", {**given, "trace_id": trace_id, "product": product, **fields})

    def braintrust(self, *items, project=None):
        return self.call(
            "braintrust", f"/v1/project_logs/{project or self.project}/feedback", {"feedback": list(items)}
        )

    def weave(self, **fields):
        return self.call("weave", "/feedback/create", weave_item(**fields))

    def export(self, vendor, *spans, path=None, resource=None, **headers):
        path = path or ("/v2/otel/v1/traces" if vendor == "orq" else "/otel/v1/traces")
        where = {"braintrust": {"x-bt-parent": "project_name:sandbox"}, "weave": {"project_id": "acme/chat"}}
        headers = {**where.get(vendor, {}), **PROTOBUF, **headers}
        return self.call(vendor, path, content=otlp(*spans, resource=resource), headers=headers)

    def state(self):
        return self.core.state()

    def mistargeted(self, expected):
        return mistargeted(self.core.state(), expected)

    def only(self):
        """Answer the one feedback that there is."""
        (entry,) = self.state()["feedback"]
        return entry

    def flags(self):
        return [flag["flag"] for flag in self.state()["flags"]]


def weave_item(span_id=ROOT, **fields):
    given = {
        "project_id": "acme/chat",
        "weave_ref": f"weave:///acme/chat/call/{span_id}",
        "feedback_type": "wandb.reaction.1",
        "payload": {"emoji": "👍"},
    }
    return {**given, **fields}
