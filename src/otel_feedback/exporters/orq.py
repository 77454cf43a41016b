"""orq: one property of a trace a call, `POST /v2/feedback`; or one annotation of a span a call, by its newer API.

Sources: docs.orq.ai, "Submit feedback" (the newer documentation calls the endpoint deprecated; existing integrations
go on working) and "Annotate a span". Everything that orq needs to be told lives here; this file does no I/O.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._record import FeedbackRecord, FeedbackValue, Part, derived_id, part_id
from otel_feedback._retry import HOUR_MILLIS
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import Result, RetryableFailure, Skipped, Success
from otel_feedback.exporters._checks import (
    Text,
    check_api_key,
    check_choice,
    check_names,
    check_text,
    native_fields,
    require_api_key,
    text_or,
)
from otel_feedback.exporters._http import (
    PAGE_HINT,
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    NoAnswer,
    is_page,
    one_by_one,
    reason_of,
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


_Texts = Annotated[list[Text], pydantic.Field(min_length=1)]


class OrqNative(TypedDict, total=False):
    """What `native={"orq": …}` may set."""

    property: Text
    value: Text | float | _Texts
    product: Text


class OrqAnnotationNative(TypedDict, total=False):
    """What `native={"orq": …}` may set with `api="annotations"`.

    An annotation has a `key`, or it corrects what an evaluator said: then it has the `parent_annotation_id` of that and
    perhaps an `explanation`.
    """

    key: Text
    value: Text | float | bool | _Texts
    parent_annotation_id: Text
    explanation: Text


# A 404 may be a trace that has not arrived yet; after this long it is a property that nobody defined.
NOT_FOUND_GRACE_MILLIS = 6 * HOUR_MILLIS

_SHARED_KEY = (
    "{!r} would be the key of two parts of one judgement, and the second would replace the first; choose another"
)

# Crockford's base32, the alphabet of ULIDs (https://github.com/ulid/spec).
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class OrqExporter(HTTPFeedbackExporter):
    """Sends judgements to orq: at the level of the trace, or with `api="annotations"` of the span.

    Args:
        api_key: the workspace's key; by default `ORQ_API_KEY`.

        base_url: by default `ORQ_BASE_URL`, else `https://api.orq.ai`.

        name: how users route to it.

        api: `feedback` posts properties of the trace, each under an id of its own. `annotations`, orq's newer API,
            annotates the span, with the end user and with booleans; orq keeps one value under a key of a span, the
            newest, so that two names that share a key replace each other, and a key that two parts of one judgement
            would share is refused. What was said by the one API is not taken back by the other.

        product: what orq files the feedback under; `otel` for traces that came by OpenTelemetry. Annotations have none.

        properties: the properties of your own that you have defined in the workspace (of annotations: the keys of your
            reviews). Feedback under any other name but orq's own is not sent, because orq refuses it; the receipt says
            so.

        comment_property: the property of yours that takes comments; without one they are not carried. None of orq's
            choices, which take no text. (Of annotations orq's guide says that a text has 200 characters at the most; a
            longer one that it refuses is a dead letter.)

        thumbs: the undeclared names whose booleans are a thumb up or down, orq's `rating`. Annotations have other
            booleans as they are, `/v2/feedback` as the choice `true` or `false`.

        options: timeouts and transport.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        name: str = "orq",
        api: Literal["feedback", "annotations"] = "feedback",
        product: str = "otel",
        properties: Sequence[str] = (),
        comment_property: str | None = None,
        thumbs: Sequence[str] = ("rating", "thumb"),
        options: HTTPOptions | None = None,
    ) -> None:
        base_url = text_or(base_url, "base_url", env.read(env.ORQ_BASE_URL))
        super().__init__(name=name, base_url=base_url, options=options)
        self._api_key = check_api_key(text_or(api_key, "api_key", env.read(env.ORQ_API_KEY)), env.ORQ_API_KEY)
        check_choice(api, "api", _APIS)
        self.api = api
        self.product = check_text(product, "product")
        if api == "annotations" and product != "otel":
            raise ConfigurationError("an annotation has no product: leave product= out", setting="product")
        self.properties = check_names(properties, "properties")
        self.comment_property = None if comment_property is None else check_text(comment_property, "comment_property")
        self.thumbs = check_names(thumbs, "thumbs")
        self._api = _APIS[api]
        self._check_keys()
        self.native_type = self._api.native_type
        # Under a key of a span orq may keep one value for all who judge: then the newest has to arrive last.
        self.orders_by_call = api == "annotations"
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
        native = native_fields(record, self.name, self._api.native_type)
        said = {
            "value": self._value_of(record, native),
            "correction": None if record.correction is None else _Said("correction", _as_text(record.correction)),
            "comment": self._comment_of(record),
        }
        product = native.get("product", self.product)
        found = {kind: what for kind, what in said.items() if what is not None}
        self._check_native_key(found)
        return [self._api.part(record, kind, what, product) for kind, what in found.items()]

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """One call a part, so that what orq refuses of one sinks no other."""
        return one_by_one(parts, self._deliver)

    def _check_keys(self) -> None:
        """Refuse a set-up in which what is said would be refused, or would replace another part of the judgement."""
        comment = self.comment_property
        if comment in CHOICES:
            raise ConfigurationError(f"orq's {comment} is a choice and takes no text", setting="comment_property")
        if self._api.has_own_ids:
            return
        if "correction" in self.properties:
            raise ConfigurationError(_SHARED_KEY.format("correction"), setting="properties")
        if comment == "correction" or comment in self.properties:
            raise ConfigurationError(_SHARED_KEY.format(comment), setting="comment_property")

    def _check_native_key(self, said: Mapping[str, _Said]) -> None:
        """Refuse a key that is given natively where another part of the judgement has it: it would replace that."""
        value = said.get("value")
        if self._api.has_own_ids or value is None or value.parent is not None:
            return
        if value.name in {what.name for kind, what in said.items() if kind != "value"}:
            raise InvalidFeedbackError(
                f"native[{self.name!r}] sets key to {value.name!r}, which another part of this judgement has",
                field=f"native.{self.name}.key",
            )

    def _comment_of(self, record: FeedbackRecord) -> _Said | None:
        """Put a comment under the property that takes comments, if there is one."""
        if record.comment is None or self.comment_property is None:
            return None
        return _Said(self.comment_property, record.comment)

    def _value_of(self, record: FeedbackRecord, native: Mapping[str, Any]) -> _Said | None:
        """Name orq's property for a value and what it holds, or nothing where orq would refuse it."""
        given = self._api.given(native, self.name)
        # What corrects an evaluator is of the evaluator's type, and none of orq's choices.
        is_thumb = self._is_thumb(record) and given.parent is None
        value = native.get("value", self._api.in_words(record.value, is_thumb=is_thumb))
        name = given.name or given.parent or self._known_property(record, value)
        if name is not None and value is not None:
            return given._replace(name=name, value=value)
        if native.keys() - {"product"}:
            raise InvalidFeedbackError(
                f"native[{self.name!r}] needs both a property that orq knows and a value", field=f"native.{self.name}"
            )
        return None

    def _known_property(self, record: FeedbackRecord, value: Any) -> str | None:
        """Find the property that orq has for a value: a thumb's, a declared one, or one of orq's multiple choices."""
        if self._is_thumb(record):
            return "rating"
        if record.name in self.properties:
            return record.name
        is_choice = not isinstance(record.value, bool) and isinstance(value, list)
        return record.name if is_choice and CHOICES.get(record.name, frozenset()).issuperset(value) else None

    def _is_thumb(self, record: FeedbackRecord) -> bool:
        """Tell whether a value is a thumb up or down."""
        return record.is_thumb_under(self.thumbs)

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create a part; what was there before is removed first, since what a repeated id or key does is unknown.

        A failure tells which revisions are gone: where there are many, no try may ever get through all of them.
        """
        gone: list[int] = []
        try:
            result = yield from self._replace(part, gone)
        except NoAnswer as silence:
            raise NoAnswer(replace(silence.result, removed=tuple(gone))) from silence
        return result if isinstance(result, (Success, Skipped)) else replace(result, removed=tuple(gone))

    def _replace(self, part: Part, gone: list[int]) -> Exchange[Result]:
        """Remove what was there before, and create the part; of one taken back, what somebody else said of it."""
        removed = yield from self._remove(part, gone)
        if not isinstance(removed, Success):
            return removed
        if part.action != "retract":
            return (yield from self._create(part))
        stands = self._standing_part(part)
        if stands is None:
            return removed
        return (yield from self._replace(stands, []))

    def _create(self, part: Part) -> Exchange[Result]:
        """Create a part."""
        response = yield self._request(self._api.creation(part))
        if response.status_code == 409 and self._api.has_own_ids:
            # The id is ours alone: an earlier try arrived, and its answer was lost.
            return Success(reason_of(response, "it is there already"))
        return self._judge(response, part)

    def _remove(self, part: Part, gone: list[int]) -> Exchange[Result]:
        """Take back what may be there of a part; what orq does not have is as good as removed.

        That may be several revisions: which of them has arrived is not certain when an answer was lost. Each that is
        `gone` is noted there.
        """
        removed: Result = Success()
        for revisions, call in self._api.removals(part):
            response = yield self._request(call)
            removed = self._judge(response, part)
            if response.status_code == 404 and not is_page(response):
                removed = Success(reason_of(response, "it was not there"))
            if not isinstance(removed, Success):
                break
            gone += revisions
        return removed

    def _standing_part(self, part: Part) -> Part | None:
        """Find what somebody else said that was under the same key, and may have been removed with it.

        It is put there as what may be there: replaced, so that there is one of it in the end.
        """
        if part.record.stands is None or self._api.has_own_ids:
            return None
        try:
            standing = self.parts(part.record.stands)
        except InvalidFeedbackError:  # it was accepted for another setting
            return None
        return next((replace(each, action="replace") for each in standing if _is_under_one_key(each, part)), None)

    def _request(self, call: _Call) -> httpx.Request:
        method, path, body = call
        return self.request(method, path, body)

    def _judge(self, response: httpx.Response, part: Part) -> Result:
        """Read an answer, of an error orq's own `message`."""
        message = self.message(response, "message", part)
        if response.status_code == 404 and is_page(response):
            # No trace is missing: there is no API here. Six hours of grace, and then a dead letter, would hide that.
            return self.result(response, hint=PAGE_HINT)
        if response.status_code == 404:
            hint = f"{self._api.hint_at_404} {message}".strip()
            return RetryableFailure(reason_of(response, hint), give_up_after_millis=NOT_FOUND_GRACE_MILLIS)
        return self.result(response, message=message)


