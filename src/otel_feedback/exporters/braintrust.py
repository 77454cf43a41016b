"""Braintrust: `POST /v1/{experiment|project_logs}/{id}/feedback` and `…/insert`, in batches.

Source: braintrust.dev API reference, "Feedback for experiment events", "Feedback for project logs events" and "Insert
project logs events". For spans that came by OTLP the row's id is the span id, and its `root_span_id` the trace id.
Everything that Braintrust needs to be told lives here; this file does no I/O.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._dialects import BRAINTRUST_PARENT, BRAINTRUST_ROW
from otel_feedback._record import FeedbackRecord, Part, part_id
from otel_feedback._retry import HOUR_MILLIS
from otel_feedback._time import NANOS_PER_MILLI, iso_utc
from otel_feedback.exceptions import ConfigurationError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
)
from otel_feedback.exporters._braintrust_rows import RowCheck, question_of, rows_of
from otel_feedback.exporters._checks import (
    Text,
    check_api_key,
    check_bool,
    check_choice,
    check_millis,
    native_fields,
    require_api_key,
    text_or,
)
from otel_feedback.exporters._http import Exchange, HTTPFeedbackExporter, HTTPOptions, NoAnswer, json_of, not_tried

if TYPE_CHECKING:
    import httpx

    from otel_feedback._handle import FeedbackHandle

# The real limit is not documented; these are safe. The bytes are those of the whole body.
MAX_BATCH_ITEMS = 100
MAX_BATCH_BYTES = 1_000_000

# The name under which Braintrust has what a kind of parent is, in its paths and in its query language.
TABLES: Mapping[str, str] = {"experiment_id": "experiment", "project_id": "project_logs"}

# A project's name is looked up once; so many are remembered.
MAX_PROJECTS = 1_000
# What a span alone is wrong about, as a project that is not there yet, may be mended so long; then it is a dead letter.
GRACE_MILLIS = 6 * HOUR_MILLIS

# Braintrust's words for who said it; `app` is for its own UI.
SOURCES: Mapping[str, str] = {"human": "external", "llm": "api", "code": "api"}

# What each kind of item answers for; the label of a judgement is in its metadata.
CARRIES: Mapping[str, frozenset[str]] = {
    "value": frozenset({"value", "correction", "user_id"}),
    "comment": frozenset({"comment", "user_id"}),
    "tags": frozenset({"tags", "user_id"}),
}

# What an answer says that is about the experiment or project in the path, and no item.
NO_PLACE = re.compile(rb"does not exist|object not found", re.IGNORECASE)
HINTS: Mapping[int, str] = {
    400: "an item that Braintrust cannot read, or an experiment or project that this key cannot see",
    401: "the key is not valid",
    403: "the key may not write there",
    404: "is the base URL right?",
    421: "this organization's data is on another data plane; set BRAINTRUST_API_URL",
}


PLACE_HINT = "the experiment or project does not exist, or this key cannot see it"

LabelPlace = Literal["tags"] | Mapping[str, float]
CommentPolicy = Literal["at_least_once", "at_most_once"]
TagRow = Literal["root", "span"]
ScoreRow = Literal["span", "child"]


class BraintrustNative(TypedDict, total=False):
    """What `native={"braintrust": …}` may set: every published field but the row's id."""

    scores: dict[str, Annotated[float, pydantic.Field(ge=0, le=1)] | None]
    expected: Any
    comment: Text
    metadata: dict[str, Any]
    source: Literal["app", "api", "external"]
    tags: list[Text]


