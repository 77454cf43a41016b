"""W&B Weave: `POST /feedback/create`, `/feedback/replace`, `/feedback/purge`.

Source: docs.wandb.ai, Weave service API. The server never checks `weave_ref`: a wrong one answers 200 and joins
nothing, so the one function `weave_ref` builds them all. Everything that Weave needs to be told lives here; this
file does no I/O.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord, Part, part_id
from otel_feedback._time import iso_utc
from otel_feedback.exceptions import ConfigurationError
from otel_feedback.exporters import Result
from otel_feedback.exporters._http import (
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    check_api_key,
    json_of,
    native_fields,
    one_by_one,
    require_api_key,
)

if TYPE_CHECKING:
    import httpx

REACTION = "wandb.reaction.1"
NOTE = "wandb.note.1"
AGENT_FEEDBACK = "wandb.agent_user_feedback"

# Weave refuses a longer note.
MAX_NOTE_CHARS = 1024

THUMB_UP, THUMB_DOWN = "👍", "👎"

_NOTHING: Mapping[str, Any] = {}

# Two parts, raw: a URL-encoded project is another project.
_PROJECT_ID = re.compile(r"[^/%\s]+/[^/%\s]+")


class WeaveNative(TypedDict, total=False):
    """What `native={"weave": …}` may set: every published field but the ids and the user that W&B fills in."""

    feedback_type: str
    payload: dict[str, Any]
    creator: str
    annotation_ref: str
    runnable_ref: str
    call_ref: str
    trigger_ref: str
    queue_id: str
    scorer_tags: list[str]
    scorer_tag_reasons: dict[str, Any]
    scorer_tag_confidences: dict[str, Any]
    scorer_ratings: dict[str, Any]
    scorer_rating_reasons: dict[str, Any]
    scorer_rating_confidences: dict[str, Any]


class WeaveExporter(HTTPFeedbackExporter):
    """Sends judgements to W&B Weave, onto the span's call.

    Args:
        project_id: `entity/project`; by default `WANDB_ENTITY` and `WANDB_PROJECT`, or `WANDB_PROJECT` with a slash.

        api_key: by default `WANDB_API_KEY`.

        base_url: by default `WF_TRACE_SERVER_URL`, else `/traces` at a `WANDB_BASE_URL` of your own, else
            `https://trace.wandb.ai`.

        name: how users route to it.

        view: where the spans are: `traces` for those sent to `/otel/v1/traces`, `agents` for
            `/agents/otel/v1/traces`.

        thumbs: the names whose booleans are a thumb up or down.

        options: timeouts and transport.
    """

    def __init__(
        self,
        project_id: str | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        name: str = "weave",
        view: Literal["traces", "agents"] = "traces",
        thumbs: Sequence[str] = ("rating", "thumb"),
        options: HTTPOptions | None = None,
    ) -> None:
        super().__init__(name=name, base_url=base_url or _base_url(), options=options)
        self._api_key = check_api_key(api_key or env.read(env.WANDB_API_KEY), env.WANDB_API_KEY)
        self.project_id = check_project_id(project_id or _project_id())
        self.view = view
        self.thumbs = frozenset(thumbs)

    @property
    def headers(self) -> Mapping[str, str]:
        """Basic authorization: the user is always `api`."""
        return {"authorization": "Basic " + base64.b64encode(f"api:{self._api_key}".encode()).decode()}

    def start(self) -> None:
        """Refuse to start without a key or a project."""
        require_api_key(self._api_key, self.name, env.WANDB_API_KEY)
        if not self.project_id:
            raise ConfigurationError(
                "Weave needs a project: set WANDB_ENTITY and WANDB_PROJECT or give project_id='entity/project'",
                setting=env.WANDB_PROJECT,
            )
        super().start()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """The value, the correction, the comment; tags, metadata and time ride on the first of them."""
        native = native_fields(record, self.name, WeaveNative)
        found: list[tuple[str, str, dict[str, Any]]] = []
        if record.value is not None:
            feedback_type, payload = self._value(record)
            found.append(("value", feedback_type, payload))
        if record.correction is not None:
            found.append(("correction", "correction", {"value": record.correction}))
        if record.comment is not None:
            is_note = len(record.comment) <= MAX_NOTE_CHARS
            found.append(
                ("comment", NOTE, {"note": record.comment})
                if is_note
                else ("comment", "comment", {"value": record.comment})
            )
        if not found:
            found.append(("value", record.name, {}))
        first, *others = found
        return [
            self._part(record, *first, carries_rest=True, native=native),
            *(self._part(record, *other) for other in others),
        ]

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """One call a part."""
        return one_by_one(parts, self._deliver)

    def _value(self, record: FeedbackRecord) -> tuple[str, dict[str, Any]]:
        """Choose the feedback type of a value, and its payload."""
        is_thumb = isinstance(record.value, bool) and record.name in self.thumbs
        if is_thumb:
            payload: dict[str, Any] = {"emoji": _emoji(record)}
        else:
            payload = {"value": list(record.value) if isinstance(record.value, tuple) else record.value}
        if record.scale is not None:
            payload["scale"] = list(record.scale)
        if self.view == "agents":
            return AGENT_FEEDBACK, payload
        return (REACTION if is_thumb else record.name), payload

    def _part(
        self,
        record: FeedbackRecord,
        kind: str,
        feedback_type: str,
        payload: dict[str, Any],
        *,
        carries_rest: bool = False,
        native: Mapping[str, Any] = _NOTHING,
    ) -> Part:
        """Build the body of one feedback row."""
        carries = {kind} & set(record.said)
        if carries_rest:
            extras = {"name": record.name, "source": record.source, "metadata": dict(record.metadata)}
            payload |= {key: value for key, value in extras.items() if value}
            if record.tags:
                payload["tags"] = list(record.tags)
            carries |= {"tags", "metadata"} & set(record.said)
        payload["recorded_at"] = iso_utc(record.time_unix_nano)
        body: dict[str, Any] = {
            "project_id": self.project_id,
            "weave_ref": weave_ref(self.project_id, record.handle, self.view),
            "feedback_type": feedback_type,
            "payload": payload,
            "id": part_id(record.id, kind),
        }
        if record.user_id is not None:
            body["creator"] = record.user_id
            carries.add("user_id")
        if feedback_type == AGENT_FEEDBACK:
            body |= self._scorer_fields(record)
        body = {**body, **native, "payload": {**payload, **native.get("payload", {})}}
        return Part(record=record, kind=kind, body=body, carries=frozenset(carries))

    def _scorer_fields(self, record: FeedbackRecord) -> dict[str, Any]:
        """Write a value for the Agents view, where tags must not be empty."""
        value = record.value
        if isinstance(value, bool):
            tags = [_emoji(record)] if record.name in self.thumbs else [record.name if value else f"not {record.name}"]
        elif isinstance(value, (int, float)):
            tags = [record.name]
        else:
            tags = [value] if isinstance(value, str) else list(value or ())
        fields: dict[str, Any] = {"scorer_tags": list(dict.fromkeys([*tags, *record.tags]))}
        if not isinstance(value, bool) and record.fraction is not None:
            fields["scorer_ratings"] = {record.name: record.fraction}
        return fields

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create, replace or purge one row."""
        if part.action == "retract":
            response = yield self.request("POST", "/feedback/purge", purge_body(self.project_id, part.id))
            return self._judge(response)
        if part.action == "replace":
            response = yield self.request("POST", "/feedback/replace", {**part.body, "feedback_id": part.id})
            if response.status_code != 404:
                return self._judge(response)
            # Not there after all, or an older server: creating it under the same id comes to the same.
        response = yield self.request("POST", "/feedback/create", part.body)
        return self._judge(response)

    def _judge(self, response: httpx.Response) -> Result:
        """Read an answer; of an error only Weave's own `reason`."""
        body = None if response.is_success else json_of(response)
        reason = body.get("reason") if isinstance(body, dict) else None
        return self.result(response, reason if isinstance(reason, str) else "")


