"""What `sandbox` and `demo` do: they need the sandbox's extra, which a worker in production does not."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_feedback.cli import _demo
from otel_feedback.cli._demo import Landing
from otel_feedback.cli._demo_script import TURNS
from otel_feedback.environment_variables import OTEL_FEEDBACK_EXPORTERS
from otel_feedback.exceptions import FeedbackError
from otel_feedback.sandbox import Sandbox, State, Switches

VENDORS = {"orq": "orq", "braintrust": "Braintrust", "weave": "W&B Weave"}

console = Console(highlight=False)


def run_sandbox(port: int, orq_properties: Sequence[str]) -> None:
    """Serve the sandbox until Ctrl-C."""
    try:
        running = Sandbox(port=port, switches=Switches(orq_properties=tuple(orq_properties)))
        running.start()
    except OSError as error:
        raise SystemExit(f"otel-feedback: port {port} cannot be had ({error.strerror}); try --port 0") from error
    with running, _until_interrupted():
        _print_directions(running)
        threading.Event().wait()


def run_demo(*, live: bool, serve: bool | None) -> bool:
    """Run the demo; say whether every judgement landed."""
    try:
        return _demo_live() if live else _demo_sandboxed(serve=console.is_terminal if serve is None else serve)
    except FeedbackError as error:
        raise SystemExit(f"otel-feedback: {error}") from error


def _demo_sandboxed(*, serve: bool) -> bool:
    """Play the demo at the sandbox."""
    with Sandbox(port=0, switches=_demo.STRICT) as running, tempfile.TemporaryDirectory() as directory:
        console.print("A chat answers in one process; its users judge in another …\n")
        accepted = _demo.play(Path(directory, "feedback.db"), running.otlp_endpoints(), running.environment())
        state = running.state()
        rows = [_demo.landings(each, state) for each in accepted]
        console.print(_table(rows, good="joined"))
        is_good = _print_sum(rows, state)
        ends = "Ctrl-C ends it" if serve else "it ends with this command; --serve keeps it up"
        console.print(f"\nThe same as a page: {running.url}/ ({ends})", soft_wrap=True)
        if serve:
            with _until_interrupted():
                threading.Event().wait()
    return is_good


def _demo_live() -> bool:
    """Play the demo at the real vendors."""
    exporters = _demo.live_exporters()
    endpoints = _demo.live_endpoints(exporters)
    console.print(f"A chat answers in one process; its users judge in another, at {', '.join(exporters)} …\n")
    with tempfile.TemporaryDirectory() as directory:
        accepted = _demo.play(Path(directory, "feedback.db"), endpoints, {}, exporters)
    rows = [_demo.deliveries(each) for each in accepted]
    console.print(_table(rows, good="delivered"))
    return all(landing.is_good for row in rows for landing in row.values())


def _table(rows: Sequence[Mapping[str, Landing]], *, good: str) -> Table:
    """Lay out what landed where, a row for each judgement."""
    table = Table(title="What landed where", title_justify="left", expand=False, show_lines=True)
    table.add_column("judgement")
    for vendor in rows[0]:
        table.add_column(VENDORS[vendor], overflow="fold")
    for turn, row in zip(TURNS, rows, strict=True):
        judged = Text.assemble((turn.message_id, "bold"), f"\n{turn.said}")
        table.add_row(judged, *(_cell(landing, good) for landing in row.values()))
    return table


def _cell(landing: Landing, good: str) -> Text:
    """Write one cell: the verdict, what is there, what has no place there."""
    verdict = (f"✓ {good}", "green") if landing.is_good else (f"✗ not {good}", "bold red")
    cell = Text.assemble(verdict, f"\n{landing.words}")
    if landing.not_carried:
        cell.append(f"\nno place for: {', '.join(landing.not_carried)}", "dim")
    return cell


def _print_sum(rows: Sequence[Mapping[str, Landing]], state: State) -> bool:
    """Add up the table, with what the sandbox found that no row shows."""
    landed = [landing.is_good for row in rows for landing in row.values()]
    is_good = all(landed) and not state["orphans"] and not state["flags"]
    console.print(
        f"\n{sum(landed)} of {len(landed)} joined, {state['orphans']} orphaned, {len(state['flags'])} flagged.",
        style="green" if is_good else "bold red",
    )
    return is_good


def _print_directions(running: Sandbox) -> None:
    """Say how to point an app at a sandbox."""
    console.print("Set these where the app and its feedback run:\n")
    variables = {OTEL_FEEDBACK_EXPORTERS: ",".join(VENDORS), **running.environment()}
    for name, value in variables.items():
        console.print(f"export {name}={value}", soft_wrap=True)
    console.print("\nSend spans (OTLP over HTTP) to:\n")
    for endpoint in running.otlp_endpoints():
        headers = ",".join(f"{name}={quote(value)}" for name, value in endpoint.headers.items())
        console.print(f"  {VENDORS[endpoint.vendor]:<11} {endpoint.url}\n{'':13} headers {headers}", soft_wrap=True)
    console.print(f"\nLook at {running.url}/ (JSON: {running.url}/state). Ctrl-C ends it.", soft_wrap=True)


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """End a block quietly at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nEnded.")
