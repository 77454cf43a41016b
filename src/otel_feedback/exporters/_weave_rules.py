"""What W&B Weave takes: references, types and their rules, emoji and sizes, as tables and pure functions.

Source: docs.wandb.ai, Weave service API, and the trace server's own code as weave 0.53.12 ships it
(`trace_server/feedback.py`, `refs_internal.py`), for what the page leaves out. The server never checks `weave_ref`: a
wrong one answers 200 and joins nothing, so the one function `weave_ref` builds them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from otel_feedback import environment_variables as env
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters._checks import check_text

REACTION = "wandb.reaction.1"
NOTE = "wandb.note.1"
AGENT_FEEDBACK = "wandb.agent_user_feedback"
AGENT_MONITOR = "wandb.agent_monitor"
ANNOTATION = "wandb.annotation."
RUNNABLE = "wandb.runnable."

# Weave refuses a longer note (its MAX_FEEDBACK_NOTE_LENGTH).
MAX_NOTE_CHARS = 1024
# And a larger payload, measured as `len(json.dumps(payload))` (its CLICKHOUSE_MAX_FEEDBACK_PAYLOAD_SIZE).
MAX_PAYLOAD_CHARS = 1024 * 1024
# What the server writes beside an emoji before it measures: its name, and both again without skin tones. The longest of
# Unicode's sequences takes 350.
REACTION_ROOM_CHARS = 512

# The types on which Weave takes a scorer's fields; on any other it answers 400.
SCORED_TYPES = (AGENT_FEEDBACK, AGENT_MONITOR, RUNNABLE)

# What Weave has of its own types; any other that begins so is reserved.
RESERVED = "wandb."
_OWN_TYPE = re.compile(
    r"wandb\.(reaction\.1|note\.1|agent_user_feedback|agent_monitor|annotation\..+|runnable\..+)", re.DOTALL
)

# Two parts, raw: a URL-encoded project is another project. W&B allows spaces inside a part, but none of /\#?%:.
_PART = r"(?!\s)[^/\\#?%:\x00-\x1f\x7f]+(?<!\s)"
_PROJECT_ID = re.compile(f"{_PART}/{_PART}")

View = Literal["traces", "agents"]
Level = Literal["span", "trace", "conversation"]
RefKind = Literal["call", "agent_span", "agent_turn", "agent_conversation"]

# What a judgement is put on. The Traces view has no reference to a trace: its outermost call stands for it.
REF_KINDS: Mapping[tuple[View, Level], RefKind] = MappingProxyType(
    {
        ("traces", "span"): "call",
        ("traces", "trace"): "call",
        ("agents", "span"): "agent_span",
        ("agents", "trace"): "agent_turn",
        ("agents", "conversation"): "agent_conversation",
    }
)

# The ids that can join: lower-case hex, not all zeros; a conversation's is any text.
_SPAN_ID, _TRACE_ID = r"(?!0+$)[0-9a-f]{16}", r"(?!0+$)[0-9a-f]{32}"
_IDS: Mapping[str, re.Pattern[str]] = {
    "call": re.compile(_SPAN_ID),
    "agent_span": re.compile(_SPAN_ID),
    "agent_turn": re.compile(_TRACE_ID),
    "agent_conversation": re.compile(r".*\S.*", re.DOTALL),
}

# A reference to what Weave keeps; objects and ops have a version, calls have none.
_REF = re.compile(
    rf"weave:///(?P<project>{_PART}/{_PART})/(?:(?P<kind>object|op)/(?P<name>[\w.-]+):[\w.*-]+|(?P<call>call)/[\w-]+)"
)

# The references that belong to what runnables and monitors say, and what each may refer to.
RUN_REFS: Mapping[str, Sequence[str]] = MappingProxyType(
    {"runnable_ref": ("object", "op"), "call_ref": ("call",), "trigger_ref": ("object", "op")}
)

# Unicode's emoji of one character (the package `emoji` 2.16, Unicode 17), with the block that is kept for new ones.
_EMOJI_RANGES = (
    "a9 ae 203c 2049 2122 2139 2194-2199 21a9-21aa 231a-231b 2328 23cf 23e9-23f3 23f8-23fa 24c2 25aa-25ab "
    "25b6 25c0 25fb-25fe 2600-2604 260e 2611 2614-2615 2618 261d 2620 2622-2623 2626 262a 262e-262f "
    "2638-263a 2640 2642 2648-2653 265f-2660 2663 2665-2666 2668 267b 267e-267f 2692-2697 2699 269b-269c "
    "26a0-26a1 26a7 26aa-26ab 26b0-26b1 26bd-26be 26c4-26c5 26c8 26ce-26cf 26d1 26d3-26d4 26e9-26ea "
    "26f0-26f5 26f7-26fa 26fd 2702 2705 2708-270d 270f 2712 2714 2716 271d 2721 2728 2733-2734 2744 2747 "
    "274c 274e 2753-2755 2757 2763-2764 2795-2797 27a1 27b0 27bf 2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 "
    "3030 303d 3297 3299 1f004 1f0cf 1f170-1f171 1f17e-1f17f 1f18e 1f191-1f19a 1f201-1f202 1f21a 1f22f "
    "1f232-1f23a 1f250-1f251 1f300-1f321 1f324-1f393 1f396-1f397 1f399-1f39b 1f39e-1f3f0 1f3f3-1f3f5 "
    "1f3f7-1f4fd 1f4ff-1f53d 1f549-1f54e 1f550-1f567 1f56f-1f570 1f573-1f57a 1f587 1f58a-1f58d 1f590 "
    "1f595-1f596 1f5a4-1f5a5 1f5a8 1f5b1-1f5b2 1f5bc 1f5c2-1f5c4 1f5d1-1f5d3 1f5dc-1f5de 1f5e1 1f5e3 "
    "1f5e8 1f5ef 1f5f3 1f5fa-1f64f 1f680-1f6c5 1f6cb-1f6d2 1f6d5-1f6d9 1f6dc-1f6e5 1f6e9 1f6eb-1f6ec "
    "1f6f0 1f6f3-1f6fc 1f7e0-1f7eb 1f7f0 1f90c-1f93a 1f93c-1f945 1f947-1f9ff 1fa70-1faff "
)


def _characters(ranges: str) -> str:
    """Write ranges of code points as the inside of a regular expression's brackets."""
    return "".join("-".join(f"\\U{end:0>8}" for end in each.split("-")) for each in ranges.split())


