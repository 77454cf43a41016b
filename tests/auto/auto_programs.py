"""How the programs of this directory are run, and what is read from what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INSTRUMENT = str(Path(sys.executable).parent / "opentelemetry-instrument")

# What OpenTelemetry itself says at the start of every process that has a configuration file.
OPENTELEMETRY_SAYS = frozenset(
    {
        "OTEL_CONFIG_FILE is set; ignoring configurator kwargs: ['auto_instrumentation_version']",
        # What has a section in the file is instrumented by the file, and then once more by the command.
        "Attempting to instrument while already instrumented",
    }
)

Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]
Judge = Callable[..., dict[str, str]]


def run(command: list[str], settings: Mapping[str, str]) -> Ran:
    """Run a program with settings; it has a minute."""
    return subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False, timeout=60
    )


def answers(ran: Ran) -> dict[str, str]:
    """Read the lines that a program printed, by their first word."""
    lines = (line.partition(" ") for line in ran.stdout.splitlines())
    return {key: value for key, _, value in lines}


def said(ran: Ran) -> list[str]:
    """List what a program said on its standard error, but for what OpenTelemetry does."""
    return [line for line in ran.stderr.splitlines() if line not in OPENTELEMETRY_SAYS]


def spans(ran: Ran) -> Iterator[dict[str, Any]]:
    """List the spans that OpenTelemetry's console exporter printed among a program's lines."""
    decoder = json.JSONDecoder()
    at = ran.stdout.find("{\n")
    while at >= 0:
        span, end = decoder.raw_decode(ran.stdout, at)
        yield span
        at = ran.stdout.find("{\n", end)
