"""`opentelemetry-instrument python app.py` with environment settings alone; the applications stand beside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from auto_programs import HERE, INSTRUMENT, Judge, Run, answers, said, spans

import otel_feedback as of
from otel_feedback import environment_variables as env


def test_a_call_of_an_unmodified_application_is_found_by_its_response_id(instrumented: Run, judge: Judge) -> None:
    """
    Another process with the same store records feedback on the span that the application opened; nothing else is said.
    """
    ran = instrumented("plain_app.py", "chatcmpl-1", "chatcmpl-2")

    assert (0, []) == (ran.returncode, said(ran))
    assert answers(ran) == judge("chatcmpl-1", "chatcmpl-2")


def test_a_call_by_the_openai_client_is_found_by_the_id_it_was_answered(
    instrumented: Run, judge: Judge, chat_completions: str
) -> None:
    """
    The span is the one that the client's instrumentation opened; of several instrumentations', the innermost.
    """
    ran = instrumented(
        "openai_app.py",
        OPENAI_BASE_URL=chat_completions,
        OTEL_TRACES_EXPORTER="console",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="",
    )
    assert (0, []) == (ran.returncode, said(ran))
    response_id = answers(ran)["response"]

    (innermost,) = {span["context"]["span_id"] for span in spans(ran)} - {span["parent_id"] for span in spans(ran)}
    assert {response_id: innermost.removeprefix("0x")} == judge(response_id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_workers_that_were_forked_off_after_it_bind_keys_of_their_own(instrumented: Run, judge: Judge) -> None:
    """
    As under `gunicorn --preload`: the parent's calls and each worker's are all found, and every process ends well.
    """
    ran = instrumented("forking_app.py")
    calls = answers(ran)
    exits = calls.pop("exits")

    assert (0, "0 0 0", []) == (ran.returncode, exits, said(ran))
    assert {"before", "worker-0", "worker-1", "worker-2", "after"} == calls.keys()
    assert calls == judge(*calls)


def test_an_application_without_an_sdk_runs_on_and_is_told_once(instrumented: Run) -> None:
    """
    Where no distro sets one up, spans have no ids; one line says so, and the application ends as it would.
    """
    ran = instrumented("plain_app.py", "chatcmpl-1", OTEL_PYTHON_CONFIGURATOR="none")

    assert (0, {"chatcmpl-1": "0" * 16}) == (ran.returncode, answers(ran))
    assert ["no OpenTelemetry SDK is set up, so calls of models are not seen until there is one"] == [
        line.partition(";")[0] for line in said(ran) if "OTEL_PYTHON_CONFIGURATOR" not in line
    ]


def test_it_can_be_left_out_as_any_instrumentation_can(instrumented: Run, tmp_path: Path) -> None:
    """
    `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` names it: nothing is captured, and no store is made.
    """
    ran = instrumented("plain_app.py", "chatcmpl-1", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="openai, otel_feedback")

    assert (0, []) == (ran.returncode, said(ran))
    assert not (tmp_path / "feedback.db").exists()


def test_a_setting_that_cannot_be_used_is_told_and_the_application_runs_on(instrumented: Run) -> None:
    """
    The line in the log names the variable; spans are opened as before.
    """
    ran = instrumented("plain_app.py", "chatcmpl-1", OTEL_FEEDBACK_DURABILITY="paper")

    assert 0 == ran.returncode
    assert ["chatcmpl-1"] == list(answers(ran))
    (line,) = said(ran)
    assert "OTEL_FEEDBACK_DURABILITY must be one of disk, process" in line


def test_a_vendor_that_does_not_answer_holds_no_exit_up(environment: Mapping[str, str]) -> None:
    """
    An application whose feedback cannot be delivered leaves within its exit timeout; what it recorded still waits.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            **environment,
            env.OTEL_FEEDBACK_EXPORTERS: "orq",
            env.OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS: "200",
            env.ORQ_API_KEY: "none",
            env.ORQ_BASE_URL: f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        with subprocess.Popen(
            [INSTRUMENT, sys.executable, str(HERE / "recording_app.py")],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            (receipt,) = (line for line in iter(process.stdout.readline, "end\n") if line.startswith("receipt "))
            started = time.monotonic()
            process.wait(timeout=60)
            seconds = time.monotonic() - started

    assert 0 == process.returncode
    # A request may wait 30 s for its answer; the margin is for the end of the interpreter itself.
    assert 5 > seconds
    with of.FeedbackProvider(
        exporters=[], store=environment[env.OTEL_FEEDBACK_STORE_URL], settings=of.Settings(delivery="none")
    ) as feedback:
        assert "leased" == feedback.status(receipt.split()[1]).deliveries["orq"].state
