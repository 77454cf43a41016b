"""`status`, `retract` and `forget`, run as an operator runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from otel_feedback.cli._status import in_words, troubles
from otel_feedback.stores import PARKED, UNROUTED, DestinationStats

COMMAND = (sys.executable, "-m", "otel_feedback")
Run = Callable[..., "subprocess.CompletedProcess[str]"]

RECORD = """
import sys
import otel_feedback as of
from opentelemetry.trace import SpanContext, TraceFlags

with of.FeedbackProvider() as provider:
    for span_id in (1, 2):
        for flags in (0, 1):
            handle = of.FeedbackHandle(SpanContext(1, span_id, is_remote=True, trace_flags=TraceFlags(flags)))
            receipt = provider.record(handle, "rating", True, comment="Wrong city", user_id=f"u-{span_id}-{flags}")
    print(receipt.id)
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path}/feedback.db",
        "OTEL_FEEDBACK_EXPORTERS": "console",
    }


@pytest.fixture
def run(variables: dict[str, str]) -> Run:
    def run(*arguments: str, said: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**variables, **more},
            input=said,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run


@pytest.fixture
def record(variables: dict[str, str]) -> Callable[..., str]:
    """Records two judgements on sampled calls and two on others; answers the id of the last."""

    def record(**more: str) -> str:
        environment = {**variables, "OTEL_FEEDBACK_DELIVERY": "none", **more}
        done = subprocess.run(
            [sys.executable, "-c", RECORD], env=environment, check=True, timeout=60, capture_output=True, text=True
        )
        return done.stdout.strip()

    return record


def test_the_account_adds_up_and_nothing_needs_a_person(run: Run, record: Callable[..., str]) -> None:
    """
    What waits since a moment is as it should be; what was skipped is told with its reason.
    """
    record(OTEL_FEEDBACK_EXPORTERS="orq", ORQ_API_KEY="k")
    done = run("status", OTEL_FEEDBACK_EXPORTERS="orq", ORQ_API_KEY="k")

    assert (0, "") == (done.returncode, done.stderr)
    assert re.search(r"orq +│ +4 │ +0 │ +2 │ +0 │ +2 │ +\d+ s │", done.stdout)
    assert "orq: 2 skipped, as unsampled" in done.stdout
    assert "Nothing needs a person." in done.stdout


def test_what_waits_too_long_needs_a_person(run: Run, record: Callable[..., str]) -> None:
    """
    The exit status is one, and the words say where to look.
    """
    record()
    done = run("status", "--max-age-seconds", "0")

    assert 1 == done.returncode
    assert "! console the oldest has waited for" in done.stdout
    assert "otel-feedback worker" in done.stdout


def test_programs_get_json(run: Run, record: Callable[..., str]) -> None:
    """
    Every number of the account is in it, and what needs a person.
    """
    record(OTEL_FEEDBACK_EXPORTERS="")
    done = run("status", "--json", OTEL_FEEDBACK_EXPORTERS="")
    told = json.loads(done.stdout)

    assert 1 == done.returncode
    assert (4, 4, 0) == tuple(told["destinations"]["unrouted"][term] for term in ("recorded", "pending", "dead"))
    assert 0 <= told["destinations"]["unrouted"]["oldest_age_seconds"] < 60
    assert [("unrouted", True)] == [
        (each["destination"], "OTEL_FEEDBACK_EXPORTERS" in each["why"]) for each in told["needs_a_person"]
    ]


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json")])
def test_a_store_without_feedback_says_so(run: Run, arguments: Sequence[str]) -> None:
    """
    A mistyped path is told; it needs nobody.
    """
    done = run(*arguments)

    assert 0 == done.returncode
    assert "feedback.db" in done.stdout


