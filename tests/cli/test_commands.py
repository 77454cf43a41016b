"""The commands, run as a person runs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from otel_feedback.cli._worker import account_of
from otel_feedback.sandbox import Sandbox
from otel_feedback.stores import DestinationStats

COMMAND = (sys.executable, "-m", "otel_feedback")


def run(*arguments: str, columns: int = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Read a running command's lines until one has these words."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if words in line:
            return lines
    pytest.fail(f"never said {words!r}: {lines}")


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("sandbox", "--help")])
def test_help_fits_a_narrow_terminal(arguments: Sequence[str]):
    """
    The help of each command is there, and no line is longer than the terminal is wide.
    """
    done = run(*arguments, columns=80)

    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_demo_shows_every_judgement_joined_at_every_vendor():
    """
    The demo ends well: twelve of twelve joined, the table says so in every cell, and the page's address is there.
    """
    done = run("demo", "--exit")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓ joined") == 12
    assert "✗" not in done.stdout
    assert "12 of 12 joined, 0 orphaned, 0 flagged." in done.stdout
    assert re.search(r"http://127\.0\.0\.1:\d+/", done.stdout)


def test_the_demo_keeps_its_page_up_in_a_terminal():
    """
    In a terminal the demo goes on until Ctrl-C, and meanwhile its page answers.
    """
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "demo"], stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        said = b""
        while b"(Ctrl-C ends it)" not in said:
            said += os.read(leader, 65_536)
        (url,) = re.findall(rb"(http://127\.0\.0\.1:\d+/)", said)
        with urllib.request.urlopen(url.decode(), timeout=10) as answer:
            page = answer.read().decode()
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
    os.close(leader)

    assert code == 0
    assert "<html" in page


def test_the_live_demo_needs_a_key():
    """
    Without any key in the environment `--live` says which ones it looks for.
    """
    done = run("demo", "--live")

    assert done.returncode == 1
    assert "otel-feedback: --live needs a key in the environment: ORQ_API_KEY" in done.stderr


def test_the_live_demo_delivers_where_the_environment_points():
    """
    With keys and base URLs in the environment the live demo says what each vendor answered.
    """
    with Sandbox(port=0) as sandbox:
        done = run("demo", "--live", **sandbox.environment())
        state = sandbox.state()

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓ delivered") == 12
    assert (state["orphans"], state["flags"]) == (0, [])


def test_the_live_demo_goes_only_where_there_is_a_key():
    """
    A vendor without a key is left out, and the exit status is about the others.
    """
    with Sandbox(port=0) as sandbox:
        variables = {name: value for name, value in sandbox.environment().items() if name.startswith("ORQ")}
        done = run("demo", "--live", **variables)

    assert done.returncode == 0
    assert done.stdout.count("✓ delivered") == 4
    assert "Braintrust" not in done.stdout


def test_the_sandbox_says_how_to_point_an_app_at_it():
    """
    What the sandbox prints is a working environment, and Ctrl-C ends it cleanly.
    """
    with subprocess.Popen(
        [*COMMAND, "sandbox", "--port", "0", "--orq-property", "helpfulness"], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = until(process, "Look at")
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        with urllib.request.urlopen(re.search(r"http://\S+/state", lines[-1])[0].rstrip(")."), timeout=10) as answer:
            status = answer.status
        feedback = {"property": "helpfulness", "value": 4, "trace_id": "a" * 32, "product": "otel"}
        declared = urllib.request.Request(
            f"{exports['ORQ_BASE_URL']}/v2/feedback",
            data=json.dumps(feedback).encode(),
            headers={"authorization": f"Bearer {exports['ORQ_API_KEY']}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(declared, timeout=10) as answer:
            declared_status = answer.status
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)

    assert (status, declared_status, code) == (200, 200, 0)
    assert exports["OTEL_FEEDBACK_EXPORTERS"] == "orq,braintrust,weave"
    assert {"ORQ_BASE_URL", "BRAINTRUST_API_URL", "WF_TRACE_SERVER_URL"} <= exports.keys()
    assert sum("/v1/traces" in line for line in lines) == 4


def test_a_port_that_is_taken_is_said():
    """
    A sandbox on a port that somebody has ends with a sentence, not a traceback.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("sandbox", "--port", str(port))

    assert done.returncode == 1
    assert f"otel-feedback: port {port} cannot be had" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("module", "extra"), [("typer", "cli"), ("uvicorn", "sandbox"), ("jsonschema", "sandbox")])
def test_a_missing_extra_is_named(module: str, extra: str):
    """
    Where a package of an extra is not installed the command says which extra to install.
    """
    hide = f"import sys; sys.modules[{module!r}] = None; from otel_feedback.cli._main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "demo", "--exit"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert f"pip install 'otel-feedback[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_somebody_else_is_not_explained_away():
    """
    A module that no extra of ours brings stays an ordinary error.
    """
    hide = "import sys; sys.modules['json'] = None; from otel_feedback.cli._main import main; main()"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=60, check=False)

    assert "ModuleNotFoundError" in done.stderr


def test_a_demo_whose_process_fails_says_so_in_a_sentence():
    """
    When one of the demo's processes cannot start its work, its own words are there, and a sentence instead of a crash.
    """
    done = run("demo", "--exit", OTEL_FEEDBACK_DURABILITY="nonsense")

    assert done.returncode == 1
    assert "OTEL_FEEDBACK_DURABILITY must be one of disk, process" in done.stderr
    assert done.stderr.endswith("otel-feedback: a process of the demo ended too early; what it said is above\n")


