"""`config`, run as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from otel_feedback.cli._config import configured, mistyped
from otel_feedback.environment_variables import VARIABLES


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otel_feedback", "config", *arguments],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_variable_is_told_and_no_secret(tmp_path: Path) -> None:
    """
    With where its value is from; what is in a URL before its host is a secret too. No store is made.
    """
    done = run(
        ORQ_API_KEY="sk-of-somebody",
        OTEL_FEEDBACK_EXPORTERS="orq",
        OTEL_FEEDBACK_SIGNING_KEYS="a long random text",
        WANDB_BASE_URL="https://me:hidden@proxy.example/wandb",
    )

    assert 0 == done.returncode
    assert all(name in done.stdout for name in VARIABLES)
    assert not [secret for secret in ("sk-of", "random", "hidden", "me:") if secret in done.stdout + done.stderr]
    assert "https://…@proxy.example" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_FEEDBACK_EXPORTER", "orq", "is OTEL_FEEDBACK_EXPORTERS meant?"),
        ("OTEL_FEEDBACK_COLOUR", "red", "OTEL_FEEDBACK_COLOUR is no variable of otel-feedback"),
        ("OTEL_FEEDBACK_DELIVERY", "later", "OTEL_FEEDBACK_DELIVERY must be one of thread, none"),
        ("OTEL_FEEDBACK_STORE_URL", "feedback.db", "the store's URL must be sqlite:///path"),
        ("OTEL_FEEDBACK_EXPORTERS", "nobody", "no exporter is registered as 'nobody'"),
    ],
)
def test_what_is_wrong_is_said(name: str, value: str, words: str) -> None:
    """
    To people and to programs, with an exit status of one.
    """
    shown, told = run(**{name: value}), run("--json", **{name: value})

    assert [1, 1] == [shown.returncode, told.returncode]
    assert words in " ".join(shown.stdout.split())
    assert [True] == [words in each for each in json.loads(told.stdout)["problems"]]


def test_what_is_blank_is_not_set() -> None:
    """
    As a compose file leaves it; then the default holds.
    """
    rows = {row.name: row for row in configured({"OTEL_FEEDBACK_DELIVERY": " ", "OTEL_FEEDBACK_CONCURRENCY": "2"})}

    assert ("thread", "default") == (rows["OTEL_FEEDBACK_DELIVERY"].value, rows["OTEL_FEEDBACK_DELIVERY"].source)
    assert ("2", "environment") == (rows["OTEL_FEEDBACK_CONCURRENCY"].value, rows["OTEL_FEEDBACK_CONCURRENCY"].source)
    assert [] == mistyped({"OTEL_SERVICE_NAME": "chat"})
