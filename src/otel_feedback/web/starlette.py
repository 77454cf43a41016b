"""The feedback route for Starlette, and for whatever mounts an ASGI app.

    app = Starlette(routes=[*feedback_routes("/feedback")])

`pip install "otel-feedback[web]"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from otel_feedback.exceptions import MissingExtraError
from otel_feedback.web._endpoint import FeedbackEndpoint, WebRequest

try:
    import anyio.from_thread
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError("the ASGI route needs Starlette: pip install 'otel-feedback[web]'", extra="web") from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

METHODS = ["GET", "POST", "DELETE", "OPTIONS"]


def feedback_routes(path: str = "/feedback", **options: Any) -> list[Route]:
    """Make the routes of the feedback endpoint.

    Args:
        path: where it is.

        **options: those of `FeedbackEndpoint`; `authorize` may be a coroutine function here.
    """
    view = feedback_view(**options)
    where = path.rstrip("/")
    return [Route(each, view, methods=METHODS) for each in (where or "/", f"{where}/{{path:path}}")]


def feedback_app(**options: Any) -> Starlette:
    """Make an ASGI app of the feedback endpoint, to be mounted; see `feedback_routes`."""
    return Starlette(routes=feedback_routes("", **options))


def feedback_view(**options: Any) -> Callable[[Request], Awaitable[Response]]:
    """Make Starlette's view of the feedback endpoint: it reads no more of a body than is allowed."""
    if inspect.iscoroutinefunction(options.get("authorize")):
        options["authorize"] = _from_thread(options["authorize"])
    endpoint = FeedbackEndpoint(**options)

    async def view(request: Request) -> Response:
        try:
            body = await read_capped(request, endpoint.max_body_bytes)
        except ClientDisconnect:  # nobody reads the answer
            return Response(status_code=400)
        asked = WebRequest(
            request.method,
            request.path_params.get("path", ""),
            dict(request.headers),
            body,
            request.client.host if request.client is not None else "",
            request,
        )
        answer = await run_in_threadpool(endpoint.respond, asked)
        return Response(answer.body, answer.status, dict(answer.headers))

    return view


async def read_capped(request: Request, limit: int) -> bytes | None:
    """Read a body up to a limit; `None` of a longer one, however it says it is long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return body


def _from_thread(authorize: Callable[[Any, str], Coroutine[Any, Any, str | None]]) -> Callable[[Any, str], str | None]:
    """Let a thread of the endpoint's ask a coroutine function, which runs in the event loop."""
    return lambda request, key: anyio.from_thread.run(authorize, request, key)
