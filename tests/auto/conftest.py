"""Programs under `opentelemetry-instrument`, each in a working directory of its own."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from auto_programs import HERE, INSTRUMENT, Judge, Ran, Run, answers, run

from otel_feedback import environment_variables as env


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """Settings of the command; spans go nowhere, and feedback where it is seen to be sent."""
    return {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # Three instrumentations of one client are installed here, and take their time to load.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai",
        env.OTEL_FEEDBACK_STORE_URL: f"sqlite:///{tmp_path}/feedback.db",
        env.OTEL_FEEDBACK_EXPORTERS: "console",
        env.OTEL_FEEDBACK_KEY_WAIT_MILLIS: "0",
    }


@pytest.fixture
def instrumented(environment: Mapping[str, str]) -> Run:
    """Run an application under `opentelemetry-instrument`, with more settings or others."""

    def run_it(app: str, *arguments: str, **settings: str) -> Ran:
        command = [INSTRUMENT, sys.executable, str(HERE / app), *arguments]
        return run(command, {**environment, **settings})

    return run_it


@pytest.fixture
def judge(environment: Mapping[str, str]) -> Judge:
    """Record feedback on keys from another process, which leaves the delivery to others; answer the spans it is on."""

    def record(*keys: str, **settings: str) -> dict[str, str]:
        ran = run(
            [sys.executable, str(HERE / "judge.py"), *keys],
            {**environment, env.OTEL_FEEDBACK_DELIVERY: "none", **settings},
        )
        assert (0, "") == (ran.returncode, ran.stderr)
        return answers(ran)

    return record


class _ChatCompletions(BaseHTTPRequestHandler):
    """Answers every request as `/v1/chat/completions` does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {
                "id": "chatcmpl-loopback",
                "object": "chat.completion",
                "created": 0,
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello!"}}
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def chat_completions() -> Iterator[str]:
    """A stand-in for the vendor of a model, on loopback; its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _ChatCompletions) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()