# --- worker ------------------------------------------------------------------------------------------------------

RECORD = """
import otel_feedback as of
from opentelemetry.trace import SpanContext, TraceFlags

with of.FeedbackProvider() as provider:
    for span_id in (1, 2):
        handle = of.FeedbackHandle(SpanContext(1, span_id, is_remote=True, trace_flags=TraceFlags(1)))
        provider.record(handle, "rating", True, comment="words of a user")
"""


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, str]:
    """Two judgements that wait in a store; the environment that names it."""
    named = {"OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path}/feedback.db", "OTEL_FEEDBACK_EXPORTERS": "console"}
    environment = {**os.environ, **named, "OTEL_FEEDBACK_DELIVERY": "none"}
    subprocess.run([sys.executable, "-c", RECORD], env=environment, check=True, timeout=60)
    return named


def test_a_worker_makes_one_pass_and_tells_the_account(recorded: dict[str, str]):
    """
    What other processes recorded is delivered, and the sum is printed; a second pass finds nothing to do.
    """
    first, second = run("worker", "--once", **recorded), run("worker", "--once", **recorded)

    assert [0, 0] == [first.returncode, second.returncode]
    assert [2, 0] == [each.stdout.count("words of a user") for each in (first, second)]
    assert ["console: 2 recorded = 2 delivered"] * 2 == [each.stdout.splitlines()[-1] for each in (first, second)]


def test_a_worker_goes_on_until_it_is_told_to_end(recorded: dict[str, str]):
    """
    SIGTERM ends it as a server expects it: with the account, and well.
    """
    with subprocess.Popen(
        [*COMMAND, "worker"], env={**os.environ, **recorded}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until(process, "words of a user")
        until(process, "words of a user")
        process.send_signal(signal.SIGTERM)
        said, log = process.communicate(timeout=60)

    assert 0 == process.returncode
    assert "console: 2 recorded = 2 delivered" in said
    assert "feedback is kept in sqlite:///" in log


def test_a_pass_that_leaves_something_ends_with_one(recorded: dict[str, str]):
    """
    Where a vendor cannot be reached the account says what is pending, and the status is one.
    """
    unreachable = {"OTEL_FEEDBACK_EXPORTERS": "orq", "ORQ_API_KEY": "k", "ORQ_BASE_URL": "http://127.0.0.1:9"}
    environment = {**os.environ, **recorded, **unreachable, "OTEL_FEEDBACK_DELIVERY": "none"}
    subprocess.run([sys.executable, "-c", RECORD], env=environment, check=True, timeout=60)
    done = run("worker", "--once", **{**recorded, **unreachable})

    assert 1 == done.returncode
    assert "orq: 2 recorded = 2 pending" in done.stdout
    assert "console: 2 recorded = 2 pending" in done.stdout


@pytest.mark.parametrize(
    ("disabled", "why"), [("false", "no feedback in sqlite:///"), ("true", "OTEL_FEEDBACK_DISABLED")]
)
def test_a_pass_without_anything_to_do_says_why(recorded: dict[str, str], tmp_path: Path, disabled: str, why: str):
    """
    A mistyped path is an empty store, which is no error, and is said.
    """
    mistyped = {"OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path}/feedbcak.db", "OTEL_FEEDBACK_DISABLED": disabled}
    done = run("worker", "--once", **{**recorded, **mistyped})

    assert 0 == done.returncode
    assert f"nothing to deliver: {why}" in done.stdout


def test_a_worker_that_cannot_read_the_account_says_so(recorded: dict[str, str]):
    """
    Where the store has become another program's file at its end, that is a sentence.
    """
    path = Path(recorded["OTEL_FEEDBACK_STORE_URL"].removeprefix("sqlite:///"))
    with subprocess.Popen(
        [*COMMAND, "worker"], env={**os.environ, **recorded}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until(process, "words of a user")
        with contextlib.closing(sqlite3.connect(path.with_name("theirs.db"))) as theirs:
            theirs.execute("CREATE TABLE theirs (x)")
        path.with_name("theirs.db").replace(path)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)

    assert 1 == process.returncode
    last = said.splitlines()[-1]
    assert f"otel-feedback: {path} is another program's database; give the store a file of its own" == last
    assert "Traceback" not in said


def test_a_worker_that_lacks_a_key_says_which(recorded: dict[str, str]):
    """
    What is missing is named in a sentence.
    """
    done = run("worker", **{**recorded, "OTEL_FEEDBACK_EXPORTERS": "orq", "ORQ_API_KEY": ""})

    assert 1 == done.returncode
    assert "otel-feedback: " in done.stderr
    assert "ORQ_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stats", "line"),
    [
        (DestinationStats(), "a: 0 recorded = 0"),
        (
            DestinationStats(
                recorded=21, pending=1, delivered=2, dead=3, superseded=4, retracted=5, skipped={"unsampled": 6}
            ),
            "a: 21 recorded = 2 delivered + 4 superseded + 5 retracted + 3 dead + 6 skipped (unsampled) + 1 pending",
        ),
        (DestinationStats(recorded=1, pending=1, paused="HTTP 401"), "a: 1 recorded = 1 pending; paused: HTTP 401"),
    ],
)
def test_an_account_is_told_as_the_sum_that_it_is(stats: DestinationStats, line: str):
    """
    What is nought is left out, and a pause says why.
    """
    assert line == account_of("a", stats)
