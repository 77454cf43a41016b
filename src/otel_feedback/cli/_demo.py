"""The demo: an app in one process, judgements from another, and what landed where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_feedback import environment_variables as env
from otel_feedback.cli._demo_script import EXPORTERS, TURNS
from otel_feedback.exceptions import ConfigurationError, FeedbackError
from otel_feedback.exporters.braintrust import BraintrustExporter
from otel_feedback.exporters.orq import OrqExporter
from otel_feedback.exporters.weave import WeaveExporter
from otel_feedback.sandbox import OTLPEndpoint, Switches

if TYPE_CHECKING:
    from otel_feedback.sandbox import FeedbackState, State

# The demo's sandbox is strict where a vendor may be: an arriving span overwrites what came before it.
STRICT = Switches(braintrust_early_feedback="overwrite")
# Delivery begins when the spans have arrived, so that nobody need wait for the usual minute.
HOLD_MILLIS = 500

# What Braintrust's audit log says of each judgement, besides the judgement.
BOOKKEEPING = ("feedback_id", "recorded_at", "user_id")

KEYS: Mapping[str, str] = {
    "orq": env.ORQ_API_KEY,
    "braintrust": env.BRAINTRUST_API_KEY,
    "weave": env.WANDB_API_KEY,
}


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of one judgement at one vendor: what is there in a reader's words, and whether it is as it should be.

    `not_carried` names what the vendor has no place for.
    """

    words: str
    is_good: bool
    not_carried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the judge said of one turn."""

    trace_id: str
    span_id: str
    not_carried: Mapping[str, Sequence[str]]
    deliveries: Mapping[str, Mapping[str, Any]]


# --- the two processes -------------------------------------------------------------------------------------------


def play(
    store: Path, endpoints: Sequence[OTLPEndpoint], variables: Mapping[str, str], exporters: Sequence[str] = EXPORTERS
) -> list[Accepted]:
    """Run the app, judge its answers from a second process while one call still runs, and let that one end.

    Args:
        store: the file that the two processes share.

        endpoints: where the app sends its spans.

        variables: the vendors' own settings.

        exporters: where the judgements go.
    """
    shared = {
        **os.environ,
        **variables,
        env.OTEL_FEEDBACK_STORE_URL: f"sqlite:///{store}",
        env.OTEL_FEEDBACK_EXPORTERS: ",".join(exporters),
        env.OTEL_FEEDBACK_DELIVERY: "none",
        env.OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS: str(HOLD_MILLIS),
        "OTEL_FEEDBACK_DEMO_ENDPOINTS": json.dumps(
            [{"url": endpoint.url, "headers": dict(endpoint.headers)} for endpoint in endpoints]
        ),
    }
    with _process("_demo_chat", shared) as chat:
        _hear(chat)
        with _process("_demo_judge", shared) as judge:
            accepted = [_hear(judge) for _ in TURNS]
            chat.communicate("go on\n")
            # Its spans have arrived, however slow this machine is.
            told, _ = judge.communicate("deliver\n")
    became = [_read(line) for line in told.splitlines() or [""]]
    return [Accepted(**first, **second) for first, second in zip(accepted, became, strict=True)]


def _process(module: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start one of the demo's processes."""
    return subprocess.Popen(  # noqa: S603 (this interpreter, a module of ours)
        [sys.executable, "-m", f"otel_feedback.cli.{module}"],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _hear(process: subprocess.Popen[str]) -> Any:
    """Wait for what a process says next."""
    return _read(process.stdout.readline() if process.stdout is not None else "")


def _read(line: str) -> Any:
    """Read what a process has said, if it has."""
    if not line:
        raise FeedbackError("a process of the demo ended too early; what it said is above")
    return json.loads(line)


# --- what landed where, pure -------------------------------------------------------------------------------------


def landings(accepted: Accepted, state: State) -> dict[str, Landing]:
    """Read from the sandbox what each vendor has of one judgement."""
    found = {}
    for vendor in EXPORTERS:
        there = [feedback for feedback in state["feedback"] if _is_about(feedback, vendor, accepted)]
        not_carried = tuple(accepted.not_carried.get(vendor, ()))
        found[vendor] = Landing(
            words=", ".join(_in_words(feedback) for feedback in there) or "nothing",
            is_good=bool(there) and all(feedback["joined"] and not feedback["flags"] for feedback in there),
            not_carried=not_carried,
        )
    return found


def deliveries(accepted: Accepted) -> dict[str, Landing]:
    """Tell what each vendor answered, where nobody can look whether it is joined."""
    return {
        vendor: Landing(
            words=f"{status['state']} ({status['reason']})",
            is_good=status["state"] == "delivered",
            not_carried=tuple(accepted.not_carried.get(vendor, ())),
        )
        for vendor, status in accepted.deliveries.items()
    }


def _is_about(feedback: FeedbackState, vendor: str, accepted: Accepted) -> bool:
    """Tell whether a vendor has this feedback on the accepted span; orq knows only its trace."""
    target = feedback["target"]
    is_there = target["trace_id"] == accepted.trace_id and target["span_id"] in (None, accepted.span_id)
    return feedback["vendor"] == vendor and is_there


def _in_words(feedback: FeedbackState) -> str:
    """Write what a vendor has as a reader would say it."""
    value = feedback["value"]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if isinstance(value, dict):
        value = ", ".join(f"{name} {said}" for name, said in value.items() if name not in BOOKKEEPING)
    return f"{feedback['name']} {value}"


# --- the real vendors --------------------------------------------------------------------------------------------


def live_exporters() -> list[str]:
    """Name the vendors for which the environment has a key.

    Raises:
        ConfigurationError: when there is none, or something else is missing for one that has a key.
    """
    found = [name for name in EXPORTERS if env.read(KEYS[name])]
    if not found:
        raise ConfigurationError(f"--live needs a key in the environment: {', '.join(KEYS.values())}")
    return found


def live_endpoints(exporters: Sequence[str]) -> list[OTLPEndpoint]:
    """Say where the vendors take spans."""
    return [_LIVE_ENDPOINT[name]() for name in exporters]


def _orq_endpoint() -> OTLPEndpoint:
    exporter = OrqExporter()
    return OTLPEndpoint(
        "orq", f"{exporter.base_url}/v2/otel/v1/traces", {"authorization": exporter.headers["authorization"]}
    )


def _braintrust_endpoint() -> OTLPEndpoint:
    exporter = BraintrustExporter()
    headers = {"authorization": exporter.headers["authorization"], "x-bt-parent": exporter.parent}
    return OTLPEndpoint("braintrust", f"{exporter.base_url}/otel/v1/traces", headers)


def _weave_endpoint() -> OTLPEndpoint:
    exporter = WeaveExporter()
    headers = {"authorization": exporter.headers["authorization"], "project_id": exporter.project_id}
    return OTLPEndpoint("weave", f"{exporter.base_url}/otel/v1/traces", headers)


_LIVE_ENDPOINT = {"orq": _orq_endpoint, "braintrust": _braintrust_endpoint, "weave": _weave_endpoint}
