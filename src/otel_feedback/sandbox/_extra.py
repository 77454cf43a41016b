"""Says which extra is missing, before the import of a library does it in its own words."""

from __future__ import annotations

try:
    import jsonschema  # type: ignore[import-untyped]  # its types come apart, as types-jsonschema
    import opentelemetry.proto.collector.trace.v1.trace_service_pb2
    import starlette
    import uvicorn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the sandbox needs {error.name}: pip install 'otel-feedback[sandbox]'", name=error.name
    ) from error

__all__ = ["jsonschema", "opentelemetry", "starlette", "uvicorn"]
