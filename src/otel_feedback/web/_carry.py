"""Out to the browser: tokens in a header or in a stream's first event, and the calls of one request.

The middlewares need no framework: they are plain ASGI and WSGI.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from typing import Any

import pydantic_core

from otel_feedback._api import collect_handles, get_feedback_provider
from otel_feedback._correlate import CollectedHandles
from otel_feedback.exceptions import FeedbackError

logger = logging.getLogger(__name__)

TOKEN_HEADER = "x-feedback-token"  # noqa: S105 (a header's name)
# Under this key of an ASGI scope, or of a WSGI environment, stand the calls of the request.
HANDLES = "otel_feedback.handles"

Scope = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]
WSGIApp = Callable[[MutableMapping[str, Any], Callable[..., Any]], Iterable[bytes]]


def token_headers(token: str) -> Mapping[str, str]:
    """Write the headers that carry a token to a page, also of another origin; none, where there is no token."""
    return {TOKEN_HEADER: token, "access-control-expose-headers": TOKEN_HEADER} if token else {}


def token_event(token: str) -> str:
    """Write a token as a server-sent event named `feedback`, to be sent before all others.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
    """
    return f"event: feedback\ndata: {pydantic_core.to_json({'token': token}).decode()}\n\n"


def with_token(events: Iterable[str], token: str) -> Iterator[str]:
    """Put a token's event before the other events of a stream."""
    yield token_event(token)
    yield from events


async def awith_token(events: AsyncIterable[str], token: str) -> AsyncIterator[str]:
    """Put a token's event before the other events of an asynchronous stream."""
    yield token_event(token)
    async for event in events:
        yield event


class ASGIFeedbackMiddleware:
    """Gathers the calls of each request under `scope["otel_feedback.handles"]`.

    Args:
        app: what answers.

        sends_token: whether the answer gets a header `x-feedback-token` for the newest call there is when it starts.

        **grant: what such a token grants: `names`, `expires_in`.
    """

    def __init__(self, app: ASGIApp, *, sends_token: bool = False, **grant: Any) -> None:
        self._app = app
        self._issuer = _Issuer(sends_token=sends_token, grant=grant)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        with collect_handles() as calls:

            async def send_on(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    added = [(name.encode(), value.encode()) for name, value in self._issuer.headers(calls)]
                    message = {**message, "headers": [*message.get("headers", ()), *added]}
                await send(message)

            await self._app({**scope, HANDLES: calls}, receive, send_on)


class WSGIFeedbackMiddleware:
    """Gathers the calls of each request under `environ["otel_feedback.handles"]`, while the answer is sent as well.

    Args: those of `ASGIFeedbackMiddleware`.
    """

    def __init__(self, app: WSGIApp, *, sends_token: bool = False, **grant: Any) -> None:
        self._app = app
        self._issuer = _Issuer(sends_token=sends_token, grant=grant)

    def __call__(self, environ: MutableMapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        # The server takes the answer when this has returned: each step of it is made where the calls are gathered.
        place = contextvars.copy_context()
        collection = collect_handles()
        calls = place.run(collection.__enter__)

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *self._issuer.headers(calls)], *rest)

        try:
            answer = place.run(self._app, {**environ, HANDLES: calls}, start)
        except BaseException:
            place.run(collection.__exit__, None, None, None)
            raise
        return _Answer(answer, place, collection)


class _Answer:
    """An answer whose every step runs in one place; it closes what was opened for it."""

    def __init__(self, answer: Iterable[bytes], place: contextvars.Context, collection: Any) -> None:
        self._answer = answer
        self._steps = place.run(iter, answer)
        self._place = place
        self._collection = collection

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._place.run(next, self._steps)

    def close(self) -> None:
        """End the request."""
        close = getattr(self._answer, "close", None)
        try:
            if close is not None:
                self._place.run(close)
        finally:
            self._place.run(self._collection.__exit__, None, None, None)


class _Issuer:
    """Makes the headers that carry a token, where it was asked for; the answer goes out whatever becomes of them."""

    def __init__(self, *, sends_token: bool, grant: Mapping[str, Any]) -> None:
        self._sends_token = sends_token
        self._grant = grant
        self._has_told = False

    def headers(self, calls: CollectedHandles) -> list[tuple[str, str]]:
        """Make the headers for the newest call of a request, if there is one that can be judged."""
        newest = calls.last if self._sends_token else None
        if newest is None or not newest.is_valid:
            return []
        try:
            return list(token_headers(get_feedback_provider().issue_token(newest, **self._grant)).items())
        except FeedbackError as error:
            if not self._has_told:
                logger.error("answers go out without a feedback token: %s", error)  # noqa: TRY400 (it says all)
            self._has_told = True
            return []
