"""What `config` does: tell what is configured and from where, with secrets masked, and what is mistyped."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_feedback.environment_variables import VARIABLES, is_set, read, unknown
from otel_feedback.exceptions import FeedbackError
from otel_feedback.provider import start_from_environment

# A name and a password in a URL (RFC 3986, section 3.2.1).
USERINFO = re.compile(r"//[^/@\s]*@")

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Configured:
    """A variable as it stands; the value of a secret only says that there is one."""

    name: str
    value: str
    source: str
    meaning: str


def run_config(*, as_json: bool) -> bool:
    """Tell the configuration; say whether it can be used."""
    rows, wrong = configured(), [*mistyped(), *_refused()]
    if as_json:
        told = {"variables": [asdict(row) for row in rows], "problems": wrong}
        print(json.dumps(told))  # noqa: T201 (a command's answer)
        return not wrong
    table = Table(title="Configuration", title_justify="left")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.value or "–", row.source, style=None if row.source == "environment" else "dim")
    console.print(table, *(Text(f"! {each}", style="bold red") for each in wrong), sep="\n")
    return not wrong


def configured(environ: Mapping[str, str] | None = None) -> Sequence[Configured]:
    """Read every variable there is."""
    return [
        Configured(
            name,
            _shown(read(name, environ), secret=variable.secret),
            "environment" if is_set(name, environ) else "default",
            variable.meaning,
        )
        for name, variable in VARIABLES.items()
    ]


def mistyped(environ: Mapping[str, str] | None = None) -> Sequence[str]:
    """Say which variables look like ours and are none."""
    return [f"{name} is no variable of otel-feedback{_meant(name)}" for name in unknown(environ)]


def _refused() -> Sequence[str]:
    """Say what the pipeline itself makes of the environment; nothing is opened, as it is not used."""
    try:
        start_from_environment()
    except FeedbackError as error:
        return [str(error)]
    return []


def _meant(name: str) -> str:
    """Guess which variable was meant."""
    found = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
    return f"; is {found[0]} meant?" if found else ""


def _shown(value: str, *, secret: bool) -> str:
    """Write a value without what is nobody else's business."""
    if secret:
        return f"set, {len(value)} characters" if value else ""
    return USERINFO.sub("//…@", value)
