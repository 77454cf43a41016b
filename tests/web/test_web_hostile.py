"""Whatever comes in at the route: it is answered, no error of ours shows, and nothing of it comes back.

The short form runs each time, the long one is `chaos`. That the questions find something is shown by a route with a
seeded bug: one that repeats what it was sent, one that fails, one that remembers every request.
"""

from __future__ import annotations

import json
import random
import tracemalloc
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fastapi
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags
from schemathesis.specs.openapi.checks import positive_data_acceptance

import otel_feedback as of
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import InMemoryFeedbackExporter
from otel_feedback.web import FeedbackEndpoint, RateLimit, WebRequest, WebResponse
from otel_feedback.web.fastapi import feedback_router

HANDLE = of.FeedbackHandle(SpanContext(0xABC, 0xDEF, True, TraceFlags(1)))
MANY = RateLimit(1_000_000_000, 1)
# What an answer may be: no error of ours is among them.
STATUSES = {200, 202, 204, 304, 400, 401, 404, 405, 409, 413, 429}
# In every text that is sent: if an answer has it, the answer repeats.
MARK = "zq7w"
MEBIBYTE = 1 << 20


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[of.FeedbackProvider]:
    given = of.Settings(signing_keys=("a key of thirty-two characters ..",), delivery="none", key_wait_millis=0)
    with of.FeedbackProvider(
        exporters=[InMemoryFeedbackExporter("a")],
        store=SQLiteStore(tmp_path / "outbox.db", durability="process"),
        settings=given,
        tracer_provider=TracerProvider(),
    ) as made:
        yield made


class Hostile:
    """Makes requests, from a seed: right ones, and such that are wrong in one place or in all."""

    def __init__(self, provider: of.FeedbackProvider, seed: int) -> None:
        self._random = random.Random(seed)
        self.tag = FeedbackEndpoint().respond(WebRequest("GET", "/otel-feedback.js")).headers["etag"]
        self._tokens = [
            provider.issue_token(HANDLE),
            provider.issue_token(HANDLE, names=["rating"]),
            provider.issue_token(HANDLE, user_id="ada"),
            provider.issue_token(HANDLE, expires_in=timedelta(milliseconds=1)),
        ]
        said = {"rating": True, "helpfulness": 0.5, "tone": "warm"}
        self._ids = [provider.record(HANDLE, name, value, user_id="ada").id for name, value in said.items()]

    def request(self) -> WebRequest:
        """Make a request."""
        method = self._one(["POST"] * 12 + ["DELETE"] * 3 + ["GET", "PUT", "OPTIONS", self._text()])
        path = self._one(["", "/", f"/{self._one(self._ids)}", "/otel-feedback.js", f"/{self._text()}", "/../" * 9])
        if method == "POST" and self._random.random() < 0.8:
            path = "/"
        headers = {"authorization": f"Bearer {self._token()}"} if self._random.random() < 0.8 else {}
        headers |= self._one(
            [{}, {"origin": f"https://{self._text()}", "host": self._text()}, {"if-none-match": self.tag}]
        )
        return WebRequest(method, path, headers, self._body(), self._one(["127.0.0.1", ""]))

    def _body(self) -> bytes | None:
        """Write a body: JSON, JSON that was damaged, or no JSON at all."""
        written = json.dumps(self._said()).encode()
        damage = self._random.random()
        if damage < 0.7:
            return written
        if damage < 0.85:
            at = self._random.randrange(len(written))
            return written[:at] + self._random.randbytes(self._random.randrange(3)) + written[at + 1 :]
        return self._one([b"", None, b"[" * 5_000, b'{"a":' * 5_000, b"null", b"\xff\xfe", self._random.randbytes(40)])

    def _said(self) -> Any:
        """Say something that is right but for some places."""
        said: dict[str, Any] = {
            "name": self._one(["rating", "rating", "rating", "helpfulness", "tone", self._text()]),
            "value": self._one([True, False, 0.5, 1.0, "warm", ["warm"], 3]),
        }
        for name in self._random.sample(["comment", "correction", "tags", "scale", "id", "key", "token"], 2):
            right = {
                "tags": [self._text()],
                "scale": [0, 1],
                "id": str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            }
            said[name] = self._one([right.get(name, self._text()), [1, 5], self._one(self._ids), self._token()])
        said = {name: each for name, each in said.items() if self._random.random() < 0.8}
        for _ in range(self._one([0, 0, 0, 1, 2])):
            said[self._one([*said, self._text()])] = self._anything(4)
        return self._one([said] * 9 + [self._anything(40)])

    def _anything(self, depth: int) -> Any:
        """Make some JSON."""
        kind = self._random.randrange(8 if depth else 6)
        numbers = [0, -1, 1e308, 2**63, 10**400, float("nan"), float("-inf")]
        if kind < 6:
            return self._one([None, True, self._text(), self._one(numbers), "", self._text() * 200])
        inner = [self._anything(depth - 1) for _ in range(self._random.randrange(3))]
        return inner if kind == 6 else {self._text(): each for each in inner}

    def _token(self) -> str:
        """Take a token, or damage one."""
        token = self._one(self._tokens)
        if self._random.random() < 0.7:
            return token
        at = self._random.randrange(len(token))
        return self._one([token, token, token[:at], token[:at] + "A" + token[at + 1 :], token + self._text(), ""])

    def _text(self) -> str:
        return MARK + self._one(
            ["", "\0", "\ud800", "<script>", "'; --", "\r\nx: y", "é", "💥", "{{1}}", "%s%n", "../"]
        )

    def _one(self, choice: Any) -> Any:
        return self._random.choice(choice)


