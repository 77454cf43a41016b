"""Loopback stand-ins of a tracing backend: one takes spans by OTLP over HTTP, on any path, the other one by gRPC."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from loopback import Loopback, LoopbackHandler
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from typing_extensions import Self


class Arrived:
    """The ids of the spans that arrived."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._span_ids: list[str] = []

    @property
    def span_ids(self) -> Sequence[str]:
        """The spans that came, in order, as hex."""
        with self._lock:
            return tuple(self._span_ids)

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Note what one request brought."""
        spans = [
            span.span_id.hex()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._span_ids.extend(spans)


class TraceCollector(Loopback):
    """The one of HTTP, running while it is entered."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.arrived = Arrived()

    @property
    def endpoint(self) -> str:
        """What an exporter takes."""
        return f"{self.origin}/v1/traces"

    @property
    def span_ids(self) -> Sequence[str]:
        """The spans that came."""
        return self.arrived.span_ids


class _Handler(LoopbackHandler):
    """One export."""

    def do_POST(self) -> None:  # noqa: N802 (the standard library's name)
        """Take the spans."""
        self.server.owner.arrived.take(ExportTraceServiceRequest.FromString(self.read_body()))
        self.send(200, "application/x-protobuf", ExportTraceServiceResponse().SerializeToString())


class GrpcTraceCollector(TraceServiceServicer):
    """The one of gRPC, running while it is entered."""

    def __init__(self) -> None:
        self.arrived = Arrived()
        self._server = grpc.server(ThreadPoolExecutor(1))
        add_TraceServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def endpoint(self) -> str:
        """What an exporter takes."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def span_ids(self) -> Sequence[str]:
        """The spans that came."""
        return self.arrived.span_ids

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802 (the protocol's name)
        """Take the spans."""
        self.arrived.take(request)
        return ExportTraceServiceResponse()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
