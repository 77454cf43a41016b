"""W&B Weave: `POST /feedback/create`, `/feedback/batch/create`, `/feedback/replace`, `/feedback/purge`.

Source: docs.wandb.ai, Weave service API. Everything that Weave needs to be told lives here, and what it takes in
`_weave_rules`; this file does no I/O.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._dialects import CONVERSATION_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord, Part, part_id
from otel_feedback._time import NANOS_PER_MILLI, iso_utc
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, PermanentFailure, Result, Success
from otel_feedback.exporters._checks import (
    Text,
    check_api_key,
    check_choice,
    check_names,
    native_fields,
    require_api_key,
    text_or,
)
from otel_feedback.exporters._http import (
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    NoAnswer,
    json_of,
    not_tried,
    reason_of,
)
from otel_feedback.exporters._weave_rules import (
    AGENT_FEEDBACK,
    ANNOTATION,
    MAX_NOTE_CHARS,
    NOTE,
    REACTION,
    REF_KINDS,
    RUNNABLE,
    Level,
    View,
    broken_rules,
    check_annotations,
    check_project_id,
    check_size,
    ref_name,
    weave_ref,
)

if TYPE_CHECKING:
    import httpx

CREATE, BATCH, REPLACE, PURGE = "/feedback/create", "/feedback/batch/create", "/feedback/replace", "/feedback/purge"

# A request's body.
MAX_BODY_BYTES = 32 * 1024 * 1024
# As many as Weave's own client sends at once (its DEFAULT_MAX_BATCH_SIZE).
MAX_BATCH_ITEMS = 100
# A server that has no batches is asked for one again after this: it may have been replaced by a newer one.
NO_BATCH_MILLIS = 3_600_000

THUMB_UP, THUMB_DOWN = "👍", "👎"

# What a server without batches answers to them.
NO_BATCHES = frozenset({404, 405})

Confidence = Annotated[float, pydantic.Field(ge=0, le=1)]


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
            `/agents/otel/v1/traces`. There Weave shows comments and corrections in the chat; its list of conversations
            is marked with values and tags only.

        level: what a judgement is put on: the `span`, its `trace` (in the Traces view the outermost call, in the
            Agents view the turn), or its `conversation` (Agents view only). Where the conversation's id is not known
            it is put on the trace, and the payload says `"level": "trace"`.

        thumbs: the undeclared names whose booleans are a thumb up or down.

        annotations: the names whose values are annotations of Weave's, each with the reference to its annotation spec,
            as in `{"helpful": "weave:///acme/chat/object/helpfulness:digest"}`. Traces view only. The server holds the
            value against the spec.

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
        level: Level = "span",
        thumbs: Sequence[str] = ("rating", "thumb"),
        annotations: Mapping[str, str] = MappingProxyType({}),
        options: HTTPOptions | None = None,
    ) -> None:
        super().__init__(name=name, base_url=text_or(base_url, "base_url", _base_url()), options=options)
        self._api_key = check_api_key(text_or(api_key, "api_key", env.read(env.WANDB_API_KEY)), env.WANDB_API_KEY)
        self.project_id = check_project_id(text_or(project_id, "project_id", _project_id()))
        check_choice(view, "view", get_args(View))
        check_choice(level, "level", [each for its_view, each in REF_KINDS if its_view == view])
        self.view: View = view
        self.level: Level = level
        self.thumbs = check_names(thumbs, "thumbs")
        self.annotations = check_annotations(annotations, view=view, project_id=self.project_id)
        self._single_until_nano = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """Basic authorization: the user is always `api`."""
        return {"authorization": "Basic " + base64.b64encode(f"api:{self._api_key}".encode()).decode()}

    def check_place(self) -> None:
        """Refuse to send without a project."""
        if not self.project_id:
            raise ConfigurationError(
                "Weave needs a project: set WANDB_ENTITY and WANDB_PROJECT or give project_id='entity/project'",
                setting=env.WANDB_PROJECT,
            )

    def start(self) -> None:
        """Refuse to start without a key or a project."""
        require_api_key(self._api_key, self.name, env.WANDB_API_KEY)
        self.check_place()
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
        """Create many with one request, replace and purge one by one, in order; stop where the destination does.

        Of a batch that is refused the halves are sent, since the server takes all of it or nothing; where it has no
        batches, each part by itself.
        """
        results: list[Result] = []
        waiting = deque(self._requests(parts))
        lacks_batches = False
        while waiting:
            batch = waiting.popleft()
            try:
                if len(batch) == 1:
                    answered = [(yield from self._deliver(batch[0]))]
                elif lacks_batches:
                    waiting.extendleft([part] for part in reversed(batch))
                    continue
                else:
                    response = yield self.request("POST", BATCH, {"batch": [part.body for part in batch]})
                    # Of no text can it be told whom it quotes.
                    answered = [self.result(response)] * len(batch)
                    if response.status_code in NO_BATCHES:
                        lacks_batches = True
                    if smaller := _smaller(batch, response.status_code, answered[0]):
                        waiting.extendleft(reversed(smaller))
                        continue
            except NoAnswer as silence:
                results += [silence.result] * len(batch)
                break
            results += answered
            if _stops(answered[-1]):
                break
            if lacks_batches:
                # Only now is it known that the server has this project, and no batches.
                self._single_until_nano = self._now_nano + NO_BATCH_MILLIS * NANOS_PER_MILLI
        return results + [not_tried(results[-1])] * (len(parts) - len(results)) if results else []

    @property
    def _now_nano(self) -> int:
        return self._options.clock.monotonic_nano()

    def _requests(self, parts: Sequence[Part]) -> Iterator[list[Part]]:
        """Cut parts into requests: what is created goes in batches.

        Not so what may have arrived: if the server fails at it, it does not sink the others for ever.
        """
        is_single = self._now_nano < self._single_until_nano
        for may_be_many, run in groupby(parts, lambda part: part.action == "create" and not part.may_have_arrived):
            limit = MAX_BATCH_ITEMS if may_be_many and not is_single else 1
            yield from _batches(run, limit)

    def _part(self, record: FeedbackRecord, kind: str, native: Mapping[str, Any], *, is_first: bool) -> Part:
        """Build the body of one feedback row."""
        feedback_type = native.get("feedback_type", self._type(record, kind))
        carries = {kind, "user_id"}
        payload = self._payload(record, kind, feedback_type)
        if is_first:
            payload |= _rest(record)
            carries |= {"tags", "metadata"}
        level, target = self._target(record.handle)
        if level != self.level:
            payload["level"] = level
        body: dict[str, Any] = {
            "project_id": self.project_id,
            # A process that only records may know no project; what is sent is written where it is delivered.
            "weave_ref": self.project_id and weave_ref(self.project_id, REF_KINDS[self.view, level], target),
            "feedback_type": feedback_type,
            "payload": {**payload, "recorded_at": iso_utc(record.time_unix_nano)},
            "id": part_id(record.id, kind),
        }
        if record.user_id is not None:
            body["creator"] = record.user_id
        if feedback_type == AGENT_FEEDBACK:
            body |= self._scorer_fields(record)
        if feedback_type == self._annotation_type(record.name):
            body["annotation_ref"] = self.annotations[record.name]
        body = {**body, **native, "payload": {**body["payload"], **native.get("payload", {})}}
        broken = next(broken_rules(body), None)
        if broken is not None:
            raise InvalidFeedbackError(f"native[{self.name!r}]: {broken}", field=f"native.{self.name}")
        check_size(body, kind)
        return Part(record=record, kind=kind, body=body, carries=frozenset(carries) & frozenset(record.said))

    def _target(self, handle: FeedbackHandle) -> tuple[Level, str]:
        """Say what a judgement is put on; where no conversation is known, on the trace."""
        conversation = handle.attributes.get(CONVERSATION_ID, "")
        if self.level == "conversation" and conversation.strip():
            return "conversation", conversation
        if self.level == "span":
            return "span", handle.span_id
        return "trace", handle.root_span_id if self.view == "traces" else handle.trace_id

    def _annotation_type(self, name: str) -> str | None:
        """Name the type of an annotation, which has to end as its spec is called."""
        return ANNOTATION + ref_name(self.annotations[name]) if name in self.annotations else None

    def _type(self, record: FeedbackRecord, kind: str) -> str:
        """Choose the feedback type of a part."""
        if kind == "comment":
            return NOTE if len(record.comment or "") <= MAX_NOTE_CHARS else kind
        if kind == "correction":
            return kind
        if self.view == "agents":
            return AGENT_FEEDBACK
        annotation = self._annotation_type(record.name)
        if annotation is not None and record.value is not None:
            return annotation
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
        # A runnable's payload is what it put out.
        name = "output" if feedback_type.startswith(RUNNABLE) else "value"
        payload = {name: list(said) if isinstance(said, tuple) else said}
        if kind == "value" and record.scale is not None:
            payload["scale"] = list(record.scale)
        return payload

    def _is_thumb(self, record: FeedbackRecord) -> bool:
        """Tell whether a value is a thumb up or down."""
        return record.is_thumb_under(self.thumbs)

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

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create, replace or purge one row."""
        if part.action == "retract":
            response = yield self.request("POST", PURGE, purge_body(self.project_id, part.id))
            if response.status_code == 404 and _is_of_the_row(response):
                return Success(reason_of(response, "it was not there"))
            return self._judge(response, part)
        if part.action == "replace":
            response = yield self.request("POST", REPLACE, {**part.body, "feedback_id": part.id})
            if response.status_code != 404:
                return self._judge(response, part)
            # An older server, which has nothing to replace with: the same in two steps, so that one row is left.
            response = yield self.request("POST", PURGE, purge_body(self.project_id, part.id))
            purged = self._judge(response, part)
            if response.status_code != 404 and not isinstance(purged, Success):
                return purged
        response = yield self.request("POST", CREATE, part.body)
        return self._judge(response, part)

    def _judge(self, response: httpx.Response, part: Part) -> Result:
        """Read an answer, of an error Weave's own `reason`."""
        return self.result(response, message=self.message(response, "reason", part))


