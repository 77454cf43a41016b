from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from exporter_bench import ID, record

from otel_feedback import ConsoleFeedbackExporter
from otel_feedback.exceptions import ConfigurationError
from otel_feedback.exporters import Success
from otel_feedback.testing import ExporterContract


class TestContract(ExporterContract):
    @pytest.fixture
    def exporter(self) -> ConsoleFeedbackExporter:
        return ConsoleFeedbackExporter(io.StringIO())


class TestConsole:
    def test_its_name_and_its_parts_have_lasting_names(self) -> None:
        """
        Deliveries are kept under both.
        """
        exporter = ConsoleFeedbackExporter()

        assert ("console", ["value"]) == (exporter.name, [part.kind for part in exporter.parts(record(value=True))])

    def test_a_judgement_is_a_line_of_json(self) -> None:
        """
        Each part is one line that any reader of JSON can take apart.
        """
        out = io.StringIO()
        exporter = ConsoleFeedbackExporter(out)
        parts = exporter.parts(record(value=True, comment="Spot\non 👍", tags=["a"]))
        results = exporter.export([*parts, replace(parts[0], action="retract")])

        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [Success(), Success()] == results
        assert ["create", "retract"] == [line["action"] for line in lines]
        assert (ID, "rating", True, "Spot\non 👍", ["a"]) == tuple(
            lines[0][name] for name in ("id", "name", "value", "comment", "tags")
        )

    def test_it_writes_where_standard_output_is_at_the_time(self, capsys: pytest.CaptureFixture[str]) -> None:
        """
        Without a stream of its own it writes to standard output.
        """
        exporter = ConsoleFeedbackExporter()
        exporter.export(exporter.parts(record(value=0.5)))

        assert 0.5 == json.loads(capsys.readouterr().out)["value"]

    def test_a_console_that_knows_only_ascii_is_no_obstacle(self) -> None:
        """
        What people say is written in ASCII, escaped.
        """
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        exporter = ConsoleFeedbackExporter(out)
        results = exporter.export(exporter.parts(record(comment="schön 👍")))

        assert [Success()] == results

    def test_everything_is_carried_and_no_trace_is_needed(self) -> None:
        """
        A line has all that was said, of an unsampled call as well.
        """
        said = record(value=True, comment="c", correction={"a": 1}, user_id="u", metadata={"m": 1}, tags=["t"])
        (part,) = ConsoleFeedbackExporter().parts(said)

        assert (frozenset(said.said), True) == (part.carries, ConsoleFeedbackExporter.exports_unsampled)

    @pytest.mark.parametrize(
        ("setting", "given_value"),
        [
            ("out", 3),
            ("out", "stdout"),
            ("name", ""),
            ("name", 3),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, setting: str, given_value: Any) -> None:
        """
        What would fail later, or do nothing in silence, is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            ConsoleFeedbackExporter(**{setting: given_value})

        assert setting == caught.value.setting