# --- the two APIs --------------------------------------------------------------------------------------------------


_Call = tuple[str, str, Mapping[str, Any]]


class _Said(NamedTuple):
    """A property's name and value; of what corrects an evaluator, which saying of it and why."""

    name: str
    value: Any = None
    parent: str | None = None
    explanation: str | None = None


class _API(Protocol):
    """What tells one of orq's APIs from the other."""

    native_type: type
    hint_at_404: str
    # Whether what is created has an id that we choose; else it is known by its key.
    has_own_ids: bool

    def in_words(self, value: FeedbackValue | None, *, is_thumb: bool) -> Any:
        """Write a value as orq has it: every choice is a list."""
        ...

    def given(self, native: Mapping[str, Any], name: str) -> _Said:
        """Read what is given natively of a property, but for its value."""
        ...

    def part(self, record: FeedbackRecord, kind: str, what: _Said, product: str) -> Part:
        """Build a part from a property."""
        ...

    def creation(self, part: Part) -> _Call:
        """Say what creates a part: method, path and body."""
        ...

    def removals(self, part: Part) -> Sequence[tuple[tuple[int, ...], _Call]]:
        """Say what removes what may be there before a part is created, and of which revisions, the newest first."""
        ...


class _FeedbackAPI:
    """`/v2/feedback`: properties of a trace, each with an id of ours; no booleans."""

    native_type: type = OrqNative
    hint_at_404 = "has the trace arrived, and is the property defined in the workspace?"
    has_own_ids = True

    def in_words(self, value: FeedbackValue | None, *, is_thumb: bool) -> Any:
        if isinstance(value, bool):
            words = ("good", "bad") if is_thumb else ("true", "false")
            return [words[0] if value else words[1]]
        return _as_choice(value)

    def given(self, native: Mapping[str, Any], name: str) -> _Said:  # noqa: ARG002 (nothing to refuse)
        return _Said(native.get("property", ""))

    def part(self, record: FeedbackRecord, kind: str, what: _Said, product: str) -> Part:
        body = {
            "property": what.name,
            "value": what.value,
            "trace_id": record.handle.trace_id,
            "product": product,
            "id": ulid_of(part_id(record.id, kind), record.revision),
        }
        return Part(record=record, kind=kind, body=body, carries=frozenset({kind}) & frozenset(record.said))

    def creation(self, part: Part) -> _Call:
        return "POST", "/v2/feedback", part.body

    def removals(self, part: Part) -> Sequence[tuple[tuple[int, ...], _Call]]:
        if part.action == "create":
            return []
        was = part.replaces or part
        where = {"trace_id": was.body["trace_id"], "product": was.body["product"]}
        return [
            ((revision,), ("POST", "/v2/feedback/remove", {**where, "id": ulid_of(was.id, revision)}))
            for revision in part.revisions or (was.record.revision,)
        ]


