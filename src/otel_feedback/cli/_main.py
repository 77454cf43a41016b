"""Where the command starts: says which extra to install when a part of it is missing."""

from __future__ import annotations

import sys

# What each extra brings; a missing module is reported by the extra that has it.
_EXTRA_OF = {
    "jsonschema": "sandbox",
    "opentelemetry": "sandbox",
    "rich": "cli",
    "starlette": "sandbox",
    "typer": "cli",
    "uvicorn": "sandbox",
}


def main() -> None:
    """Run the command line."""
    try:
        from otel_feedback.cli._app import app  # noqa: PLC0415 (an optional dependency)

        app()
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(f"otel-feedback: this command needs the extra [{extra}]: pip install 'otel-feedback[{extra}]'")
