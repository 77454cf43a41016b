"""The route in each framework, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import fastapi
import flask
import httpx
import pytest
import uvicorn
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags
from starlette.applications import Starlette
from starlette.routing import Mount

import otel_feedback as of
from otel_feedback.testing import InMemoryFeedbackExporter
from otel_feedback.web.django import feedback_urls
from otel_feedback.web.fastapi import feedback_router
from otel_feedback.web.flask import feedback_blueprint
from otel_feedback.web.starlette import feedback_app, feedback_routes

HANDLE = of.FeedbackHandle(SpanContext(0xABC, 0xDEF, True, TraceFlags(1)))


@pytest.fixture
def provider() -> Iterator[of.FeedbackProvider]:
    settings = of.Settings(signing_keys=("a key of thirty-two characters ..",), delivery="none", key_wait_millis=0)
    with of.FeedbackProvider(
        exporters=[InMemoryFeedbackExporter("a")],
        store="memory:",
        settings=settings,
        tracer_provider=TracerProvider(),
    ) as made:
        yield made


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


def wsgi(app: Any) -> Iterator[str]:
    """Serve a WSGI app."""
    with make_server("127.0.0.1", 0, app, WSGIServer, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/feedback"
        server.shutdown()
        thread.join()


def asgi(app: Any) -> Iterator[str]:
    """Serve an ASGI app."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with closing(config.bind_socket()) as listening:
        listening.listen()  # whoever asks before the server runs waits
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/feedback"
        server.should_exit = True
        thread.join()


def in_starlette(**options: Any) -> Iterator[str]:
    return asgi(Starlette(routes=feedback_routes("/feedback", **options)))


def mounted(**options: Any) -> Iterator[str]:
    return asgi(Starlette(routes=[Mount("/feedback", feedback_app(**options))]))


def in_fastapi(**options: Any) -> Iterator[str]:
    app = fastapi.FastAPI()
    app.include_router(feedback_router("/feedback", **options))
    return asgi(app)


def in_flask(**options: Any) -> Iterator[str]:
    app = flask.Flask("app")
    app.register_blueprint(feedback_blueprint(**options), url_prefix="/feedback")
    return wsgi(app)


def in_django(**options: Any) -> Iterator[str]:
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.urls import clear_url_caches

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
            SECRET_KEY="of the tests",  # noqa: S106 (of nobody)
            LOGGING_CONFIG=None,
        )
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": feedback_urls("feedback", **options)})
    clear_url_caches()
    return wsgi(WSGIHandler())


FRAMEWORKS = [in_starlette, mounted, in_fastapi, in_flask, in_django]
Serve = Callable[..., str]


@pytest.fixture(params=FRAMEWORKS, ids=lambda made: made.__name__)
def serve(request: pytest.FixtureRequest, provider: of.FeedbackProvider) -> Iterator[Serve]:
    """Serves the route in one framework."""
    running: list[Iterator[str]] = []

    def start(**options: Any) -> str:
        running.append(request.param(provider=provider, **options))
        return next(running[-1])

    yield start
    for each in running:
        next(each, None)


def test_feedback_goes_in_and_is_taken_back(serve: Serve, provider: of.FeedbackProvider) -> None:
    """
    A thumb by a token, and its retraction by the same one.
    """
    url, token = serve(), provider.issue_token(HANDLE, user_id="u-42")
    with httpx.Client(follow_redirects=True) as client:
        said = client.post(url, json={"token": token, "name": "rating", "value": True})
        taken = client.delete(f"{url}/{said.json()['id']}", headers={"authorization": f"Bearer {token}"})

    assert (202, "application/json", "no-store") == (
        said.status_code,
        said.headers["content-type"],
        said.headers["cache-control"],
    )
    assert (202, said.json()["id"]) == (taken.status_code, taken.json()["id"])
    latest = provider._store.latest(said.json()["id"])
    assert latest is not None
    assert latest.retracts