class BraintrustExporter(HTTPFeedbackExporter):
    """Sends judgements to Braintrust, onto the span's own row.

    Args:
        parent: where the spans are: `project_name:…`, `project_id:…` or `experiment_id:…`; by default
            `BRAINTRUST_PARENT`. A span's own attribute `braintrust.parent` wins.

        api_key: by default `BRAINTRUST_API_KEY`.

        base_url: by default `BRAINTRUST_API_URL`, else `https://api.braintrust.dev`.

        name: how users route to it.

        hold_millis: how long after the span's end feedback waits, since the span may still overwrite it; by default
            `OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS`, else a minute.

        comments: a comment that may have arrived is sent again (`at_least_once`) or not (`at_most_once`); Braintrust
            shows each one that it gets.

        tags_on: tags go to the `root` row of the trace, which the list of traces filters by, or to the `span`.

        per_rater: a row has one score of a name for all who judge it: on the `span`'s row the last one counts. With
            `child` each judgement's score and correction are a row of their own below the span's, so that everybody's
            stand side by side, and one that is taken back is gone.

        check_rows: ask first whether the span's row is there, since feedback on any other row answers 200 and makes a
            stray one. Braintrust allows about 20 questions a minute: only for few judgements. A row that is still not
            there after six hours makes a dead letter.

        labels: where the labels of a name go besides the audit log: `"tags"`, or a table from each label to a score
            between 0 and 1, as in `{"tone": {"warm": 1, "cold": 0}, "topic": "tags"}`. Several labels at once have no
            one score.

        options: timeouts and transport.
    """

    native_type = BraintrustNative

    def __init__(
        self,
        parent: str | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        name: str = "braintrust",
        hold_millis: int | None = None,
        comments: CommentPolicy = "at_least_once",
        tags_on: TagRow = "root",
        per_rater: ScoreRow = "span",
        check_rows: bool = False,
        labels: Mapping[str, LabelPlace] = MappingProxyType({}),
        options: HTTPOptions | None = None,
    ) -> None:
        base_url = text_or(base_url, "base_url", env.read(env.BRAINTRUST_API_URL))
        super().__init__(name=name, base_url=base_url, options=options)
        api_key = text_or(api_key, "api_key", env.read(env.BRAINTRUST_API_KEY))
        self._api_key = check_api_key(api_key, env.BRAINTRUST_API_KEY)
        self.parent = check_parent(text_or(parent, "parent", env.read(env.BRAINTRUST_PARENT)))
        self.hold_millis = _hold_millis(hold_millis)
        check_choice(comments, "comments", get_args(CommentPolicy))
        check_choice(tags_on, "tags_on", get_args(TagRow))
        self.comments = comments
        check_choice(per_rater, "per_rater", get_args(ScoreRow))
        check_bool(check_rows, "check_rows")
        self.tags_on = tags_on
        self.per_rater = per_rater
        self.check_rows = check_rows
        self.labels = _check_labels(labels)
        # On a row of its own no score, and no expected output, overwrites another.
        self.orders_by_call = per_rater == "span"
        self._project_ids: dict[str, str] = {}
        self._rows = RowCheck(self._options.clock)

    @property
    def headers(self) -> Mapping[str, str]:
        """Bearer authorization."""
        return {"authorization": f"Bearer {self._api_key}"}

    @property
    def span_attributes(self) -> Mapping[str, str]:
        """The parent, so that Braintrust's own filtering processor keeps our spans."""
        return {BRAINTRUST_PARENT: self.parent} if self.parent else {}

    def check_place(self) -> None:
        """Refuse to send without a parent."""
        if not self.parent:
            raise ConfigurationError(
                "Braintrust needs a parent: set BRAINTRUST_PARENT or give parent=, as in 'project_name:chat'",
                setting=env.BRAINTRUST_PARENT,
            )

    def start(self) -> None:
        """Refuse to start without a key or a parent."""
        require_api_key(self._api_key, self.name, env.BRAINTRUST_API_KEY)
        self.check_place()
        super().start()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """The value with the correction, the comment, and the tags: each an item of its own.

        A comment has its own because it alone may not be repeated; tags, because they go to another row.
        """
        native = native_fields(record, self.name, BraintrustNative)
        found: dict[str, dict[str, Any]] = {}
        value = _value_item(record, native, self._score_of(record))
        if value or record.value is not None:
            found["value"] = value
        if comment := native.get("comment", record.comment):
            found["comment"] = {"comment": comment}
        if tags := (*native.get("tags", record.tags), *self._labels_as_tags(record)):
            found["tags"] = {"tags": list(dict.fromkeys(tags))}
        first = next(iter(found), None)
        return [self._part(record, kind, said, native, is_first=kind == first) for kind, said in found.items()]

    def _score_of(self, record: FeedbackRecord) -> float | None:
        """Find a value's score: its place on the scale, or what the table says of a label."""
        table = self.labels.get(record.name)
        if isinstance(record.value, str) and isinstance(table, Mapping):
            return table.get(record.value)
        return record.fraction

    def _length_of(self, part: Part) -> int:
        """Measure what an item adds to a request's body."""
        return len(pydantic_core.to_json(_item(part, self._score_of))) + len(",")

    def _labels_as_tags(self, record: FeedbackRecord) -> tuple[str, ...]:
        """Answer the labels that go among the tags."""
        if self.labels.get(record.name) != "tags":
            return ()
        return record.value if isinstance(record.value, tuple) else (str(record.value),)

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """Send what goes to one place together; no row twice in one request, and in order."""
        numbered = list(enumerate(parts))
        results: dict[int, Result] = {
            number: Skipped(f"Braintrust cannot take back {part.kind}")
            for number, part in numbered
            if part.action == "retract" and "scores" not in part.body and not _is_row(part)
        }
        if self.comments == "at_most_once":
            results |= {
                number: PermanentFailure("it may have arrived, and comments are sent at most once")
                for number, part in numbered
                if part.kind == "comment" and part.may_have_arrived and part.action != "retract"
            }
        failed: dict[tuple[str, str | None], Result] = {}
        for batch in _batches([(number, part) for number, part in numbered if number not in results], self._length_of):
            # A row's later feedback must not overtake what failed.
            behind = {number: before for number, part in batch if (before := _before(part, failed)) is not None}
            results.update({number: not_tried(before) for number, before in behind.items()})
            sent = [(number, part) for number, part in batch if number not in behind]
            if not sent:
                continue
            answered = yield from self._send_batch(sent)
            results.update(answered)
            for number, part in sent:
                if isinstance(answered[number], (RetryableFailure, Unclear, PauseDestination)):
                    failed[part.route, _row_that_waits(answered[number], part)] = answered[number]
        return [results[number] for number, _ in numbered]

    def _part(
        self, record: FeedbackRecord, kind: str, said: Mapping[str, Any], native: Mapping[str, Any], *, is_first: bool
    ) -> Part:
        """Build an item: the row, what is said, and where it comes from."""
        handle = record.handle
        ended = handle.ended_at if handle.ended_at is not None else record.recorded_at_unix_nano
        source = native.get("source", SOURCES[record.source])
        metadata = {**native.get("metadata", {}), **_metadata(record)}
        is_row = kind == "value" and self.per_rater == "child"
        if is_row:
            item = {**_child_row(record), **said, "metadata": {**metadata, "source": source}}
        else:
            item = {"id": self._row_of(handle, kind), "source": source, **said, "metadata": metadata}
        # Every item has the metadata. Only the first one answers for it: other metadata is no reason to send a comment
        # again.
        carries = CARRIES[kind] | ({"metadata"} if is_first else frozenset())
        return Part(
            record=record,
            kind=kind,
            body=item,
            route=handle.attributes.get(BRAINTRUST_PARENT) or self.parent,
            carries=carries & frozenset(record.said),
            # A row of ours is overwritten by no span.
            not_before_unix_nano=0 if is_row else ended + self.hold_millis * NANOS_PER_MILLI,
        )

    def _row_of(self, handle: FeedbackHandle, kind: str) -> str:
        """Name the row: a span's own, for tags the root's; what Braintrust's SDK wrote has ids of its own."""
        if row := handle.attributes.get(BRAINTRUST_ROW):
            return row
        return handle.root_span_id if kind == "tags" and self.tags_on == "root" else handle.span_id

    def _send_batch(self, batch: Sequence[tuple[int, Part]]) -> Exchange[dict[int, Result]]:
        """Send items of one place in one request; of a refused one the halves, so that one bad item sinks no other."""
        route = batch[0][1].route
        unseen: dict[int, Result] = {}
        try:
            place = yield from self._place_of(route)
            if not isinstance(place, _Place):
                return dict.fromkeys((number for number, _ in batch), place)
            if self.check_rows:
                unseen = yield from self._unseen(batch, place)
                batch = [(number, part) for number, part in batch if number not in unseen]
                if not batch:
                    return unseen
            items = [_item(part, self._score_of) for _, part in batch]
            verb, name = ("insert", "events") if _is_row(batch[0][1]) else ("feedback", "feedback")
            response = yield self.request("POST", f"/v1/{place.table}/{place.id}/{verb}", {name: items})
        except NoAnswer as silence:
            return unseen | {number: self._with_policy(part, silence.result) for number, part in batch}
        result = self._judge(response, route, sent=items)
        if response.status_code in (400, 413, 422) and len(batch) > 1 and isinstance(result, PermanentFailure):
            middle = len(batch) // 2
            first = yield from self._send_batch(batch[:middle])
            return unseen | first | (yield from self._send_batch(batch[middle:]))
        return unseen | {number: self._with_policy(part, result) for number, part in batch}

    def _unseen(self, batch: Sequence[tuple[int, Part]], place: _Place) -> Exchange[dict[int, Result]]:
        """Ask for the rows that are not known to be there; answer for those that are not, or are not asked for yet."""
        results: dict[int, Result] = {}
        for number, part in batch:
            row = part.body["span_parents"][0] if _is_row(part) else part.body["id"]
            question = question_of(place.table, place.id, row, part.record.handle)
            if question is None or self._rows.is_seen(question):
                continue
            if wait_millis := self._rows.wait_millis():
                reason = "its row has not been looked for yet: Braintrust allows about 20 questions a minute"
                results[number] = RetryableFailure(reason, wait_millis, is_tried=False)
                continue
            try:
                response = yield self.look_up("POST", "/btql", {"query": question, "fmt": "json"})
            except NoAnswer as silence:
                results[number] = _look_up_failed("row", silence.result)
                continue
            rows = rows_of(json_of(response)) if response.is_success else None
            if rows:
                self._rows.see(question)
            elif rows is not None:
                reason = "Braintrust has no row of this span: was it filtered, or sent elsewhere?"
                results[number] = RetryableFailure(reason, give_up_after_millis=GRACE_MILLIS)
            else:
                results[number] = self._look_up_refused("row", response, part.route)
        return results

    def _place_of(self, route: str) -> Exchange[_Place | Result]:
        """Find where a parent's feedback goes; a project's name is looked up once."""
        kind, _, place = route.partition(":")
        if kind in TABLES and _is_uuid(place):
            return _Place(TABLES[kind], place)
        if kind != "project_name" or not place:
            return PermanentFailure(
                "the span's braintrust.parent is not of the form project_name:…, project_id:<uuid> or "
                "experiment_id:<uuid>"
            )
        known = self._project_ids.get(place)
        if known is None:
            found = yield from self._look_up_project(place, route)
            if not isinstance(found, str):
                return found
            if len(self._project_ids) >= MAX_PROJECTS:
                self._project_ids = {}
            known = self._project_ids[place] = found
        return _Place(TABLES["project_id"], known)

    def _look_up_project(self, name: str, route: str) -> Exchange[str | Result]:
        """Ask for a project's id by its name; no feedback is on its way before that is known."""
        try:
            response = yield self.look_up("GET", "/v1/project", project_name=name)
        except NoAnswer as silence:
            return _look_up_failed("project's id", silence.result)
        projects = _projects_of(json_of(response)) if response.is_success else None
        if projects is None:
            return self._look_up_refused("project's id", response, route)
        for project in projects:
            if isinstance(project, dict) and project.get("name") == name and _is_uuid(str(project.get("id"))):
                return str(project["id"])
        unknown = PauseDestination("Braintrust knows no project of the parent's name; it appears with its first span")
        return self._of_the_span(unknown, route)

    def _look_up_refused(self, what: str, response: httpx.Response, route: str) -> Result:
        """Read an answer to a question that answers nothing; no item is to blame for it."""
        result = self._judge(response, route)
        if isinstance(result, Success):
            return _look_up_failed(what, Unclear(f"{result.reason}, unreadable"))
        if isinstance(result, PermanentFailure):
            return self._of_the_span(PauseDestination(result.reason), route)
        return _look_up_failed(what, result)

    def _judge(self, response: httpx.Response, route: str, *, sent: object = None) -> Result:
        """Read an answer. Its text says what is wrong and is never told: it has an e-mail address."""
        status = response.status_code
        is_no_place = status == 400 and _says_no_place(response.content, sent)
        hint = PLACE_HINT if is_no_place else HINTS.get(status, "")
        result = self.result(response, hint)
        if not is_no_place and status != 403:
            return result
        # The project may have been made anew.
        self._project_ids.pop(route.partition(":")[2], None)
        return self._of_the_span(PauseDestination(result.reason), route)

    def _of_the_span(self, pause: PauseDestination, route: str) -> Result:
        """Let what is wrong with a place that a span names itself concern only the feedback on that span."""
        if route == self.parent:
            return pause
        return RetryableFailure(f"{pause.reason}; it is the span's own parent", give_up_after_millis=GRACE_MILLIS)

    def _with_policy(self, part: Part, result: Result) -> Result:
        """Apply what a part may not suffer: a comment that may have arrived, and what a retraction cannot promise."""
        if part.action == "retract" and isinstance(result, Success) and not _is_row(part):
            rest = "" if "expected" not in part.body else "; a correction cannot be taken back"
            return Success(
                f"{result.reason}; requested: what Braintrust does with a null score is not documented{rest}"
            )
        if part.kind == "comment" and isinstance(result, Unclear) and self.comments == "at_most_once":
            reason = f"{result.reason}; it may have arrived, and comments are sent at most once"
            return PermanentFailure(reason, may_have_arrived=True)
        return result


