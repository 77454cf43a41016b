"""W&B Weave: `POST /feedback/create`, `/feedback/replace`, `/feedback/purge`.

Source: docs.wandb.ai, Weave service API. The server never checks `weave_ref`: a wrong one answers 200 and joins
nothing, so the one function `weave_ref` builds them all. Everything that Weave needs to be told lives here; this
file does no I/O.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import pydantic
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord, Part, part_id
from otel_feedback._time import iso_utc
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import Result, Success
from otel_feedback.exporters._http import (
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    Text,
    check_api_key,
    check_choice,
    check_names,
    native_fields,
    one_by_one,
    reason_of,
    require_api_key,
    text_or,
)

if TYPE_CHECKING:
    import httpx

REACTION = "wandb.reaction.1"
NOTE = "wandb.note.1"
AGENT_FEEDBACK = "wandb.agent_user_feedback"

# Weave refuses a longer note.
MAX_NOTE_CHARS = 1024

THUMB_UP, THUMB_DOWN = "👍", "👎"

# The types on which Weave takes a scorer's fields; on any other it answers 400.
SCORED_TYPES = (AGENT_FEEDBACK, "wandb.agent_monitor", "wandb.runnable.")
ANNOTATION = "wandb.annotation."

# What Weave has of its own types; any other that begins so is reserved.
RESERVED = "wandb."
_OWN_TYPE = re.compile(
    r"wandb\.(reaction\.1|note\.1|agent_user_feedback|agent_monitor|annotation\..+|runnable\..+)", re.DOTALL
)

# Two parts, raw: a URL-encoded project is another project. W&B allows spaces inside a part, but none of /\#?%:.
_PART = r"(?!\s)[^/\\#?%:\x00-\x1f\x7f]+(?<!\s)"
_PROJECT_ID = re.compile(f"{_PART}/{_PART}")

Confidence = Annotated[float, pydantic.Field(ge=0, le=1)]
View = Literal["traces", "agents"]


class WeaveNative(TypedDict, total=False):
    """What `native={"weave": …}` may set: every published field but the ids and the user that W&B fills in."""

    feedback_type: Text
    payload: dict[str, Any]
    creator: Text
    annotation_ref: str
    runnable_ref: str
    call_ref: str
    trigger_ref: str
    queue_id: str
    scorer_tags: list[str]
    scorer_tag_reasons: dict[str, str]
    scorer_tag_confidences: dict[str, Confidence]
    scorer_ratings: dict[str, Confidence]
    scorer_rating_reasons: dict[str, str]
    scorer_rating_confidences: dict[str, Confidence]


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

    native_type = WeaveNative

    def __init__(
        self,
        project_id: str | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        name: str = "weave",
        view: View = "traces",
        thumbs: Sequence[str] = ("rating", "thumb"),
        options: HTTPOptions | None = None,
    ) -> None:
        super().__init__(name=name, base_url=text_or(base_url, "base_url", _base_url()), options=options)
        self._api_key = check_api_key(text_or(api_key, "api_key", env.read(env.WANDB_API_KEY)), env.WANDB_API_KEY)
        self.project_id = check_project_id(text_or(project_id, "project_id", _project_id()))
        check_choice(view, "view", get_args(View))
        self.view: View = view
        self.thumbs = check_names(thumbs, "thumbs")

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
        """The value, the correction, the comment; tags, metadata and time ride on the first of them.

        In the Agents view tags are part of the value, also where there is no other value.
        """
        native = native_fields(record, self.name, WeaveNative)
        kinds = [kind for kind in ("value", "correction", "comment") if getattr(record, kind) is not None]
        if "value" not in kinds and (not kinds or (record.tags and self.view == "agents")):
            kinds.insert(0, "value")
        # Who said it, and in which queue, is true of every row.
        shared = {name: native[name] for name in ("creator", "queue_id") if name in native}
        first, *others = kinds
        return [
            self._part(record, first, native, is_first=True),
            *(self._part(record, kind, shared, is_first=False) for kind in others),
        ]

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """One call a part."""
        return one_by_one(parts, self._deliver)

    def _part(self, record: FeedbackRecord, kind: str, native: Mapping[str, Any], *, is_first: bool) -> Part:
        """Build the body of one feedback row."""
        feedback_type = native.get("feedback_type", self._type(record, kind))
        carries = {kind, "user_id"}
        payload = self._payload(record, kind, feedback_type)
        if is_first:
            payload |= _rest(record)
            carries |= {"tags", "metadata"}
        body: dict[str, Any] = {
            "project_id": self.project_id,
            "weave_ref": weave_ref(self.project_id, record.handle, self.view),
            "feedback_type": feedback_type,
            "payload": {**payload, "recorded_at": iso_utc(record.time_unix_nano)},
            "id": part_id(record.id, kind),
        }
        if record.user_id is not None:
            body["creator"] = record.user_id
        if feedback_type == AGENT_FEEDBACK:
            body |= self._scorer_fields(record)
        body = {**body, **native, "payload": {**body["payload"], **native.get("payload", {})}}
        self._check(body)
        return Part(record=record, kind=kind, body=body, carries=frozenset(carries) & frozenset(record.said))

    def _type(self, record: FeedbackRecord, kind: str) -> str:
        """Choose the feedback type of a part."""
        if kind == "comment":
            return NOTE if len(record.comment or "") <= MAX_NOTE_CHARS else kind
        if kind == "correction":
            return kind
        if self.view == "agents":
            return AGENT_FEEDBACK
        return REACTION if self._is_thumb(record) else record.name

    def _payload(self, record: FeedbackRecord, kind: str, feedback_type: str) -> dict[str, Any]:
        """Write what a part says, in the words of its type."""
        said = getattr(record, kind)
        if said is None:
            return {}
        if feedback_type == NOTE:
            return {"note": said}
        if kind == "value" and self._is_thumb(record) and feedback_type in (REACTION, AGENT_FEEDBACK):
            return {"emoji": _emoji(record)}
        payload = {"value": list(said) if isinstance(said, tuple) else said}
        if kind == "value" and record.scale is not None:
            payload["scale"] = list(record.scale)
        return payload

    def _is_thumb(self, record: FeedbackRecord) -> bool:
        """Tell whether a value is a thumb up or down."""
        return isinstance(record.value, bool) and record.name in self.thumbs

    def _scorer_fields(self, record: FeedbackRecord) -> dict[str, Any]:
        """Write a value for the Agents view, where tags must not be empty."""
        value = record.value
        if self._is_thumb(record):
            tags = [_emoji(record)]
        elif isinstance(value, bool):
            tags = [record.name if value else f"not {record.name}"]
        elif isinstance(value, (int, float)):
            tags = [record.name]
        else:
            tags = [value] if isinstance(value, str) else list(value or ())
        fields: dict[str, Any] = {"scorer_tags": list(dict.fromkeys([*tags, *record.tags]))}
        if not isinstance(value, bool) and record.fraction is not None:
            fields["scorer_ratings"] = {record.name: record.fraction}
        return fields

    def _check(self, body: Mapping[str, Any]) -> None:
        """Refuse what Weave is known to answer 400 to; only `native` can lead to it."""
        feedback_type, payload = body["feedback_type"], body["payload"]
        note = payload.get("note")
        is_note = isinstance(note, str) and 1 <= len(note) <= MAX_NOTE_CHARS
        rules = {
            f"a type that begins with {RESERVED} is one of W&B's own": (
                not feedback_type.startswith(RESERVED) or _OWN_TYPE.fullmatch(feedback_type)
            ),
            "scorer_* fields belong to wandb.agent_user_feedback, wandb.agent_monitor and wandb.runnable.<name>": (
                feedback_type.startswith(SCORED_TYPES) or not any(name.startswith("scorer_") for name in body)
            ),
            f"{AGENT_FEEDBACK} needs scorer_tags": feedback_type != AGENT_FEEDBACK or body.get("scorer_tags"),
            f"{ANNOTATION}<name> needs annotation_ref": (
                not feedback_type.startswith(ANNOTATION) or body.get("annotation_ref")
            ),
            f"{REACTION} needs payload.emoji, one emoji": feedback_type != REACTION or _is_emoji(payload.get("emoji")),
            f"{NOTE} needs payload.note, 1 to {MAX_NOTE_CHARS} characters": feedback_type != NOTE or is_note,
        }
        for rule, is_kept in rules.items():
            if not is_kept:
                raise InvalidFeedbackError(f"native[{self.name!r}]: {rule}", field=f"native.{self.name}")

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create, replace or purge one row."""
        if part.action == "retract":
            response = yield self.request("POST", "/feedback/purge", purge_body(self.project_id, part.id))
            if response.status_code == 404:
                return Success(reason_of(response, "it was not there"))
            return self._judge(response, part)
        if part.action == "replace":
            response = yield self.request("POST", "/feedback/replace", {**part.body, "feedback_id": part.id})
            if response.status_code != 404:
                return self._judge(response, part)
            # Not there after all, or an older server: creating it under the same id comes to the same.
        response = yield self.request("POST", "/feedback/create", part.body)
        return self._judge(response, part)

    def _judge(self, response: httpx.Response, part: Part) -> Result:
        """Read an answer, of an error Weave's own `reason`."""
        return self.result(response, message=self.message(response, "reason", part))


def weave_ref(project_id: str, handle: FeedbackHandle, view: View) -> str:
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
    stripped = project_id.strip()
    if stripped and not _PROJECT_ID.fullmatch(stripped):
        raise ConfigurationError(
            "a Weave project is entity/project: two non-empty parts, not URL-encoded; set WANDB_ENTITY and "
            "WANDB_PROJECT, or give project_id=",
            setting=env.WANDB_PROJECT,
        )
    return stripped


def _rest(record: FeedbackRecord) -> dict[str, Any]:
    """Write what has no field of its own, as far as there is any."""
    rest = {
        "name": record.name,
        "source": record.source,
        "metadata": dict(record.metadata),
        "tags": list(record.tags),
    }
    return {name: value for name, value in rest.items() if value}


def _is_emoji(text: object) -> bool:
    """Tell whether a text can be an emoji at all; which of them are one, Weave knows better."""
    return isinstance(text, str) and text != "" and not text.isascii() and not any(char.isalpha() for char in text)


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
