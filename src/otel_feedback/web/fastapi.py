"""The feedback route for FastAPI, with its OpenAPI schema.

    app.include_router(feedback_router("/feedback"))

`pip install "otel-feedback[web]" fastapi`.
"""

from __future__ import annotations

from typing import Any

from otel_feedback.exceptions import MissingExtraError
from otel_feedback.web._schema import ERRORS, FEEDBACK, RECEIPT
from otel_feedback.web.starlette import feedback_view

try:
    from fastapi import APIRouter
except ImportError as error:
    raise MissingExtraError("the FastAPI router needs FastAPI: pip install fastapi", extra="web") from error


def feedback_router(path: str = "/feedback", **options: Any) -> APIRouter:
    """Make FastAPI's router of the feedback endpoint.

    Args:
        path: where it is.

        **options: those of `FeedbackEndpoint`; `authorize` may be a coroutine function here.
    """
    view = feedback_view(**options)
    where = path.rstrip("/")
    router = APIRouter(tags=["feedback"])
    answers: dict[int | str, Any] = {
        202: {"description": "accepted", "content": {"application/json": {"schema": RECEIPT}}},
        **{status: {"description": words} for status, words in ERRORS.items()},
    }
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": FEEDBACK}}}}
    bearer = {"parameters": [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}]}
    router.add_api_route(
        where or "/",
        view,
        methods=["POST"],
        status_code=202,
        responses=answers,
        openapi_extra=body,
        summary="Judge an answer",
        response_model=None,
    )
    router.add_api_route(
        f"{where}/{{path}}",
        view,
        methods=["DELETE"],
        status_code=202,
        responses=answers,
        openapi_extra=bearer,
        summary="Take a judgement back",
        response_model=None,
    )
    for each in (where or "/", f"{where}/{{path}}"):
        router.add_api_route(each, view, methods=["GET", "OPTIONS"], include_in_schema=False)
    return router
