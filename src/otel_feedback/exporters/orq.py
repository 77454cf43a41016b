"""orq: one property of a trace a call, `POST /v2/feedback` with product `otel`.

Source: docs.orq.ai, "Submit feedback" (the newer documentation calls the endpoint deprecated; existing integrations
go on working). Everything that orq needs to be told lives here; this file does no I/O.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._record import FeedbackRecord, Part, derived_id, part_id
from otel_feedback._retry import HOUR_MILLIS
from otel_feedback.exceptions import InvalidFeedbackError
from otel_feedback.exporters import Result, RetryableFailure, Skipped, Success
from otel_feedback.exporters._http import (
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    NoAnswer,
    Text,
    check_api_key,
    check_names,
    check_text,
    native_fields,
    one_by_one,
    reason_of,
    require_api_key,
    text_or,
)

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

# The published products, and one that orq has added since. A new one may come any day: unknown is warned about.
PRODUCTS = frozenset(
    {
        "agents",
        "ai-chat",
        "deployments",
        "evaluators",
        "experiments",
        "external_events",
        "generic",
        "knowledge",
        "llm_evaluator",
        "mcp_gateway",
        "memory-stores",
        "otel",
        "playgrounds",
        "remoteconfigs",
        "router",
        "spreadsheet_run",
        "spreadsheets",
        "workflows",
    }
)

# The multiple choices that every workspace has.
CHOICES: Mapping[str, frozenset[str]] = {
    "rating": frozenset({"good", "bad"}),
    "defects": frozenset(
        {
            "ambiguity",
            "grammatical",
            "hallucination",
            "inappropriate",
            "incompleteness",
            "off_topic",
            "repetition",
            "spelling",
        }
    ),
    "interactions": frozenset({"copied", "deleted", "reported", "saved", "selected", "shared"}),
}


class OrqNative(TypedDict, total=False):
    """What `native={"orq": …}` may set."""

    property: Text
    value: Text | float | Annotated[list[Text], pydantic.Field(min_length=1)]
    product: Text


# A 404 may be a trace that has not arrived yet; after this long it is a property that nobody defined.
NOT_FOUND_GRACE_MILLIS = 6 * HOUR_MILLIS

# Crockford's base32, the alphabet of ULIDs (https://github.com/ulid/spec).
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class OrqExporter(HTTPFeedbackExporter):
    """Sends judgements to orq, at the level of the trace.

    Args:
        api_key: the workspace's key; by default `ORQ_API_KEY`.

        base_url: by default `ORQ_BASE_URL`, else `https://api.orq.ai`.

        name: how users route to it.

        product: what orq files the feedback under; `otel` for traces that came by OpenTelemetry.

        properties: the properties of your own that you have defined in the workspace. Feedback under any other name
            but orq's own is not sent, because orq refuses it; the receipt says so.

        comment_property: the property of yours that takes comments; without one they are not carried.

        thumbs: the names whose booleans are a thumb up or down.

        options: timeouts and transport.
    """

    native_type = OrqNative

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        name: str = "orq",
        product: str = "otel",
        properties: Sequence[str] = (),
        comment_property: str | None = None,
        thumbs: Sequence[str] = ("rating", "thumb"),
        options: HTTPOptions | None = None,
    ) -> None:
        base_url = text_or(base_url, "base_url", env.read(env.ORQ_BASE_URL))
        super().__init__(name=name, base_url=base_url, options=options)
        self._api_key = check_api_key(text_or(api_key, "api_key", env.read(env.ORQ_API_KEY)), env.ORQ_API_KEY)
        self.product = check_text(product, "product")
        self.properties = check_names(properties, "properties")
        self.comment_property = None if comment_property is None else check_text(comment_property, "comment_property")
        self.thumbs = check_names(thumbs, "thumbs")
        if product not in PRODUCTS:
            logger.warning("orq: %r is no product that otel-feedback knows; sending it all the same", product)

    @property
    def headers(self) -> Mapping[str, str]:
        """Bearer authorization."""
        return {"authorization": f"Bearer {self._api_key}"}

    def start(self) -> None:
        """Refuse to start without a key."""
        require_api_key(self._api_key, self.name, env.ORQ_API_KEY)
        super().start()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """One part a property: the value, the correction, the comment."""
        native = native_fields(record, self.name, OrqNative)
        product = native.get("product", self.product)
        found = {
            "value": self._property_of(record, native),
            "correction": None if record.correction is None else ("correction", _as_text(record.correction)),
            "comment": self._comment_of(record),
        }
        return [_part(record, kind, what, product=product) for kind, what in found.items() if what is not None]

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """One call a part; orq has no batch."""
        return one_by_one(parts, self._deliver)

    def _comment_of(self, record: FeedbackRecord) -> tuple[str, str] | None:
        """Put a comment under the property that takes comments, if there is one."""
        if record.comment is None or self.comment_property is None:
            return None
        return self.comment_property, record.comment

    def _property_of(self, record: FeedbackRecord, native: Mapping[str, Any]) -> tuple[str, Any] | None:
        """Name orq's property for a value and what it holds, or nothing where orq would refuse it."""
        value = native.get("value", _in_orqs_words(record, self.thumbs))
        name = native.get("property", self._known_property(record, value))
        if name is not None and value is not None:
            return name, value
        if "property" in native or "value" in native:
            raise InvalidFeedbackError(
                f"native[{self.name!r}] needs both a property that orq knows and a value", field=f"native.{self.name}"
            )
        return None

    def _known_property(self, record: FeedbackRecord, value: Any) -> str | None:
        """Find the property that orq has for a value: a thumb's, a declared one, or one of orq's multiple choices."""
        if isinstance(record.value, bool) and record.name in self.thumbs:
            return "rating"
        if record.name in self.properties:
            return record.name
        is_choice = not isinstance(record.value, bool) and isinstance(value, list)
        return record.name if is_choice and CHOICES.get(record.name, frozenset()).issuperset(value) else None

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create a part; what was there before is removed first, since what a repeated id does is unknown.

        A failure tells which revisions are gone: where there are many, no try may ever get through all of them.
        """
        gone: list[int] = []
        try:
            result = yield from self._replace(part, gone)
        except NoAnswer as silence:
            raise NoAnswer(replace(silence.result, removed=tuple(gone))) from silence
        return result if isinstance(result, (Success, Skipped)) else replace(result, removed=tuple(gone))

    def _replace(self, part: Part, gone: list[int]) -> Exchange[Result]:
        """Remove what was there before, and create the part."""
        if part.action != "create":
            removed = yield from self._remove(part, gone)
            if part.action == "retract" or not isinstance(removed, Success):
                return removed
        response = yield self.request("POST", "/v2/feedback", part.body)
        if response.status_code == 409:
            # The id is ours alone: an earlier try arrived, and its answer was lost.
            return Success(reason_of(response, "it is there already"))
        return self._judge(response, part)

    def _remove(self, part: Part, gone: list[int]) -> Exchange[Result]:
        """Take back what may be there of a part; what orq does not have is as good as removed.

        That may be several revisions: which of them has arrived is not certain when an answer was lost. Each that is
        `gone` is noted there.
        """
        was = part.replaces or part
        removed: Result = Success()
        for revision in part.revisions or (was.record.revision,):
            body = {"trace_id": was.body["trace_id"], "product": was.body["product"], "id": ulid_of(was.id, revision)}
            response = yield self.request("POST", "/v2/feedback/remove", body)
            removed = self._judge(response, part)
            if response.status_code == 404:
                removed = Success(reason_of(response, "it was not there"))
            if not isinstance(removed, Success):
                break
            gone.append(revision)
        return removed

    def _judge(self, response: httpx.Response, part: Part) -> Result:
        """Read an answer, of an error orq's own `message`."""
        message = self.message(response, "message", part)
        if response.status_code == 404:
            hint = f"has the trace arrived, and is the property defined in the workspace? {message}".strip()
            return RetryableFailure(reason_of(response, hint), give_up_after_millis=NOT_FOUND_GRACE_MILLIS)
        return self.result(response, message=message)