# --- requests ----------------------------------------------------------------------------------------------------


def _batches(parts: Iterable[Part], limit: int) -> Iterator[list[Part]]:
    """Cut parts into batches of so many at the most, no larger than a body may be, in order, no id twice in one."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        length = len(pydantic_core.to_json(part.body)) + len(",")
        is_full = len(batch) == limit or size + length > MAX_BODY_BYTES
        if batch and (is_full or any(part.id == other.id for other in batch)):
            yield batch
            batch = []
        size = length + (size if batch else len('{"batch":[]}'))
        batch.append(part)
    yield batch


def _smaller(batch: list[Part], status: int, result: Result) -> list[list[Part]]:
    """Answer what to send instead of a batch: nothing, the halves of a refused one, or each by itself."""
    if status in NO_BATCHES:
        return [[part] for part in batch]
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if isinstance(result, PermanentFailure) else []


def _stops(result: Result) -> bool:
    """Tell whether nothing more is sent after this: the destination asks for a pause."""
    return isinstance(result, PauseDestination) or getattr(result, "retry_after_millis", None) is not None


def _is_of_the_row(response: httpx.Response) -> bool:
    """Tell whether a 404 is about a row; a page, or FastAPI's own words, say that the address is wrong."""
    answer = json_of(response)
    return isinstance(answer, dict) and answer.get("detail") != "Not Found"


def purge_body(project_id: str, feedback_id: str) -> dict[str, Any]:
    """Build the request that removes one row by its id, in Weave's query language."""
    is_it = {"$eq": [{"$getField": "id"}, {"$literal": feedback_id}]}
    return {"project_id": project_id, "query": {"$expr": is_it}}


def _rest(record: FeedbackRecord) -> dict[str, Any]:
    """Write what has no field of its own, as far as there is any."""
    rest = {
        "name": record.name,
        "source": record.source,
        "metadata": dict(record.metadata),
        "tags": list(record.tags),
    }
    return {name: value for name, value in rest.items() if value}


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
