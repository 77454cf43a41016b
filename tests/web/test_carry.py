"""Tokens on their way to the page, and the calls of one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of
from otel_feedback.testing import InMemoryFeedbackExporter
from otel_feedback.web import (
    HANDLES,
    ASGIFeedbackMiddleware,
    WSGIFeedbackMiddleware,
    awith_token,
    token_event,
    token_headers,
    with_token,
)

KEYS = ("a key of thirty-two characters ..",)


@pytest.fixture
def provider(request: pytest.FixtureRequest) -> Iterator[of.FeedbackProvider]:
    """The global provider; with the mark `keyless` it has nothing to sign with."""
    settings = of.Settings(signing_keys=getattr(request, "param", KEYS), delivery="none", key_wait_millis=0)
    made = of.FeedbackProvider(
        exporters=[InMemoryFeedbackExporter("a")],
        store="memory:",
        settings=settings,
        tracer_provider=TracerProvider(),
    )
    of.set_feedback_provider(made)
    yield made
    of.set_feedback_provider(None)


def test_a_token_travels_in_a_header() -> None:
    """
    A page of another origin may read it; switched off there is none.
    """
    expected = {"x-feedback-token": "of1_x", "access-control-expose-headers": "x-feedback-token"}

    assert [expected, {}] == [token_headers("of1_x"), token_headers("")]


def test_a_token_is_the_first_event() -> None:
    """
    Before the first item of the answer, in a stream of either kind.
    """

    async def events() -> AsyncIterator[str]:
        yield "data: a\n\n"

    async def gathered() -> list[str]:
        return [event async for event in awith_token(events(), "of1_x")]

    first = 'event: feedback\ndata: {"token":"of1_x"}\n\n'
    assert first == token_event("of1_x")
    assert [first, "data: a\n\n"] == list(with_token(["data: a\n\n"], "of1_x")) == asyncio.run(gathered())


async def answer_to(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """Drive an ASGI app by hand."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def chat(scope: Any, receive: Any, send: Any) -> None:
    """An app that makes a call in a task of its own, and one while it answers."""
    del receive

    @of.capture(name="answer")
    async def answer(part: str) -> bytes:
        await asyncio.sleep(0)
        return part.encode()

    first = await asyncio.create_task(answer("a"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": first + await answer("b"), "more_body": True})
    await send({"type": "http.response.body", "body": str(len(scope[HANDLES])).encode()})


class TestASGI:
    def test_each_request_has_its_calls_and_its_token(self, provider: of.FeedbackProvider) -> None:
        """
        Two at once do not see each other's; the token is of the newest call when the answer begins.
        """
        app = ASGIFeedbackMiddleware(chat, sends_token=True, names=["rating"])

        async def two() -> list[list[dict[str, Any]]]:
            return list(await asyncio.gather(*(answer_to(app, {"type": "http"}) for _ in range(2))))

        answers = asyncio.run(two())
        grants = []
        for start, *bodies in answers:
            headers = dict(start["headers"])
            assert (b"1", b"ab", b"2") == (headers[b"x-own"], bodies[0]["body"], bodies[1]["body"])
            grants.append(provider.verify_token(headers[b"x-feedback-token"].decode()))

        assert [("rating",)] * 2 == [grant.names for grant in grants]
        assert 2 == len({grant.handle.span_id for grant in grants})

    @pytest.mark.parametrize("provider", [()], indirect=True)
    def test_without_a_key_the_answer_goes_out_all_the_same(
        self, provider: of.FeedbackProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        One line says why there is no token.
        """
        del provider
        app = ASGIFeedbackMiddleware(chat, sends_token=True)
        with caplog.at_level(logging.ERROR):
            answers = [asyncio.run(answer_to(app, {"type": "http"})) for _ in range(2)]

        assert [[(b"x-own", b"1")]] * 2 == [start["headers"] for start, *_ in answers]
        assert 1 == len([each for each in caplog.records if "without a feedback token" in each.getMessage()])

    def test_what_is_no_request_passes(self) -> None:
        """
        A server's start and end have no calls.
        """

        async def app(scope: Any, receive: Any, send: Any) -> None:
            del receive
            await send({"type": "seen", "keys": sorted(scope)})

        middleware = ASGIFeedbackMiddleware(app)
        found = [asyncio.run(answer_to(middleware, {"type": kind})) for kind in ("lifespan", "websocket")]

        assert [["type"], [HANDLES, "type"]] == [each[0]["keys"] for each in found]


class TestWSGI:
    def drive(self, app: Any) -> tuple[dict[str, str], list[bytes]]:
        """Take an answer as a server does: after the app has returned, and then close it."""
        started: list[tuple[str, list[tuple[str, str]]]] = []
        answer = app({}, lambda status, headers, *_: started.append((status, headers)))
        parts = list(answer)
        answer.close()
        return dict(started[0][1]), parts

    def test_calls_of_an_answer_that_streams_are_the_requests(self, provider: of.FeedbackProvider) -> None:
        """
        What is made while the server takes the answer is gathered as well, and nothing after it.
        """
        closed = []

        @of.capture(name="answer")
        def answer(part: str) -> bytes:
            return part.encode()

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            answer("before")
            start_response("200 OK", [("x-own", "1")])

            def stream() -> Iterator[bytes]:
                try:
                    yield answer("a")
                    yield str(len(environ[HANDLES])).encode()
                finally:
                    closed.append(True)

            return stream()

        headers, parts = self.drive(WSGIFeedbackMiddleware(app, sends_token=True))

        assert ("1", [b"a", b"2"], [True]) == (headers["x-own"], parts, closed)
        assert provider.verify_token(headers["x-feedback-token"]).handle.is_valid

    def test_an_answer_that_is_a_list_will_do(self) -> None:
        """
        It has nothing to be closed; without a call there is no token.
        """

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return [str(len(environ[HANDLES])).encode()]

        assert ({}, [b"0"]) == self.drive(WSGIFeedbackMiddleware(app, sends_token=True))

    def test_an_app_that_fails_fails(self) -> None:
        """
        Its error is the server's to see.
        """

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            raise KeyError("no")

        with pytest.raises(KeyError):
            WSGIFeedbackMiddleware(app)({}, print)
        with of.collect_handles() as calls:
            pass
        assert 0 == len(calls)
