"""The feedback route for Django.

    urlpatterns = [*feedback_urls("feedback")]

The view is exempt from Django's CSRF check: a forged form has no token, and where `authorize` decides instead the route
itself refuses pages of other origins. Django's own requests and patterns are `Any` here, as it comes without types.
"""

from __future__ import annotations

from typing import Any

from otel_feedback.exceptions import MissingExtraError
from otel_feedback.web._endpoint import FeedbackEndpoint, WebRequest

try:
    from django.http import HttpResponse  # type: ignore[import-untyped]  # as django-stubs
    from django.urls import path as url  # type: ignore[import-untyped]  # as django-stubs
except ImportError as error:
    raise MissingExtraError("the Django view needs Django: pip install django", extra="web") from error


def feedback_urls(route: str = "feedback", **options: Any) -> list[Any]:
    """Make Django's URL patterns of the feedback endpoint.

    Args:
        route: where it is, without slashes around it.

        **options: those of `FeedbackEndpoint`.
    """
    endpoint = FeedbackEndpoint(**options)

    def view(request: Any, path: str = "") -> HttpResponse:
        limit = endpoint.max_body_bytes
        body = request.read(limit + 1)
        asked = WebRequest(
            request.method or "",
            path,
            {name.lower(): value for name, value in request.headers.items()},
            None if len(body) > limit else body,
            request.META.get("REMOTE_ADDR", ""),
            request,
        )
        answer = endpoint.respond(asked)
        return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))

    view.csrf_exempt = True  # type: ignore[attr-defined]  # Django asks the view for it
    where = route.strip("/")
    return [url(each, view) for each in (where, f"{where}/", f"{where}/<path:path>")]
