"""Every example does what it says, run as its reader would run it."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from otel_feedback.sandbox import Sandbox
from otel_feedback.testing import ExporterContract

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command: str | Path, **variables: str) -> list[str]:
    """Run an example and answer the lines that it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """A server that takes anything, and what it was sent."""
    taken: list[tuple[str, object]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((self.headers["x-team"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()
        thread.join()


def test_the_quickstart_delivers_a_judgement_to_the_console():
    """
    The quickstart prints the judgement as the console exporter writes it, and that it was delivered.
    """
    line, end = run(EXAMPLES / "quickstart.py")

    said = json.loads(line)
    assert (said["name"], said["value"], said["comment"], said["user_id"]) == ("rating", True, "Spot on", "u-42")
    assert end == "memory delivered"


def test_the_streaming_chat_knows_what_to_judge_before_the_first_chunk():
    """
    The id stands above the chunks, and the judgement that is given by it is on the same span.
    """
    known, *chunks, line, end = run(EXAMPLES / "streaming_chat.py")

    context = json.loads(line)["handle"]["context"]
    assert known == "judge: 00-{}-{}-{:02x}".format(*context)
    assert chunks == ["data: Paris", "data:  is", "data:  the", "data:  capital", "data: ."]
    assert end == "memory delivered"


def test_declared_feedback_is_checked_completed_and_filtered():
    """
    A label that is not declared is refused in words, a rating has its scale, and what the filter refuses is skipped.
    """
    line, refusal, reason = run(EXAMPLES / "declared_feedback.py")

    said = json.loads(line)
    assert "'tone' takes one of 'warm', 'cold', as declared" in refusal
    assert ("helpfulness", 5, [1, 5]) == (said["name"], said["value"], said["scale"])
    assert "filtered" == reason


def test_two_processes_join_by_the_message_id(tmp_path: Path):
    """
    What the second process says about msg-2 lands on the span that the first one opened for msg-2.
    """
    with Sandbox(port=0) as sandbox:
        variables = {
            **sandbox.environment(),
            "OTEL_FEEDBACK_EXPORTERS": "braintrust",
            "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path / 'feedback.db'}",
            "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS": "0",
        }
        app = run(EXAMPLES / "two_processes" / "app.py", "What is love?", "And why?", **variables)
        feedback = run(EXAMPLES / "two_processes" / "feedback.py", "msg-2", "down", **variables)
        state = sandbox.state()

    assert app == ["msg-1 You asked: What is love?", "msg-2 You asked: And why?"]
    assert feedback[1] == "delivered"
    (landed,) = state["feedback"]
    first, second = sorted(state["spans"], key=lambda span: span["start_time_unix_nano"])
    assert (second["span_id"], "rating", 0, True) == (
        landed["target"]["span_id"],
        landed["name"],
        landed["value"],
        landed["joined"],
    )
    assert first["span_id"] != second["span_id"]


def test_two_processes_say_why_an_unknown_message_cannot_be_judged(tmp_path: Path):
    """
    A message id that no call was captured under ends with the reason and the store's name.
    """
    store = f"sqlite:///{tmp_path / 'feedback.db'}"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "two_processes" / "feedback.py", "msg-9", "up"],
        env={**os.environ, "OTEL_FEEDBACK_STORE_URL": store, "OTEL_FEEDBACK_KEY_WAIT_MILLIS": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert f"no trace is known for key 'msg-9' in {store}" in done.stderr


def test_the_custom_exporter_posts_to_its_webhook(webhook: tuple[str, list[tuple[str, object]]]):
    """
    An exporter of one's own sends one line, and the receipt names what it does not carry.
    """
    url, taken = webhook
    printed = run(EXAMPLES / "custom_exporter.py", WEBHOOK_URL=url)

    assert printed == ["delivered", "not carried: tags"]
    assert taken == [("support", {"text": "rating: True Spot on"})]


TALK = """
import runpy, sys
from starlette.testclient import TestClient

browser = TestClient(runpy.run_path(sys.argv[1])["app"])
with browser.websocket_connect("/chat") as socket:
    socket.send_text("Why not?")
    token = socket.receive_json()["token"]
    # While the answer still comes in:
    print(browser.post("/feedback", json={"token": token, "name": "rating", "value": True}).status_code)
    words = []
    while "word" in (message := socket.receive_json()):
        words.append(message["word"])
print(*words, message)
"""


def test_the_websocket_chat_sends_a_token_before_the_words(tmp_path: Path):
    """
    The answer may be judged before it has all come in.
    """
    (tmp_path / "talk.py").write_text(TALK, encoding="utf-8")
    printed = run(
        "talk.py", EXAMPLES / "websocket_chat.py", OTEL_FEEDBACK_SIGNING_KEYS="a key of thirty-two characters .."
    )

    assert "202" in printed
    assert "You asked: Why not? {'end': True}" in printed
    assert any('"rating"' in line for line in printed)


class TestCustomExporter(ExporterContract):
    """The exporter that readers start from keeps the contract that they are asked to keep."""

    @pytest.fixture
    def exporter(self, webhook: tuple[str, list[tuple[str, object]]]) -> Iterator[Any]:
        """The example's exporter at a server that takes anything."""
        made = runpy.run_path(str(EXAMPLES / "custom_exporter.py"))["WebhookExporter"]
        exporter = made(name="webhook", base_url=webhook[0])
        yield exporter
        exporter.shutdown()


def test_the_custom_exporter_stays_short():
    """
    A whole exporter with its use fits in under sixty lines.
    """
    assert len((EXAMPLES / "custom_exporter.py").read_text(encoding="utf-8").splitlines()) < 60
