"""OTLP over HTTP, read: protobuf bytes to spans. What they mean to a vendor is that vendor's module's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import (  # type: ignore[import-untyped]  # they come as types-protobuf
    DecodeError,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from ._model import Answer, Span, Vendor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
"""By their number in the protocol."""

MEDIA_TYPE = "application/x-protobuf"

SHOWN_PREFIXES = (
    "gen_ai.",
    "llm.",
    "openinference.",
    "braintrust.",
    "wandb.",
    "orq.",
    "ai.",
    "traceloop.",
    "session.",
    "user.",
    "conversation.",
    "error.",
    "otel_feedback.",
)
"""Attributes that tell a reader what a span was; the rest, prompts above all, is left out."""

HIDDEN_PARTS = (
    "message",
    "prompt",
    "completion.",
    "input",
    "output",
    "content",
    "instructions",
    "tool.definitions",
)
"""Parts of names under which instrumentations put what people wrote."""

MAX_SHOWN_CHARACTERS = 500
"""A longer attribute is cut in the state: it is for reading."""


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as the wire has it, before a vendor gave it a place."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    start_time_unix_nano: int
    end_time_unix_nano: int


def read_spans(body: bytes) -> list[ReceivedSpan]:
    """Decode an export request; raises `ValueError` where it is none."""
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("the body is no ExportTraceServiceRequest in protobuf") from error
    return list(_spans(request))


def export_answer(rejected: int = 0, message: str = "") -> Answer:
    """Answer an export as the protocol wants, with what was rejected where anything was."""
    response = ExportTraceServiceResponse()
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = message
    return Answer(200, response.SerializeToString(), media_type=MEDIA_TYPE)


def stored(span: ReceivedSpan, vendor: Vendor, project: str, view: str = "") -> Span:
    """Give a span its place at a vendor."""
    return Span(
        vendor=vendor,
        project=project,
        view=view,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        kind=span.kind,
        attributes=span.attributes,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
    )


def shown(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the attributes that help a reader, without what people wrote."""
    return {
        name: value[:MAX_SHOWN_CHARACTERS] if isinstance(value, str) else value
        for name, value in attributes.items()
        if name.startswith(SHOWN_PREFIXES) and (name in _ALWAYS or not any(p in name for p in HIDDEN_PARTS))
    }


_ALWAYS = frozenset(
    {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.output.type"}
)  # names that contain a hidden part, yet are numbers


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, resource)


def _span(span: ProtoSpan, resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=KINDS[span.kind] if span.kind < len(KINDS) else KINDS[0],  # an open enum: later numbers may come
        attributes=_attributes(span.attributes),
        resource=resource,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    """Answer a value as JSON would have it; bytes as hex."""
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_value(each) for each in value.array_value.values]
    if which == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    plain = getattr(value, which)
    return plain.hex() if isinstance(plain, bytes) else plain
