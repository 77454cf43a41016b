"""An app that configures feedback first, and then its tracing: prints the span ids of the calls that were collected."""

from __future__ import annotations

import json
import sys

import arize.otel
import phoenix.otel
from application import WAYS, ask
from instrumented import OPENINFERENCE
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

vendor, endpoint, model_url = sys.argv[1:]

of.configure(exporters=[], store="memory:")
if vendor == "phoenix":
    phoenix.otel.register(endpoint=endpoint, protocol="http/protobuf", verbose=False)
else:
    arize.otel.register(space_id="s", api_key="x", endpoint=endpoint, verbose=False)
tracer_provider = trace.get_tracer_provider()
if not isinstance(tracer_provider, TracerProvider):
    sys.exit("the vendor registered no provider")
with OPENINFERENCE.on(tracer_provider), of.collect_handles() as collected:
    answer = ask(model_url, WAYS[0])
tracer_provider.shutdown()
print(json.dumps([handle.span_id for handle in collected]))