def attack(endpoint: FeedbackEndpoint, provider: of.FeedbackProvider, *, count: int) -> dict[int, int]:
    """Send requests, and count the statuses of the answers.

    Raises:
        AssertionError: when an answer is an error of ours or repeats something, or memory grows.
    """
    hostile, seen = Hostile(provider, seed=6), dict.fromkeys(STATUSES, 0)
    tracemalloc.start()
    try:
        for number in range(count):
            if number == count // 2:
                half = tracemalloc.get_traced_memory()[0]
            request = hostile.request()
            answer = endpoint.respond(request)
            told = f"{answer.body!r} {answer.headers}"
            assert answer.status in STATUSES, (request, answer)
            assert MARK not in told or answer.status == 200, (request, answer)
            assert len(answer.body) < 1_000 or answer.status == 200
            seen[answer.status] += 1
        grown = tracemalloc.get_traced_memory()[0] - half
    finally:
        tracemalloc.stop()
    assert grown < 16 * MEBIBYTE, f"{grown} bytes more in the second half"
    return seen


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.chaos)])
def test_whatever_comes_is_answered(
    provider: of.FeedbackProvider, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """
    Every answer there is comes, none of them an error of ours, and the operator is not told of each.
    """
    endpoint = FeedbackEndpoint(provider=provider, per_token=MANY, per_address=MANY)
    seen = attack(endpoint, provider, count=count)
    print(json.dumps(seen))

    assert {200, 202, 204, 304, 400, 401, 404, 405, 413} <= {status for status, times in seen.items() if times}
    assert [] == [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


class Repeats(FeedbackEndpoint):
    """A seeded bug: says what it did not understand."""

    def respond(self, request: WebRequest) -> WebResponse:
        answer = super().respond(request)
        return WebResponse(answer.status, {"error": (request.body or b"").decode(errors="replace")})


class Fails(FeedbackEndpoint):
    """A seeded bug: what is too long is read all the same."""

    def respond(self, request: WebRequest) -> WebResponse:
        assert request.body is not None
        return super().respond(request)


class Remembers(FeedbackEndpoint):
    """A seeded bug: a request is never forgotten."""

    kept: list[bytes] = []  # noqa: RUF012 (that is the bug)

    def respond(self, request: WebRequest) -> WebResponse:
        self.kept.append(b"x" * 20_000)
        return super().respond(request)


@pytest.mark.parametrize("kind", [Repeats, Fails, Remembers])
def test_the_attack_finds_a_seeded_bug(provider: of.FeedbackProvider, kind: type[FeedbackEndpoint]) -> None:
    """
    One that repeats, one that fails, and one whose memory grows.
    """
    try:
        with pytest.raises(AssertionError):
            attack(kind(provider=provider, per_token=MANY, per_address=MANY), provider, count=3_000)
    finally:
        Remembers.kept.clear()


@pytest.mark.parametrize("count", [100, pytest.param(5_000, marks=pytest.mark.chaos)])
def test_the_route_keeps_what_its_schema_says(provider: of.FeedbackProvider, count: int) -> None:
    """
    With a token and without: each status, type and body is one that the OpenAPI document has.

    What a name and a value have to do with each other no schema tells, so that what it allows may be refused.
    """
    app = fastapi.FastAPI()
    app.include_router(feedback_router("/feedback", provider=provider, per_token=MANY, per_address=MANY))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    token = provider.issue_token(HANDLE)
    asked = []
    for operation in schema.get_all_operations():
        made = operation.ok()

        @settings(max_examples=count, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=made.as_strategy(), headers=st.sampled_from([{}, {"authorization": f"Bearer {token}"}]))
        def keeps(case: schemathesis.Case, headers: dict[str, str]) -> None:
            case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

        keeps()
        asked.append(made.label)

    assert ["POST /feedback", "DELETE /feedback/{path}"] == asked