def check_parent(parent: str) -> str:
    """Check a configured parent; an empty one is none.

    Raises:
        ConfigurationError: when it has none of the three forms.
    """
    stripped = parent.strip()
    kind, _, place = stripped.partition(":")
    if stripped and not (kind == "project_name" and place.strip()) and not (kind in TABLES and _is_uuid(place)):
        raise ConfigurationError(
            "a Braintrust parent is project_name:<name>, project_id:<uuid> or experiment_id:<uuid>; set "
            "BRAINTRUST_PARENT, or give parent=",
            setting=env.BRAINTRUST_PARENT,
        )
    return stripped


def _hold_millis(given: int | None) -> int:
    """Take the hold that was given, or the environment's."""
    variable = env.OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS
    if given is None:
        text = env.read(variable)
        millis = int(text) if text.isascii() and text.isdigit() else -1
        check_millis(millis, variable)
        return millis
    check_millis(given, "hold_millis")
    return given


def _check_labels(labels: Mapping[str, LabelPlace]) -> Mapping[str, LabelPlace]:
    """Refuse a place for labels that Braintrust does not have."""
    if not isinstance(labels, Mapping):
        raise ConfigurationError("labels must be a table from names to places", setting="labels")
    for name, place in labels.items():
        if place != "tags" and not _is_score_table(place):
            raise ConfigurationError(
                f"labels[{name!r}] must be 'tags' or a table from labels to scores between 0 and 1", setting="labels"
            )
    return MappingProxyType(dict(labels))


