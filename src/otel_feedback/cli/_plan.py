"""What `plan` does: show what each vendor would get of a judgement, and send nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rich.console import Console, RenderableType
from rich.json import JSON
from rich.padding import Padding
from rich.text import Text

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import Feedback, Part, feedback_of
from otel_feedback._route import DestinationPlan
from otel_feedback._settings import Settings
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import ConfigurationError, FeedbackError, InvalidFeedbackError
from otel_feedback.exporters import FeedbackExporter, Result
from otel_feedback.exporters._http import LOOK_UP, Exchange, HTTPFeedbackExporter
from otel_feedback.provider import FeedbackProvider

# The example of W3C Trace Context: a call that nobody made, for a judgement that names none.
EXAMPLE_CALL = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# How deep what belongs to a destination is set in.
INDENT = 2

console = Console(highlight=False)

GIVEN = tuple(item.name for item in fields(Feedback) if item.name not in ("target", "key", "key_kind"))


@dataclass(frozen=True, slots=True)
class Sent:
    """What would be sent for one part, and where: an address of HTTP, else a route in the exporter's own terms.

    Where the vendor is asked something first, `asks_first` is that, and the address depends on the answer. What is
    `refused` is not sent at all. `held_millis` is how long it waits for its span at the most.
    """

    kind: str
    body: Any
    method: str | None = None
    url: str | None = None
    route: str | None = None
    asks_first: str | None = None
    refused: str | None = None
    held_millis: int = 0


def run_plan(given: Mapping[str, Any], *, is_read: bool, as_json: bool) -> None:
    """Print the plan of a judgement.

    Args:
        given: the fields of a judgement, and the call that it is about.

        is_read: whether the others are read as JSON from standard input.

        as_json: for a machine.
    """
    try:
        settings = replace(Settings.from_environment(), delivery="none")
        if settings.disabled or not settings.exporters:
            why = "OTEL_FEEDBACK_DISABLED is set" if settings.disabled else "OTEL_FEEDBACK_EXPORTERS names no exporter"
            raise SystemExit(f"otel-feedback: nothing would be sent anywhere: {why}")
        with FeedbackProvider(store="memory:", settings=settings) as provider:
            read = read_judgement(sys.stdin.read()) if is_read else {}
            plans = provider.plan(judgement_of({**read, **given}))
            sent = {name: requests_of(provider.exporters[name], plan.parts) for name, plan in plans.items()}
    except FeedbackError as error:
        raise SystemExit(f"otel-feedback: {error}") from error
    if as_json:
        objects = {name: as_object(plan, sent[name]) for name, plan in plans.items()}
        print(json.dumps(objects, indent=2))  # noqa: T201 (a command's answer)
    else:
        show(plans, sent)


# --- what is planned ---------------------------------------------------------------------------------------------


def read_judgement(text: str) -> dict[str, Any]:
    """Read a judgement as JSON: the fields of `Feedback`, and the call as `traceparent` and `attributes`.

    Raises:
        InvalidFeedbackError: when it is no object.
    """
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InvalidFeedbackError(
            'expected a judgement as a JSON object, as in {"name": "rating", "value": true}', field="feedback"
        )
    return given


def value_of(text: str) -> Any:
    """Read a value as it is typed: `true`, `4`, `0.5` and `["a", "b"]` are JSON, anything else is a label."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if value is None or isinstance(value, dict) else value


def judgement_of(given: Mapping[str, Any]) -> Feedback:
    """Make a judgement of what was given, on the call that was named or on an example of one.

    Raises:
        InvalidFeedbackError: naming what cannot be a judgement's.
    """
    options = dict(given)
    traceparent, attributes = options.pop("traceparent", None), options.pop("attributes", None)
    unknown = next((name for name in options if name not in GIVEN), None)
    if unknown is not None:
        raise InvalidFeedbackError(
            f"a judgement has no {unknown!r} here; it has {', '.join((*GIVEN, 'traceparent', 'attributes'))}",
            field="feedback",
        )
    handle = FeedbackHandle.from_traceparent(traceparent or EXAMPLE_CALL, attributes=attributes or {})
    return feedback_of(handle, options.pop("name", None), options.pop("value", None), options)


