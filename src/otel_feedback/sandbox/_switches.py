"""Every answer that nobody has documented, as a switch: VENDORS' unknowns, both ways.

The defaults are the mild answers, so that a first try succeeds; tests turn the harsh ones on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """How the three vendors behave where their documents are silent."""

    refused_api_key: str | None = None
    """The one key that every vendor answers 401 to (VENDORS: what concerns the destination)."""

    orq_properties: tuple[str, ...] = ()
    """Keys defined in the workspace besides orq's own; any other answers 404 (VENDORS, orq, properties)."""

    orq_repeated_id: Literal["upsert", "ignore", "duplicate", "conflict"] = "upsert"
    """A repeated id replaces, changes nothing, adds a second one, or answers 409 (VENDORS, orq, id)."""

    orq_missing_trace: Literal["accept", "refuse"] = "accept"
    """A trace that has not arrived: taken and joined later, or 404 (VENDORS, orq, answers)."""

    orq_malformed_id: Literal["accept", "refuse"] = "accept"
    """An id that is no ULID in capitals: taken and flagged, or 400 (VENDORS, orq, id)."""

    orq_remove_unknown: Literal["accept", "refuse"] = "accept"
    """Removing what is not there: 200, or 404 (VENDORS, orq, undo)."""

    orq_annotation_repeat: Literal["upsert", "append"] = "upsert"
    """A span's second annotation under one key replaces, or stands beside (VENDORS, orq, newer API)."""

    orq_annotations: bool = True
    """Whether the newer annotations API is there at all, or answers 404 (VENDORS, orq, newer API)."""

    braintrust_projects: tuple[str, ...] = ("sandbox",)
    """Projects that exist from the start; a span's `project_name:` parent creates further ones."""

    braintrust_unknown_object: Literal["accept", "refuse"] = "accept"
    """An object nobody sent spans to: taken, or 400 with an address (VENDORS, Braintrust, answers)."""

    braintrust_null_score: Literal["delete", "keep", "ignore"] = "delete"
    """What a null score does to the row's score (VENDORS, Braintrust, item)."""

    braintrust_early_feedback: Literal["merge", "overwrite"] = "merge"
    """An arriving span keeps or overwrites what its row was given (VENDORS, Braintrust, too early)."""

    braintrust_child_tags: Literal["accept", "refuse"] = "accept"
    """Tags on a row that is no root: taken, or 400 as older planes do (VENDORS, Braintrust, item)."""

    braintrust_batch_limit: int | None = None
    """The largest number of items in one request (VENDORS, Braintrust, batch)."""

    braintrust_batch_limit_status: Literal[400, 413] = 413
    """What a larger batch is answered with (VENDORS, Braintrust, batch)."""

    braintrust_body_limit_bytes: int | None = None
    """The largest body; a larger one answers 413 (VENDORS, Braintrust, batch)."""

    braintrust_row_twice: Literal["both", "last", "refuse"] = "both"
    """One row id twice in one request: both count, only the last, or 400 (VENDORS, Braintrust, batch)."""

    braintrust_btql_per_minute: int | None = None
    """How many look-ups a minute are answered before 429 (VENDORS, Braintrust, look-up: about 20)."""

    weave_batch: bool = True
    """Whether `/feedback/batch/create` is there, or 404 as on older servers (VENDORS, Weave, call)."""

    weave_refused_fields: tuple[str, ...] = ()
    """Fields that this server does not know yet and answers 422 to (VENDORS, Weave, fields)."""

    weave_undeclared_fields: Literal["refuse", "ignore"] = "refuse"
    """A field that no published version has: 422, or passed over (VENDORS, Weave, fields)."""

    weave_projects: tuple[str, ...] | None = None
    """The projects that exist, others answer 404; None: all exist (VENDORS, Weave, answers)."""

    weave_collapse_after_millis: int = 0
    """How long two rows with the same id stand side by side: "eventually" (VENDORS, Weave, id)."""

    weave_bad_payload: Literal["refuse", "accept"] = "refuse"
    """A note, reaction or scorer field against the rules: 400, or 200 (VENDORS, Weave, types)."""

    weave_payload_limit_bytes: int = MIB
    """The largest payload as ASCII JSON (VENDORS, Weave, limits)."""

    weave_purge_unknown: Literal["accept", "refuse"] = "accept"
    """Purging or replacing what is not there: 200, or 404 (VENDORS, Weave, change, undo)."""