_ONE = rf"[{_characters(_EMOJI_RANGES)}][\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]?"
_EMOJI = re.compile(
    rf"{_ONE}(?:\u200d{_ONE})*"  # one picture, with a skin tone or without, or several joined
    r"|[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"  # flags of countries and regions
    r"|[0-9#*]\ufe0f?\u20e3"  # keycaps
)


# --- references --------------------------------------------------------------------------------------------------


def weave_ref(project_id: str, kind: RefKind, target: str) -> str:
    """Build a reference to what a judgement is about, the one place where that is done: the server checks none.

    Args:
        project_id: `entity/project`, raw.

        kind: what is referred to.

        target: its id: 16 lower-case hex digits of a span, 32 of a trace, or a conversation's as it is; only that is
            quoted.

    Raises:
        InvalidFeedbackError: when one of them can join nothing.
    """
    if not (_PROJECT_ID.fullmatch(project_id) and kind in _IDS and _IDS[kind].fullmatch(target)):
        raise InvalidFeedbackError(
            f"no {kind} in Weave can have this id: a span has 16 lower-case hex digits, a trace 32, and a project is "
            "entity/project",
            field="target",
            value=(project_id, kind, target),
        )
    # Weave's own rule for what it quotes (its extra_value_quoter).
    return f"weave:///{project_id}/{kind}/{quote(target, safe='')}"


