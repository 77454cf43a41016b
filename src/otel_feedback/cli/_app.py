"""The commands: what they take, and with which status they end."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from otel_feedback.cli._config import run_config
from otel_feedback.cli._plan import run_plan, value_of
from otel_feedback.cli._retract import run_forget, run_retract
from otel_feedback.cli._status import run_status
from otel_feedback.cli._worker import deliver_once, work

# The port of the sandbox where none is given: "OTFB" on a telephone, and nobody's by IANA's registry.
SANDBOX_PORT = 6832
# A span's row may take minutes to arrive; what waits for an hour waits for somebody.
MAX_AGE_SECONDS = 3_600.0

# Markdown joins the lines of a paragraph, so that a terminal of any width breaks them itself.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def _tell_version(is_asked: bool) -> None:
    """Print the version, and end."""
    if is_asked:
        typer.echo(f"otel-feedback {importlib.metadata.version('otel-feedback')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and end.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Join people's judgement to the OpenTelemetry span it is about."""


@app.command()
def worker(
    *,
    once: Annotated[bool, typer.Option("--once", help="Make one pass over what is due, and end.")] = False,
) -> None:
    """Deliver what other processes record into the store, until Ctrl-C or SIGTERM.

    All of it comes from the environment: the store (OTEL_FEEDBACK_STORE_URL), the exporters (OTEL_FEEDBACK_EXPORTERS)
    and their keys. Any number of workers may share a store. In the end it prints the account; with --once the exit
    status is 1 when something still waits.
    """
    raise typer.Exit(0 if (deliver_once() if once else work()) else 1)


@app.command()
def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON; with --watch a line each time.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
    max_age_seconds: Annotated[float, typer.Option(help="What waits longer needs a person.", min=0)] = MAX_AGE_SECONDS,
) -> None:
    """Say whether everything arrived: the account of each destination, and what needs a person.

    The store comes from the environment (OTEL_FEEDBACK_STORE_URL); no key is needed, and nothing is sent. A person is
    needed where a destination is paused or has refused something for good, where feedback waits for an exporter, or
    for longer than it should. The exit status is then 1.
    """
    is_well = run_status(as_json=as_json, watch=watch, max_age_seconds=max_age_seconds)
    raise typer.Exit(0 if is_well else 1)


@app.command()
def config(*, as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False) -> None:
    """Show what is configured and from where, with secrets masked. Nothing is opened or sent.

    A variable that is mistyped, or has a value that is refused, is named below; the exit status is then 1.
    """
    raise typer.Exit(0 if run_config(as_json=as_json) else 1)


@app.command()
def retract(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The judgement's id, from its receipt.")],
) -> None:
    """Take a judgement back at every destination that can. The next delivery carries it out.

    What was not delivered yet is never sent. It prints the id, and what is to become of it at each destination; the
    exit status is 1 when no judgement is known under the id.
    """
    run_retract(record_id)


@app.command()
def forget(
    user: Annotated[str, typer.Option(help="Who judged: the user_id that the judgements have.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase from the store what one person judged, and every key that names them; it cannot be undone.

    What was not delivered yet never will be. What a vendor has stays there: retract it first.
    """
    if not yes:
        typer.confirm(f"Erase everything that {user} judged from the store?", abort=True)
    run_forget(user)


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="What is judged, such as rating; - reads a judgement as JSON.")],
    *,
    value: Annotated[str | None, typer.Option(help="true, false, a number, a label, or labels as a JSON list.")] = None,
    scale: Annotated[tuple[str, str] | None, typer.Option(help="The lowest and the highest number.")] = None,
    comment: Annotated[str | None, typer.Option(help="What the person wrote.")] = None,
    correction: Annotated[str | None, typer.Option(help="What the answer should have been.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; repeat it.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Who judged.")] = None,
    to: Annotated[list[str] | None, typer.Option(help="An exporter that it goes to; repeat it.")] = None,
    traceparent: Annotated[str | None, typer.Option(help="The call that is judged; by default an example.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False,
) -> None:
    """Show what each vendor would get of a judgement, and what it has no place for. Nothing is sent or stored.

    The exporters come from the environment (OTEL_FEEDBACK_EXPORTERS and theirs); no key is needed. JSON on standard
    input may have every field of a judgement, and its call as "traceparent" and "attributes"; options win over it.
    """
    options = {
        "value": None if value is None else value_of(value),
        "scale": None if scale is None else tuple(map(value_of, scale)),
        "comment": comment,
        "correction": correction,
        "tags": tag or None,
        "user_id": user_id,
        "to": to or None,
        "traceparent": traceparent,
    }
    given = {option: said for option, said in options.items() if said is not None}
    run_plan(given if name == "-" else {"name": name, **given}, is_read=name == "-", as_json=as_json)


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1; 0 takes any free one.")] = SANDBOX_PORT,
    orq_property: Annotated[
        list[str] | None, typer.Option(help="A property that the orq workspace has, besides orq's own; repeat it.")
    ] = None,
) -> None:
    """Start a stand-in for orq, Braintrust and W&B Weave on this machine, and print how to point an app at it.

    It takes spans and feedback as the vendors do, keeps them in memory, and shows on one page what is joined to what.
    Ctrl-C ends it.
    """
    from otel_feedback.cli._stage import run_sandbox  # noqa: PLC0415 (an optional dependency)

    run_sandbox(port, orq_property or ())


@app.command()
def demo(
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Use the real vendors whose keys are in the environment.")
    ] = False,
    serve: Annotated[
        bool | None, typer.Option("--serve/--exit", help="Keep the page up until Ctrl-C; by default in a terminal.")
    ] = None,
) -> None:
    """Run a small traced chat in one process, judge its answers from another, and show what landed where.

    One answer is judged while its call still runs. Needs no key and no network: the vendors are the sandbox's. The
    exit status is 0 when every judgement is joined at every vendor.
    """
    from otel_feedback.cli._stage import run_demo  # noqa: PLC0415 (an optional dependency)

    raise typer.Exit(0 if run_demo(live=live, serve=serve) else 1)