def requests_of(exporter: FeedbackExporter, parts: Sequence[Part]) -> list[Sent]:
    """Say what would be sent for each part."""
    return [_sent(exporter, part) for part in parts]


def _sent(exporter: FeedbackExporter, part: Part) -> Sent:
    """Say what would be sent for a part."""
    held_nano = part.not_before_unix_nano - part.record.recorded_at_unix_nano
    sent = Sent(part.kind, dict(part.body), route=part.route or None, held_millis=max(0, held_nano) // NANOS_PER_MILLI)
    if not isinstance(exporter, HTTPFeedbackExporter):
        return sent
    try:
        if not part.route:  # a span may name its place itself
            exporter.check_place()
    except ConfigurationError as error:
        return replace(sent, refused=str(error))
    return _over_http(sent, exporter.exchange([part]))


def _over_http(sent: Sent, exchange: Exchange[Sequence[Result]]) -> Sent:
    """Take the first request of an exchange, without its headers: they have the key. Nobody answers it here."""
    try:
        request = next(exchange)
    except StopIteration as stop:
        return replace(sent, refused=stop.value[0].reason)
    exchange.close()
    if LOOK_UP in request.extensions:
        return replace(sent, asks_first=f"{request.method} {request.url}")
    return replace(sent, body=json.loads(request.content), method=request.method, url=str(request.url))


def as_object(plan: DestinationPlan, sent: Sequence[Sent]) -> dict[str, Any]:
    """Write the plan of one destination for a machine; what there is not is left out."""
    return {
        "skipped": plan.skipped,
        "not_carried": list(plan.not_carried),
        "parts": [{name: value for name, value in asdict(each).items() if value not in (None, 0)} for each in sent],
    }


# --- as a person reads it ----------------------------------------------------------------------------------------


def show(plans: Mapping[str, DestinationPlan], sent: Mapping[str, Sequence[Sent]]) -> None:
    """Print the plans."""
    for name, plan in plans.items():
        console.print(Text.assemble((name, "bold"), *_verdict(plan, sent[name])))
        for each in sent[name]:
            _show_part(each)
        if plan.not_carried:
            _print(Text(f"no place for: {', '.join(plan.not_carried)}", "yellow"), INDENT)
        console.print()
    console.print("Nothing was sent, and nothing was stored.", style="dim")


def _verdict(plan: DestinationPlan, sent: Sequence[Sent]) -> Iterator[tuple[str, str]]:
    """Say in a few words what would become of a judgement at one destination."""
    if plan.skipped is not None:
        yield f"  skipped ({plan.skipped}); it would have been:" if sent else f"  skipped ({plan.skipped})", "yellow"
    elif not sent:
        yield "  nothing that it could carry", "yellow"


def _show_part(sent: Sent) -> None:
    """Print what would be sent for one part."""
    where = f"{sent.method} {sent.url}" if sent.url else sent.route or ""
    _print(Text.assemble((sent.kind, "cyan"), f"  {where}".rstrip()), INDENT)
    if sent.refused is not None:
        _print(Text(f"would not be sent: {sent.refused}", "bold red"), 2 * INDENT)
    if sent.asks_first is not None:
        _print(Text(f"asks first: {sent.asks_first}", "dim"), 2 * INDENT)
    if sent.held_millis:
        _print(Text(f"waits for its span, {sent.held_millis / 1_000:g} s at the most", "dim"), 2 * INDENT)
    _print(JSON.from_data(sent.body, highlight=console.is_terminal), 2 * INDENT)


def _print(what: RenderableType, indent: int) -> None:
    """Print something set in."""
    console.print(Padding(what, (0, 0, 0, indent)))