def check_annotations(given: object, *, view: View, project_id: str) -> Mapping[str, str]:
    """Check the names whose values are annotations, and the references to their specs.

    Raises:
        ConfigurationError: when a reference is not to an object of the project, by name and digest.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "annotations must be a mapping of names to references, as in "
            "annotations={'tone': 'weave:///entity/project/object/tone:digest'}",
            setting="annotations",
        )
    if given and view != "traces":
        raise ConfigurationError("annotations are of the Traces view: leave out view='agents'", setting="annotations")
    for name, reference in given.items():
        check_text(name, "annotations")
        found = _REF.fullmatch(reference) if isinstance(reference, str) else None
        if found is None or found["kind"] != "object" or project_id not in ("", found["project"]):
            raise ConfigurationError(
                f"the annotation {name!r} needs the reference to its spec in this exporter's project: "
                "weave:///entity/project/object/<name>:<digest>",
                setting="annotations",
            )
    return MappingProxyType(dict(given))


def ref_name(reference: str) -> str:
    """Read the name of the object or op in a reference that has been checked."""
    return reference.rpartition("/")[2].partition(":")[0]


def _is_ref(reference: object, kinds: Sequence[str], project_id: str = "", name: str = "") -> bool:
    """Tell whether a text refers to one of these kinds, and to this project and name where they are given."""
    found = _REF.fullmatch(reference) if isinstance(reference, str) else None
    return (
        found is not None
        and (found["kind"] or found["call"]) in kinds
        and project_id in ("", found["project"])
        and name in ("", found["name"])
    )


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


# --- what Weave refuses ------------------------------------------------------------------------------------------


def broken_rules(body: Mapping[str, Any]) -> Iterator[str]:
    """Say which rules of Weave's about types a body breaks, in words; only `native` can lead to it.

    They are those of the trace server's `validate_feedback_create_req`, which answers 400 to each.
    """
    kind, payload = body["feedback_type"], body["payload"]
    name = kind.removeprefix(RESERVED).partition(".")[2]
    is_annotation, is_runnable = kind.startswith(ANNOTATION), kind.startswith(RUNNABLE)
    # On an annotation the server does not mind them.
    allowed = {
        "annotation_ref": is_annotation,
        **dict.fromkeys(RUN_REFS, is_annotation or is_runnable or kind == AGENT_MONITOR),
    }
    note = payload.get("note")
    rules = {
        f"a type that begins with {RESERVED} is one of W&B's own": (
            not kind.startswith(RESERVED) or _OWN_TYPE.fullmatch(kind)
        ),
        "scorer_* fields belong to wandb.agent_user_feedback, wandb.agent_monitor and wandb.runnable.<name>": (
            kind.startswith(SCORED_TYPES) or not any(field.startswith("scorer_") for field in body)
        ),
        f"{AGENT_FEEDBACK} needs scorer_tags": kind != AGENT_FEEDBACK or body.get("scorer_tags"),
        f"{ANNOTATION}<name> needs annotation_ref, to the object <name> of this project, and payload.value": (
            not is_annotation
            or ("value" in payload and _is_ref(body.get("annotation_ref"), ["object"], body["project_id"], name))
        ),
        f"{RUNNABLE}<name> needs runnable_ref, to the op or object <name>, call_ref for an op, and payload.output": (
            not is_runnable
            or (
                "output" in payload
                and (
                    _is_ref(body.get("runnable_ref"), ["object"], name=name)
                    or (_is_ref(body.get("runnable_ref"), ["op"], name=name) and "call_ref" in body)
                )
            )
        ),
        f"{AGENT_MONITOR} needs {', '.join(RUN_REFS)}": kind != AGENT_MONITOR or body.keys() >= RUN_REFS.keys(),
        f"{REACTION} needs payload.emoji, one emoji": kind != REACTION or is_one_emoji(payload.get("emoji")),
        f"{NOTE} needs payload.note, 1 to {MAX_NOTE_CHARS} characters": (
            kind != NOTE or (isinstance(note, str) and 1 <= len(note) <= MAX_NOTE_CHARS)
        ),
        **{f"{field} does not go with the type {kind}": field not in body or may for field, may in allowed.items()},
        **{
            f"{field} is a reference, weave:///entity/project/…, to {' or '.join(kinds)}": (
                field not in body or _is_ref(body[field], kinds)
            )
            for field, kinds in RUN_REFS.items()
        },
    }
    yield from (rule for rule, is_kept in rules.items() if not is_kept)


def check_size(body: Mapping[str, Any], kind: str) -> None:
    """Refuse a payload that is too large for Weave, measured as the server does, naming what is most of it."""
    payload = body["payload"]
    limit = MAX_PAYLOAD_CHARS - (REACTION_ROOM_CHARS if body["feedback_type"] == REACTION else 0)
    if len(json.dumps(payload)) <= limit:
        return
    largest = max(payload, key=lambda name: len(json.dumps(payload[name])))
    # A note is never most of it.
    field = kind if largest in ("value", "output") else largest
    raise InvalidFeedbackError(
        f"Weave takes payloads of up to {limit} characters of JSON; make {field} shorter",
        field=field,
        value=payload[largest],
    )


def is_one_emoji(text: object) -> bool:
    """Tell whether a text is one emoji and nothing else, as Unicode forms them (UTS 51, section 1.4.9).

    Weave counts by the table of the package `emoji`; which of the joined sequences and flags exist, only that knows.
    """
    return isinstance(text, str) and _EMOJI.fullmatch(text) is not None