class _AnnotationsAPI:
    """`/v2/traces/…/spans/…/annotation`: annotations of a span, known by their key, with the end user."""

    native_type: type = OrqAnnotationNative
    hint_at_404 = "has the span arrived, and is there a review with this key in the workspace?"
    has_own_ids = False

    def in_words(self, value: FeedbackValue | None, *, is_thumb: bool) -> Any:
        if isinstance(value, bool):
            return ["good" if value else "bad"] if is_thumb else value
        return _as_choice(value)

    def given(self, native: Mapping[str, Any], name: str) -> _Said:
        parent = native.get("parent_annotation_id")
        if parent is not None and "key" in native:
            raise InvalidFeedbackError(
                f"native[{name!r}] cannot set both key and parent_annotation_id", field=f"native.{name}.key"
            )
        if parent is None and "explanation" in native:
            raise InvalidFeedbackError(
                f"native[{name!r}] can set explanation only with parent_annotation_id",
                field=f"native.{name}.explanation",
            )
        return _Said(native.get("key", ""), None, parent, native.get("explanation"))

    def part(self, record: FeedbackRecord, kind: str, what: _Said, product: str) -> Part:  # noqa: ARG002 (has none)
        annotation = {"key": what.name} if what.parent is None else {"parent_annotation_id": what.parent}
        annotation["value"] = what.value
        if what.explanation is not None:
            annotation["explanation"] = what.explanation
        body: dict[str, Any] = {"annotations": [annotation]}
        if record.user_id is not None:
            body["metadata"] = {"identity_id": record.user_id}
        return Part(
            record=record,
            kind=kind,
            body=body,
            route=f"/v2/traces/{record.handle.trace_id}/spans/{record.handle.span_id}/annotation",
            carries=frozenset({kind, "user_id"}) & frozenset(record.said),
        )

    def creation(self, part: Part) -> _Call:
        return "POST", part.route, part.body

    def removals(self, part: Part) -> Sequence[tuple[tuple[int, ...], _Call]]:
        """One deletion takes every revision: they were all under one key. What may have arrived is deleted, too."""
        if part.action == "create":
            return [((), self._deletion(part))] if part.may_have_arrived else []
        was = part.replaces or part
        return [(part.revisions or (was.record.revision,), self._deletion(was))]

    def _deletion(self, part: Part) -> _Call:
        """Delete by key, and name the end user: orq may keep one annotation for each."""
        (annotation,) = part.body["annotations"]
        names = (
            {"keys": [annotation["key"]]}
            if "key" in annotation
            else {"parent_annotation_ids": [annotation["parent_annotation_id"]]}
        )
        metadata = {"metadata": part.body["metadata"]} if "metadata" in part.body else {}
        return "DELETE", part.route, {**names, **metadata}


_APIS: Mapping[str, _API] = {"feedback": _FeedbackAPI(), "annotations": _AnnotationsAPI()}


def _is_under_one_key(part: Part, other: Part) -> bool:
    """Tell whether two parts annotate a span under the same key."""
    return part.route == other.route and _place_of(part) == _place_of(other)


def _place_of(part: Part) -> tuple[str | None, str | None]:
    """Name what an annotation is known by on its span."""
    (annotation,) = part.body["annotations"]
    return annotation.get("key"), annotation.get("parent_annotation_id")


# --- ids and values ------------------------------------------------------------------------------------------------


def ulid(identifier: str) -> str:
    """Write a UUID's 128 bits as a ULID."""
    bits = uuid.UUID(identifier).int
    return "".join(_BASE32[bits >> shift & 31] for shift in range(125, -1, -5))


def ulid_of(identifier: str, revision: int) -> str:
    """Choose the id at orq: a changed judgement gets a new one, because the removed one may not be used again."""
    return ulid(derived_id("revision", identifier, str(revision)) if revision else identifier)


def _as_choice(value: FeedbackValue | None) -> Any:
    """Write a label as orq wants a choice: every one is a list."""
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