def _is_score_table(place: object) -> bool:
    """Tell whether a place is a table from labels to scores; a boolean is no score."""
    return isinstance(place, Mapping) and all(
        isinstance(label, str) and isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1
        for label, score in place.items()
    )


def _value_item(record: FeedbackRecord, native: Mapping[str, Any], score: float | None) -> dict[str, Any]:
    """Write what may be repeated: the score and the expected output."""
    item: dict[str, Any] = {}
    scores = {} if score is None else {record.name: score}
    if scores := {**scores, **native.get("scores", {})}:
        item["scores"] = scores
    expected = native.get("expected", record.correction)
    if expected is not None:
        item["expected"] = expected
    return item


def _metadata(record: FeedbackRecord) -> dict[str, Any]:
    """Build what goes into the audit log: the application's own, the labels, then what we know, which wins."""
    found = dict(record.metadata)
    if isinstance(record.value, (str, tuple)):
        found[record.name] = list(record.value) if isinstance(record.value, tuple) else record.value
    found |= {"feedback_id": record.id, "recorded_at": iso_utc(record.time_unix_nano)}
    if record.user_id is not None:
        found["user_id"] = record.user_id
    return found


def _child_row(record: FeedbackRecord) -> dict[str, Any]:
    """Place a row of its own below the span's: the same one whenever the judgement is sent."""
    row = part_id(record.id, "value")
    return {
        "id": row,
        "span_id": row,
        "root_span_id": record.handle.trace_id,
        "span_parents": [record.handle.span_id],
        "created": iso_utc(record.time_unix_nano),
        "span_attributes": {"name": record.name, "type": "review"},
    }


