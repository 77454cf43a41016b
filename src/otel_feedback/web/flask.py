"""The feedback route for Flask.

app.register_blueprint(feedback_blueprint(), url_prefix="/feedback")
"""

from __future__ import annotations

from typing import Any

from otel_feedback.exceptions import MissingExtraError
from otel_feedback.web._endpoint import FeedbackEndpoint, WebRequest

try:
    from flask import Blueprint, Response, request
except ImportError as error:
    raise MissingExtraError("the Flask blueprint needs Flask: pip install flask", extra="web") from error

METHODS = ["GET", "POST", "DELETE", "OPTIONS"]


def feedback_blueprint(name: str = "feedback", **options: Any) -> Blueprint:
    """Make Flask's blueprint of the feedback endpoint.

    Args:
        name: the blueprint's.

        **options: those of `FeedbackEndpoint`.
    """
    endpoint = FeedbackEndpoint(**options)
    blueprint = Blueprint(name, __name__)

    def view(path: str = "") -> Response:
        limit = endpoint.max_body_bytes
        # Werkzeug's stream ends where the request does, whatever its length says.
        body = b"" if request.content_length == 0 else request.stream.read(limit + 1)
        asked = WebRequest(
            request.method,
            path,
            {name.lower(): value for name, value in request.headers.items()},
            None if len(body) > limit else body,
            request.remote_addr or "",
            request,
        )
        answer = endpoint.respond(asked)
        return Response(answer.body, answer.status, dict(answer.headers))

    for rule in ("", "/", "/<path:path>"):
        blueprint.add_url_rule(rule, "feedback", view, methods=METHODS, provide_automatic_options=False)
    return blueprint
