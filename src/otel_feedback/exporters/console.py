"""The console: one JSON line a judgement, for development."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TextIO

import pydantic_core

from otel_feedback._record import FeedbackRecord, Part, record_to_json
from otel_feedback.exporters import Result, Success
from otel_feedback.exporters._checks import check_offers, check_text


class ConsoleFeedbackExporter:
    """Writes judgements to a stream, as OpenTelemetry's `ConsoleSpanExporter` writes spans.

    Args:
        out: where to; by default standard output, as it is at the time.

        name: how users route to it.
    """

    exports_unsampled = True

    def __init__(self, out: TextIO | None = None, *, name: str = "console") -> None:
        check_offers(out, "out", "write")
        self.name = check_text(name, "name")
        self._out = out

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """All of it in one line."""
        body = pydantic_core.from_json(record_to_json(record))
        return [Part(record=record, kind="value", body=body, carries=frozenset(record.said))]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Write a line for each."""
        out = self._out or sys.stdout
        for part in parts:
            # In ASCII, as `json` writes it: not every console can show what people say.
            out.write(json.dumps({"action": part.action, **part.body}) + "\n")
        out.flush()
        return [Success()] * len(parts)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: each line is flushed."""
        return True

    def shutdown(self) -> None:
        """Do nothing: the stream is not ours."""
