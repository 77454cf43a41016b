"""The README does what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of
from otel_feedback.environment_variables import VARIABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_shows_the_quickstart():
    """
    The README's example is the quickstart, from its first import on.
    """
    quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")

    assert quickstart[quickstart.index("from opentelemetry") :] == BLOCKS[0]


def test_the_readme_shows_the_declarations_of_their_example():
    """
    What the README declares is what the example declares, that is run.
    """
    declared = (ROOT / "examples" / "declared_feedback.py").read_text(encoding="utf-8")

    assert 3 == len(BLOCKS)
    assert f"\n{BLOCKS[2]}\n" in declared


def test_the_readmes_example_prints_what_it_says(tmp_path: Path):
    """
    Pasted into a file, the README's example ends with the words that the README promises.
    """
    program = tmp_path / "pasted.py"
    program.write_text(BLOCKS[0], encoding="utf-8")
    printed = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=True).stdout

    assert "`memory delivered`" in README
    assert printed.splitlines()[-1] == "memory delivered"


# What the README's page stands in: an app, and a function that streams.
AN_APP = """
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import otel_feedback as of

app = FastAPI()


@of.capture
async def answer(question: str) -> AsyncIterator[str]:
    yield f"data: {question}\\n\\n"
"""


def test_the_readmes_route_gives_a_token_and_takes_it() -> None:
    """
    The first event holds it, and the thumb that comes with it is accepted.
    """
    settings = of.Settings(signing_keys=("a key of thirty-two characters ..",), delivery="none")
    with of.FeedbackProvider(
        exporters=[], store="memory:", settings=settings, tracer_provider=TracerProvider()
    ) as made:
        of.set_feedback_provider(made)
        place: dict[str, Any] = {"__name__": "pasted"}
        exec(AN_APP + BLOCKS[1], place)  # noqa: S102 (the README's own words)
        with TestClient(place["app"]) as browser:
            streamed = browser.post("/chat", params={"question": "Why?"}).text
            first = streamed.split("\n\n")[0]
            said = {**json.loads(first.partition("data: ")[2]), "name": "rating", "value": True}
            answer = browser.post("/feedback", json=said)

    assert first.startswith("event: feedback\n")
    assert "data: Why?\n\n" in streamed
    assert 202 == answer.status_code


def test_the_readme_lists_every_setting_as_the_code_has_it():
    """
    The table of settings has a row for each variable, with its default and its meaning, and no other row.
    """
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)

    expected = [
        (name, f"`{variable.default}`" if variable.default else "–", variable.meaning)
        for name, variable in VARIABLES.items()
    ]
    assert expected == rows


def test_the_readme_is_short_before_the_reference():
    """
    A newcomer reads about five hundred words, tables and code aside, before the reference begins.
    """
    prose = README[: README.index("## Settings")]
    prose = re.sub(r"```.*?```", "", prose, flags=re.DOTALL)
    words = [word for line in prose.splitlines() if not line.startswith("|") for word in line.split()]

    assert 350 <= len(words) <= 600