def _is_row(part: Part) -> bool:
    """Tell whether a part is a row of its own, and no feedback on one."""
    return "span_parents" in part.body


def _item(part: Part, score_of: Callable[[FeedbackRecord], float | None]) -> Mapping[str, Any]:
    """Write the item for what is asked; a score is taken back by another person's in its place, or by none."""
    if _is_row(part) and part.action == "retract":
        return {"id": part.body["id"], "_object_delete": True}
    if part.action == "create" or _is_row(part):
        return part.body
    if part.action == "replace":
        gone = dict.fromkeys(part.replaces.body.get("scores", ()) if part.replaces is not None else ())
        scores = {**gone, **part.body.get("scores", {})}
        return {**part.body, "scores": scores} if scores else part.body
    stands = part.record.stands
    scores = dict.fromkeys(part.body["scores"])
    if part.record.name in scores and stands is not None:
        scores[part.record.name] = score_of(stands)
    return {
        "id": part.body["id"],
        "scores": scores,
        "metadata": {"feedback_id": part.record.id, "retracted": True},
        "source": part.body["source"],
    }


def _before(part: Part, failed: Mapping[tuple[str, str | None], Result]) -> Result | None:
    """Find what failed before, of the part's place or of its row."""
    return failed.get((part.route, None)) or failed.get((part.route, part.body["id"]))