def weave_ref(project_id: str, handle: FeedbackHandle, view: Literal["traces", "agents"]) -> str:
    """Build the reference to a span, the one place where that is done: lower-case hex, nothing URL-encoded."""
    kind = "call" if view == "traces" else "agent_span"
    return f"weave:///{project_id}/{kind}/{handle.span_id}"


def purge_body(project_id: str, feedback_id: str) -> dict[str, Any]:
    """Build the request that removes one row by its id, in Weave's query language."""
    is_it = {"$eq": [{"$getField": "id"}, {"$literal": feedback_id}]}
    return {"project_id": project_id, "query": {"$expr": is_it}}


def check_project_id(project_id: str) -> str:
    """Check a project id; an empty one is none.

    Raises:
        ConfigurationError: when it is not `entity/project`, raw.
    """
    if project_id and not _PROJECT_ID.fullmatch(project_id):
        raise ConfigurationError(
            "a Weave project is entity/project: two non-empty parts, not URL-encoded",
            setting=env.WANDB_PROJECT,
        )
    return project_id


def _emoji(record: FeedbackRecord) -> str:
    """Choose the one emoji of a thumb."""
    return THUMB_UP if record.value else THUMB_DOWN


def _project_id() -> str:
    """Put the project together from the environment."""
    entity, project = env.read(env.WANDB_ENTITY), env.read(env.WANDB_PROJECT)
    return project if "/" in project or not entity or not project else f"{entity}/{project}"


def _base_url() -> str:
    """Find the trace server from the environment, by Weave's own rule."""
    if url := env.read(env.WF_TRACE_SERVER_URL):
        return url
    url = env.read(env.WANDB_BASE_URL).rstrip("/")
    return "https://trace.wandb.ai" if url == env.VARIABLES[env.WANDB_BASE_URL].default else f"{url}/traces"
