"""Phoenix's and Arize's tracer providers, from their packages: ours beside their exporters, not in their place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import arize.otel
import phoenix.otel
import pytest
from application import WAYS, ask
from instrumented import OPENINFERENCE
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

if TYPE_CHECKING:
    from chat_completions import ChatCompletions
    from trace_collector import Arrived, GrpcTraceCollector, TraceCollector

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"


def phoenix_registered(endpoint: str) -> TracerProvider:
    return phoenix.otel.register(endpoint=endpoint, protocol="grpc", set_global_tracer_provider=False, verbose=False)


def phoenix_registered_in_batches(endpoint: str) -> TracerProvider:
    return phoenix.otel.register(
        endpoint=endpoint, protocol="grpc", batch=True, set_global_tracer_provider=False, verbose=False
    )


def phoenix_provider(endpoint: str) -> TracerProvider:
    return phoenix.otel.TracerProvider(endpoint=endpoint, protocol="http/protobuf", verbose=False)


def arize_registered(endpoint: str) -> TracerProvider:
    return arize.otel.register(
        space_id="s",
        api_key="x",
        endpoint=endpoint,
        set_global_tracer_provider=False,
        verbose=False,
    )


def arize_provider(endpoint: str) -> TracerProvider:
    return arize.otel.TracerProvider(
        space_id="s", api_key="x", endpoint=endpoint, transport=arize.otel.Transport.HTTP, verbose=False
    )


def by_configure(tracer_provider: TracerProvider) -> None:
    of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider)


def by_install(tracer_provider: TracerProvider) -> None:
    of.configure(exporters=[], store="memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))
    of.install(tracer_provider)


# By gRPC: opentelemetry-exporter-otlp-proto-http 1.45 took away a private attribute that the vendors' `register` reads
# (arize-otel 0.14.1, arize-phoenix-otel before 0.17.2).
REGISTERED = (phoenix_registered, phoenix_registered_in_batches, arize_registered)
CONSTRUCTED = (phoenix_provider, arize_provider)

Make = Callable[[str], TracerProvider]
Install = Callable[[TracerProvider], None]


def check_both_get_it(tracer_provider: TracerProvider, model: ChatCompletions, arrived: Arrived) -> None:
    """Make a call: its span arrives at the vendor, and is the one that was collected."""
    with OPENINFERENCE.on(tracer_provider), of.collect_handles() as collected:
        ask(model.url, WAYS[0])
    tracer_provider.shutdown()

    assert 1 == len(collected)
    assert tuple(handle.span_id for handle in collected) == arrived.span_ids


@pytest.mark.parametrize("install", [by_configure, by_install])
@pytest.mark.parametrize("make", CONSTRUCTED)
def test_the_vendors_exporter_stays_and_the_calls_are_seen(
    make: Make, install: Install, collector: TraceCollector, model: ChatCompletions
) -> None:
    """
    However the provider was made, and however we come to it.
    """
    tracer_provider = make(collector.endpoint)
    install(tracer_provider)

    check_both_get_it(tracer_provider, model, collector.arrived)


@pytest.mark.parametrize("install", [by_configure, by_install])
@pytest.mark.parametrize("make", REGISTERED)
def test_the_exporter_that_register_sets_up_stays_too(
    make: Make, install: Install, grpc_collector: GrpcTraceCollector, model: ChatCompletions
) -> None:
    """
    One line of the vendor's, one of ours.
    """
    tracer_provider = make(grpc_collector.endpoint)
    install(tracer_provider)

    check_both_get_it(tracer_provider, model, grpc_collector.arrived)


@pytest.mark.parametrize("make", CONSTRUCTED)
def test_to_add_our_processor_by_hand_is_what_costs_the_vendors_exporter(
    make: Make, collector: TraceCollector, model: ChatCompletions
) -> None:
    """
    The control: by the provider's own `add_span_processor`, which removes the exporter that is there by default.
    """
    tracer_provider = make(collector.endpoint)
    feedback = of.configure(exporters=[], store="memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))
    tracer_provider.add_span_processor(feedback.span_processor)
    with OPENINFERENCE.on(tracer_provider), of.collect_handles() as collected:
        ask(model.url, WAYS[0])
    tracer_provider.shutdown()

    assert (1, ()) == (len(collected), collector.span_ids)


@pytest.mark.parametrize("vendor", ["phoenix", "arize"])
def test_a_vendors_global_provider_is_seen_although_it_comes_later(
    vendor: str, collector: TraceCollector, grpc_collector: GrpcTraceCollector, model: ChatCompletions
) -> None:
    """
    An app may configure feedback first, and register its tracing afterwards as the vendor's documentation has it.
    """
    endpoints = {"phoenix": collector.endpoint, "arize": grpc_collector.endpoint}
    said = subprocess.run(
        [sys.executable, PROGRAMS / "registers_later.py", vendor, endpoints[vendor], model.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )

    arrived = {"phoenix": collector.arrived, "arize": grpc_collector.arrived}[vendor]
    assert list(arrived.span_ids) == json.loads(said.stdout)
    assert 1 == len(arrived.span_ids)
