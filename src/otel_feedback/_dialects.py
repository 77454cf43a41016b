"""Which spans are LLM calls, and where each instrumentation writes what a judgement needs.

Everything about the dialects of tracing LLM calls lives here, as data; this file does not know what is done with
a recognised call. Prompts and answers have no row, so they are never read.

Sources: OpenTelemetry semantic conventions for generative AI (`gen_ai.*`, with the older `gen_ai.system`),
OpenInference semantic conventions, OpenLLMetry (`llm.request.type`, `traceloop.*`), Langfuse's, MLflow's,
LangSmith's and Logfire's documentation of their OpenTelemetry attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

CHAT = "chat"
TEXT_COMPLETION = "text_completion"
GENERATE_CONTENT = "generate_content"

RESPONSE_ID = "gen_ai.response.id"
CONVERSATION_ID = "gen_ai.conversation.id"
BRAINTRUST_PARENT = "braintrust.parent"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of instrumentations says "this span is an LLM call".

    `operations` maps the marker attribute's value, in lower case and without JSON quotes, to OpenTelemetry's
    operation name; an empty one means that the marker's presence is enough and the call is a chat.
    """

    name: str
    marker: str
    operations: Mapping[str, str] = field(default_factory=dict)


DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "otel-genai",
        "gen_ai.operation.name",
        {"chat": CHAT, "text_completion": TEXT_COMPLETION, "generate_content": GENERATE_CONTENT},
    ),
    Dialect("openinference", "openinference.span.kind", {"llm": CHAT}),
    Dialect("openllmetry", "llm.request.type", {"chat": CHAT, "completion": TEXT_COMPLETION}),
    Dialect("langfuse", "langfuse.observation.type", {"generation": CHAT}),
    # MLflow writes its span type as JSON text, quotes included.
    Dialect("mlflow", "mlflow.spanType", {"chat_model": CHAT, "llm": TEXT_COMPLETION}),
    Dialect("langsmith", "langsmith.span.kind", {"llm": CHAT}),
    # The oldest GenAI form; last, because the newer instrumentations above still write it beside theirs, on
    # embeddings and tools too.
    Dialect("otel-genai-old", "gen_ai.system"),
)

MARKERS = frozenset(dialect.marker for dialect in DIALECTS)

# What is no call of its own although it may carry a marker: Logfire's placeholder for a span that has started, its
# logs and annotations; and OpenLLMetry's agents and tools, which have a `gen_ai.system` too.
NOT_A_CALL: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "logfire.span_type": frozenset({"pending_span", "log", "annotation"}),
        "traceloop.span.kind": frozenset({"workflow", "task", "agent", "tool"}),
    }
)

# What a handle keeps of a span: our name for it (OpenTelemetry's where there is one) and where it may stand, best
# first.
HANDLE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gen_ai.operation.name": ("gen_ai.operation.name",),
        "gen_ai.provider.name": ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system"),
        "gen_ai.request.model": ("gen_ai.request.model", "llm.model_name", "langfuse.observation.model.name"),
        "gen_ai.response.model": ("gen_ai.response.model",),
        RESPONSE_ID: (RESPONSE_ID, "llm.response.id"),
        CONVERSATION_ID: (
            CONVERSATION_ID,
            "session.id",
            "langfuse.session.id",
            "traceloop.association.properties.session_id",
            "langsmith.trace.session_id",
        ),
        "user.id": ("user.id", "langfuse.user.id", "traceloop.association.properties.user_id", "enduser.id"),
        BRAINTRUST_PARENT: (BRAINTRUST_PARENT,),
        "braintrust_row_id": ("braintrust_row_id",),
    }
)


def operation_of(attributes: Mapping[str, object]) -> str | None:
    """Name the LLM operation that a span's attributes speak of, or answer `None` for any other span."""
    if MARKERS.isdisjoint(attributes):
        return None
    for attribute, values in NOT_A_CALL.items():
        if _word(attributes.get(attribute)) in values:
            return None
    return next((_read(dialect, attributes) for dialect in DIALECTS if dialect.marker in attributes), None)


def handle_attributes(attributes: Mapping[str, object]) -> dict[str, str]:
    """Pick what a handle keeps from a span's attributes, under one set of names."""
    found = {}
    for name, places in HANDLE_ATTRIBUTES.items():
        for place in places:
            value = attributes.get(place)
            if isinstance(value, str) and value and is_unicode(value):
                found[name] = value
                break
    return found


def _read(dialect: Dialect, attributes: Mapping[str, object]) -> str | None:
    """Read the operation in one dialect."""
    if not dialect.operations:
        return CHAT
    return dialect.operations.get(_word(attributes[dialect.marker]))


def _word(value: object) -> str:
    """Write an attribute's value as the tables have it: in lower case, without JSON quotes."""
    return str(value).strip('"').lower()


def is_unicode(value: str) -> bool:
    """Tell whether a text can be written as UTF-8: one with half of a surrogate pair can be stored nowhere."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