def _part(record: FeedbackRecord, kind: str, what: tuple[str, Any], *, product: str) -> Part:
    """Build the body of one property."""
    name, value = what
    body = {
        "property": name,
        "value": value,
        "trace_id": record.handle.trace_id,
        "product": product,
        "id": ulid_of(part_id(record.id, kind), record.revision),
    }
    return Part(record=record, kind=kind, body=body, carries=frozenset({kind}) & frozenset(record.said))


def ulid(identifier: str) -> str:
    """Write a UUID's 128 bits as a ULID."""
    bits = uuid.UUID(identifier).int
    return "".join(_BASE32[bits >> shift & 31] for shift in range(125, -1, -5))


def ulid_of(identifier: str, revision: int) -> str:
    """Choose the id at orq: a changed judgement gets a new one, because the removed one may not be used again."""
    return ulid(derived_id("revision", identifier, str(revision)) if revision else identifier)


def _in_orqs_words(record: FeedbackRecord, thumbs: frozenset[str]) -> str | float | list[str] | None:
    """Write a value as orq has it: it knows no booleans, and every choice is a list."""
    value = record.value
    if isinstance(value, bool):
        words = ("good", "bad") if record.name in thumbs else ("true", "false")
        return [words[0] if value else words[1]]
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, tuple) else value


def _as_text(correction: Any) -> str:
    """Write a correction as orq wants it: a string; anything else as canonical JSON."""
    if isinstance(correction, str):
        return correction
    return pydantic_core.to_json(_sorted(correction)).decode()


def _sorted(value: Any) -> Any:
    """Sort the keys of every object, so that equal values are equal texts."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