@pytest.mark.parametrize(("arguments", "words"), [((), "recorded"), (("--json",), '"needs_a_person"')])
def test_it_can_be_watched(
    variables: dict[str, str], record: Callable[..., str], arguments: Sequence[str], words: str
) -> None:
    """
    Until Ctrl-C; the exit status is as without.
    """
    record()
    with subprocess.Popen(
        [*COMMAND, "status", "--watch", *arguments],
        env={**variables, "TTY_COMPATIBLE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += words in line
            if seen == 2:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert 0 == process.returncode


def test_what_is_seen_last_decides(variables: dict[str, str], record: Callable[..., str]) -> None:
    """
    A watch that began with nothing wrong and ended with something ends with one.
    """
    command, environment = [*COMMAND, "status", "--watch", "--json"], {**variables, "OTEL_FEEDBACK_EXPORTERS": ""}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        record(OTEL_FEEDBACK_EXPORTERS="")
        while '"unrouted"' not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    assert [] == json.loads(first)["needs_a_person"]
    assert 1 == process.returncode


OLD = {"a": 7_200.0, PARKED: 7_200.0, UNROUTED: 7_200.0}


@pytest.mark.parametrize(
    ("stats", "exporters", "expected"),
    [
        ({"a": DestinationStats(recorded=1, delivered=1)}, (), []),
        ({"a": DestinationStats(pending=1)}, (), [("a", "waited for 2 h")]),
        ({"a": DestinationStats(pending=1, paused="HTTP 401")}, (), [("a", "is paused: HTTP 401. Nothing is lost")]),
        ({"b": DestinationStats(dead=3)}, (), [("b", "refused 3 for good")]),
        ({"b": DestinationStats(pending=1)}, ("a",), [("b", "no exporter has that name")]),
        ({"b": DestinationStats(pending=1)}, ("a", "b"), []),
        ({"b": DestinationStats(delivered=1)}, ("a",), []),
        ({PARKED: DestinationStats(pending=1)}, ("a",), [(PARKED, "capture calls under these keys")]),
        ({UNROUTED: DestinationStats(pending=1)}, (), [(UNROUTED, "set OTEL_FEEDBACK_EXPORTERS")]),
        ({UNROUTED: DestinationStats(recorded=1)}, (), []),
    ],
)
def test_what_needs_a_person_is_said_in_words(
    stats: dict[str, DestinationStats], exporters: Sequence[str], expected: Sequence[tuple[str, str]]
) -> None:
    """
    And what needs nobody is not.
    """
    ages = {name: age for name, age in OLD.items() if name in stats and stats[name].pending}
    found = troubles(stats, ages, max_age_seconds=3_600, exporters=exporters)

    assert [name for name, _ in expected] == [each.destination for each in found]
    assert all(words in each.why for (_, words), each in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.9, "59 s"), (60, "1 min"), (7_199, "1 h"), (86_400 * 3.5, "3 d")]
)
def test_a_time_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    """
    As people say it.
    """
    assert words == in_words(seconds)


def test_a_judgement_is_taken_back(run: Run, record: Callable[..., str]) -> None:
    """
    One that waits is never sent; one that nobody knows is told, and is an error.
    """
    record_id = record()
    done, unknown = run("retract", record_id), run("retract", "nobody")

    assert (0, f"{record_id}\n  console to be taken back\n") == (done.returncode, done.stdout)
    assert (1, "") == (unknown.returncode, unknown.stdout)
    assert "no feedback is known under the id 'nobody'" in unknown.stderr
    assert 3 == run("worker", "--once").stdout.count("Wrong city")


def test_a_person_is_erased_once_somebody_says_yes(run: Run, record: Callable[..., str]) -> None:
    """
    Nothing that they judged is delivered any more; without a yes nothing happens.
    """
    record()
    refused = run("forget", "--user", "u-1-1", said="n\n")
    asked = run("forget", "--user", "u-1-1", said="y\n")
    done = run("forget", "--user", "u-2-1", "--yes")

    assert [1, 0, 0] == [refused.returncode, asked.returncode, done.returncode]
    assert "1 erased of u-1-1" in asked.stdout
    assert "1 erased of u-2-1\n" == done.stdout
    assert 2 == run("worker", "--once").stdout.count("Wrong city")


@pytest.mark.parametrize("command", ["status", "retract", "forget"])
def test_the_help_is_enough(run: Run, command: str) -> None:
    """
    It fits a narrow terminal, and says what the exit status means, or that it cannot be undone.
    """
    done = run(command, "--help", COLUMNS="80")

    assert max(map(len, done.stdout.splitlines())) <= 80
    assert ("exit status" if command != "forget" else "cannot be undone") in " ".join(done.stdout.split())