@pytest.mark.parametrize(("content", "status"), [(b"{", 400), (b"{}", 401), (b"x" * 1_001, 413), (b"", 400)])
def test_what_is_no_feedback_is_refused(serve: Serve, content: bytes, status: int) -> None:
    """
    In few words.
    """
    url = serve(max_body_bytes=1_000)
    with httpx.Client(follow_redirects=True) as client:
        answer = client.post(url, content=content)

    assert status == answer.status_code
    assert len(answer.content) < 60


@pytest.mark.parametrize("made", FRAMEWORKS[:3])
def test_a_body_that_does_not_say_how_long_it_is_is_not_read_on(made: Any, provider: of.FeedbackProvider) -> None:
    """
    No more of it than is allowed.
    """

    def dripping() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    running = made(provider=provider, max_body_bytes=1_000)
    answer = httpx.post(next(running) + ("/" if made is mounted else ""), content=dripping())
    next(running, None)

    assert 413 == answer.status_code


def test_who_goes_before_the_body_is_there_is_not_waited_for(provider: of.FeedbackProvider) -> None:
    """
    Nothing is recorded of half a body, and the server is told nothing of an error.
    """
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "root_path": "", "query_string": b""}

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(feedback_app(provider=provider)({**scope, "headers": [], "client": None}, receive, send))

    assert [400] == [message["status"] for message in sent if "status" in message]
    assert {} == provider.stats()


def test_a_page_of_another_origin_asks_first(serve: Serve) -> None:
    """
    A browser's preflight is answered, and not redirected.
    """
    url = serve(allow_origins=["https://chat.example"])
    answer = httpx.options(
        url if "mounted" not in repr(serve) else f"{url}/",
        headers={"origin": "https://chat.example", "access-control-request-method": "POST"},
        follow_redirects=True,
    )

    assert (204, b"", "https://chat.example") == (
        answer.status_code,
        answer.content,
        answer.headers["access-control-allow-origin"],
    )


def test_the_app_says_whose_a_key_is(serve: Serve, provider: of.FeedbackProvider) -> None:
    """
    With the framework's own request in hand.
    """
    provider.bind_key(HANDLE, "m-1")
    provider.handle_for_key("m-1")
    url = serve(authorize=lambda request, key: request.headers.get("x-user"))
    said = {"key": "m-1", "name": "rating", "value": True}
    with httpx.Client(follow_redirects=True) as client:
        known = client.post(url, json=said, headers={"x-user": "ada"})
        unknown = client.post(url, json=said)
    record = provider._store.latest(known.json()["id"])

    assert record is not None
    assert (202, "ada", 401) == (known.status_code, record.user_id, unknown.status_code)


@pytest.mark.parametrize("made", FRAMEWORKS[:3])
def test_the_event_loop_may_be_asked(made: Any, provider: of.FeedbackProvider) -> None:
    """
    Whose a message is stands in the app's database, which it asks asynchronously.
    """

    async def authorize(request: Any, key: str) -> str | None:
        return "ada" if await request.is_disconnected() is False and key == "m-1" else None

    provider.bind_key(HANDLE, "m-1")
    provider.handle_for_key("m-1")
    running = made(provider=provider, authorize=authorize)
    with httpx.Client(follow_redirects=True) as client:
        answer = client.post(next(running), json={"key": "m-1", "name": "rating", "value": True})
    next(running, None)

    assert 202 == answer.status_code


def test_fastapi_describes_the_route() -> None:
    """
    Its OpenAPI document has what goes in and what comes out.
    """
    app = fastapi.FastAPI()
    app.include_router(feedback_router("/feedback"))
    paths = json.loads(json.dumps(app.openapi()))["paths"]

    assert {"/feedback", "/feedback/{path}"} == paths.keys()
    post = paths["/feedback"]["post"]
    assert "token" in post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"202", "400", "401", "404", "409", "413", "429", "503"} == post["responses"].keys()
