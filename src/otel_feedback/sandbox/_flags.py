"""What the sandbox remarks upon: each flag's meaning, and the rules about ids that all vendors share."""

from __future__ import annotations

import re

MEANINGS: dict[str, str] = {
    "contract": "The body breaks the vendor's published contract.",
    "unreadable_body": "The body could not be read.",
    "body_too_large": "The body is larger than the vendor takes.",
    "unauthorized": "The credentials are missing or refused.",
    "unknown_path": "The vendor has no such address.",
    "storage_full": "The sandbox's own storage is full; start a new one or reset it.",
    "dropped_span": "A span without a project is thrown away by the vendor.",
    "upper_case_id": "Ids from OpenTelemetry are lower-case; capitals never match.",
    "dashed_id": "An id with dashes, a uuid as a rule, where 16 or 32 hex digits belong.",
    "zero_id": "An id of zeros is OpenTelemetry's way to say that there is none.",
    "malformed_id": "Neither 16 nor 32 hex digits.",
    "trace_id_for_span_id": "A trace id where a span id belongs.",
    "span_id_for_trace_id": "A span id where a trace id belongs.",
    "unknown_span": "No such span has arrived.",
    "unknown_trace": "No such trace has arrived.",
    "unknown_conversation": "No span of such a conversation has arrived.",
    "wrong_project": "The span is in another project.",
    "wrong_view": "The span is in Weave's other view.",
    "default_product": "Without a product orq looks among deployments, never among OTLP traces.",
    "foreign_product": "A product other than otel: its traces did not come by OTLP.",
    "unknown_product": "A product that orq has not published.",
    "undeclared_property": "A property that the workspace does not define.",
    "unknown_choice": "A value that the property does not offer.",
    "single_choice_no_list": "A single choice is a list of one string.",
    "malformed_feedback_id": "An orq id that is no ULID in capitals.",
    "repeated_id": "An id that came before, with other content.",
    "removed_nothing": "A removal that met nothing.",
    "stray_row": "Braintrust answers 200 and makes a row of its own, which nobody will look at.",
    "repeated_comment": "The same comment was added again; Braintrust shows both.",
    "score_out_of_range": "A score outside 0 to 1.",
    "boolean_score": "A score that is true or false instead of 1 or 0.",
    "child_tags": "Tags on a row that is no root: the trace list does not filter by them.",
    "repeated_tag": "The same tag twice in one list.",
    "row_twice": "The same row twice in one request.",
    "batch_too_large": "More items than the vendor takes at once.",
    "too_many_queries": "More look-ups than Braintrust answers in a minute.",
    "empty_item": "An item that says nothing but an id.",
    "overwritten": "The span came after the feedback and overwrote it.",
    "malformed_project": "A project that is not `entity/project`.",
    "encoded_project": "A URL-encoded project: Weave takes it literally and never joins.",
    "unknown_project": "A project that the server does not have.",
    "malformed_ref": "A reference that is not of a form which can join.",
    "hash_in_ref": "A reference with a hash or digest; a call's has none.",
    "project_mismatch": "The reference is in another project than the feedback.",
    "not_one_emoji": "A reaction is exactly one emoji.",
    "note_length": "A note has 1 to 1024 characters.",
    "scorer_fields": "Scorer fields do not belong on this type.",
    "no_scorer_tags": "The feedback of an agent's user needs scorer tags.",
    "reserved_type": "Only Weave's own types begin with `wandb.`.",
    "no_annotation_ref": "An annotation needs the reference of its definition.",
    "client_wb_user_id": "`wb_user_id` is the server's to set.",
    "payload_too_large": "A payload over the server's limit.",
    "undeclared_field": "A field that the server does not know.",
}

_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


def span_id_flags(text: str) -> list[tuple[str, str]]:
    """Find what keeps a text from being an OpenTelemetry span id."""
    return _id_flags(text, _SPAN_ID, _TRACE_ID, "trace_id_for_span_id")


def trace_id_flags(text: str) -> list[tuple[str, str]]:
    """Find what keeps a text from being an OpenTelemetry trace id."""
    return _id_flags(text, _TRACE_ID, _SPAN_ID, "span_id_for_trace_id")


def _id_flags(text: str, right: re.Pattern[str], other: re.Pattern[str], confusion: str) -> list[tuple[str, str]]:
    found: list[str] = []
    if text and not text.strip("0-"):
        found.append("zero_id")
    if text != text.lower():
        found.append("upper_case_id")
    if "-" in text:
        found.append("dashed_id")
    elif other.fullmatch(text.lower()):
        found.append(confusion)
    elif not right.fullmatch(text.lower()):
        found.append("malformed_id")
    return [(flag, text) for flag in found]
