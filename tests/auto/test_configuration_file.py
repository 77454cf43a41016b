"""The section `otel_feedback` of OpenTelemetry's configuration file, under `opentelemetry-instrument`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from auto_programs import HERE, Judge, Ran, Run, answers, said

from otel_feedback import environment_variables as env

RunWith = Callable[..., Ran]


@pytest.fixture
def file_store(tmp_path: Path) -> str:
    """A store that only the file names."""
    return f"sqlite:///{tmp_path}/file.db"


@pytest.fixture
def configured(instrumented: Run, tmp_path: Path) -> RunWith:
    """Run an application with lines in the section of the file, and more settings in the environment."""

    def run(app: str, *arguments: str, section: str | None, **settings: str) -> Ran:
        lines = "" if section is None else f"    otel_feedback:\n{section}"
        lines += "    another: {enabled: false}\n"  # a section may not be empty
        (tmp_path / "otel.yaml").write_text((HERE / "otel.yaml").read_text() + lines)
        return instrumented(app, *arguments, OTEL_CONFIG_FILE=str(tmp_path / "otel.yaml"), **settings)

    return run


def test_the_file_wins_over_the_environment(configured: RunWith, judge: Judge, file_store: str, tmp_path: Path) -> None:
    """
    An unmodified application's call is in the store that the file names, by a variable of its own; in no other.
    """
    section = "      store_url: ${FEEDBACK_STORE}\n      key_wait_millis: ${FEEDBACK_WAIT:-5}\n      exporters: [orq]\n"
    ran = configured("plain_app.py", "chatcmpl-1", section=section, FEEDBACK_STORE=file_store, ORQ_API_KEY="none")

    assert (0, []) == (ran.returncode, said(ran))
    assert {"chatcmpl-1": answers(ran)["chatcmpl-1"]} == judge("chatcmpl-1", OTEL_FEEDBACK_STORE_URL=file_store)
    assert not (tmp_path / "feedback.db").exists()


def test_what_the_application_records_itself_goes_where_the_file_says(
    configured: RunWith, judge: Judge, file_store: str, tmp_path: Path
) -> None:
    """
    The functions of the package, which the application imports later, use the provider of the file.
    """
    section = f"      store_url: {file_store}\n      exporters: [weave]\n      delivery: none\n"
    ran = configured("recording_app.py", section=section)

    assert (0, []) == (ran.returncode, said(ran))
    assert "weave" == answers(ran)["receipt"].split()[1]
    assert {"chatcmpl-1": answers(ran)["chatcmpl-1"]} == judge("chatcmpl-1", OTEL_FEEDBACK_STORE_URL=file_store)
    assert not (tmp_path / "feedback.db").exists()


@pytest.mark.parametrize("section", [None, "      {}\n"])
def test_without_options_the_environment_holds(configured: RunWith, judge: Judge, section: str | None) -> None:
    """
    An empty section, and none at all, leave everything to the variables.
    """
    ran = configured("plain_app.py", "chatcmpl-1", section=section)

    assert (0, []) == (ran.returncode, said(ran))
    assert {"chatcmpl-1": answers(ran)["chatcmpl-1"]} == judge("chatcmpl-1")


def test_options_that_cannot_be_used_are_all_named_and_the_application_runs_on(
    configured: RunWith, tmp_path: Path
) -> None:
    """
    One line names each; nothing is captured, above all not into the store that the environment or a default names.
    """
    section = '      stoer_url: "sqlite:///secret"\n      key_wait_millis: "5"\n      exporters: orq\n'
    ran = configured("plain_app.py", "chatcmpl-1", section=section)

    assert 0 == ran.returncode
    assert "0" * 16 != answers(ran)["chatcmpl-1"]
    (line,) = said(ran)
    assert line.startswith("calls of models are not captured: the option exporters of otel_feedback cannot be used: ")
    assert "the option key_wait_millis of otel_feedback cannot be used: Input should be a valid integer; " in line
    assert "the option stoer_url of otel_feedback cannot be used: there is none of this name, but " in line
    assert "secret" not in line
    assert ["otel.yaml"] == [each.name for each in tmp_path.iterdir()]


def test_the_file_disables_it(configured: RunWith, tmp_path: Path) -> None:
    """
    With `disabled: true` an application's calls leave no trace in any store.
    """
    ran = configured("recording_app.py", section="      disabled: true\n")

    assert (0, []) == (ran.returncode, said(ran))
    assert ["otel.yaml"] == [each.name for each in tmp_path.iterdir()]


def test_a_json_file_does_as_well(instrumented: Run, judge: Judge, file_store: str, tmp_path: Path) -> None:
    """
    The same section in JSON.
    """
    content = {
        "file_format": "1.0",
        "tracer_provider": {"processors": [{"simple": {"exporter": {"console": {}}}}]},
        "instrumentation/development": {
            "python": {"otel_feedback": {"store_url": file_store, "durability": "process"}}
        },
    }
    (tmp_path / "otel.json").write_text(json.dumps(content))
    ran = instrumented("plain_app.py", "chatcmpl-1", OTEL_CONFIG_FILE=str(tmp_path / "otel.json"))

    assert (0, []) == (ran.returncode, said(ran))
    assert {"chatcmpl-1": answers(ran)["chatcmpl-1"]} == judge(
        "chatcmpl-1", **{env.OTEL_FEEDBACK_STORE_URL: file_store}
    )
