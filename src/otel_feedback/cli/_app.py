"""The commands: what they take, and with which status they end."""

from __future__ import annotations

from typing import Annotated

import typer

from otel_feedback.cli._worker import deliver_once, work

# The port of the sandbox where none is given: "OTFB" on a telephone, and nobody's by IANA's registry.
SANDBOX_PORT = 6832

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Join people's judgement to the OpenTelemetry span it is about.",
)


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