def _row_that_waits(result: Result, part: Part) -> str | None:
    """Name the row whose later feedback waits for a failure: its own is its row's, any other is every row's, `None`."""
    is_its_own = getattr(result, "give_up_after_millis", None) is not None
    return str(part.body["id"]) if is_its_own else None


def _says_no_place(answer: bytes, sent: object) -> bool:
    """Tell whether an answer says that there is no such place; not where it may only quote what was sent."""
    return bool(NO_PLACE.search(answer)) and not NO_PLACE.search(pydantic_core.to_json(sent))


def _look_up_failed(what: str, result: Result) -> Result:
    """Say that nothing was sent, because a question before it had no answer; a pause stays one."""
    if isinstance(result, PauseDestination):
        return result
    wait_millis = getattr(result, "retry_after_millis", None)
    give_up_millis = getattr(result, "give_up_after_millis", None)
    is_tried = getattr(result, "is_tried", True)
    return RetryableFailure(
        f"the {what} could not be looked up: {result.reason}", wait_millis, give_up_millis, is_tried=is_tried
    )


def _projects_of(answer: Any) -> list[Any] | None:
    """Read the projects in the answer to a look-up, whatever that may be."""
    projects = answer.get("objects") if isinstance(answer, dict) else None
    return projects if isinstance(projects, list) else None


class _Place(NamedTuple):
    """An experiment, or a project's logs: Braintrust's name for which, and its id."""

    table: str
    id: str


@dataclass(slots=True)
class _Batch:
    """One request: numbered parts for one place, and how long its body will be."""

    parts: list[tuple[int, Part]] = field(default_factory=list)
    size: int = len('{"feedback":[]}')

    def has_room(self, length: int) -> bool:
        """Tell whether another item may go with the others; alone, any item may go."""
        return len(self.parts) < MAX_BATCH_ITEMS and self.size + length <= MAX_BATCH_BYTES


def _batches(numbered: Sequence[tuple[int, Part]], length_of: Callable[[Part], int]) -> list[list[tuple[int, Part]]]:
    """Cut parts into requests: one place each, within the limits, and of each row one part a request, in order."""
    by_route: dict[tuple[str, bool], list[_Batch]] = {}
    last_of_row: dict[tuple[str, str], int] = {}
    for number, part in numbered:
        batches = by_route.setdefault((part.route, _is_row(part)), [])
        row = (part.route, part.body["id"])
        length = length_of(part)
        at = last_of_row.get(row, -1) + 1
        while at < len(batches) and not batches[at].has_room(length):
            at += 1
        if at == len(batches):
            batches.append(_Batch())
        batches[at].parts.append((number, part))
        batches[at].size += length
        last_of_row[row] = at
    return [batch.parts for batches in by_route.values() for batch in batches]


def _is_uuid(text: str) -> bool:
    """Tell whether a text is a UUID in its usual form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
