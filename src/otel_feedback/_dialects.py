"""Which spans are LLM calls, and where each instrumentation writes what a judgement needs.

Everything about the dialects of tracing LLM calls lives here, as data; this file does not know what is done with
a recognised call. Prompts and answers have no row, so they are never read.

Sources: OpenTelemetry semantic conventions for generative AI (`gen_ai.*`, with the older `gen_ai.system`),
OpenInference semantic conventions and its context managers, OpenLLMetry (`llm.request.type`, `traceloop.*`, its
association properties), what Langfuse's, MLflow's, LangSmith's, Logfire's and OpenLIT's SDKs write, and the names of
the tracers in `opentelemetry-python-contrib`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

CHAT = "chat"
TEXT_COMPLETION = "text_completion"
GENERATE_CONTENT = "generate_content"

OPERATION = "gen_ai.operation.name"
RESPONSE_ID = "gen_ai.response.id"
CONVERSATION_ID = "gen_ai.conversation.id"
USER_ID = "user.id"
BRAINTRUST_PARENT = "braintrust.parent"
BRAINTRUST_ROW = "braintrust_row_id"
# The exporters that the feedback on a call goes to, comma-separated, where the feedback itself names none.
TO = "otel_feedback.to"


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
    # First, because LangSmith calls the filling in of a prompt's template a `chat` of OpenTelemetry's.
    Dialect("langsmith", "langsmith.span.kind", {"llm": CHAT}),
    # Also OpenLLMetry since its 0.50, OpenLIT, pydantic-ai, and OpenInference where it is told to.
    Dialect(
        "otel-genai",
        OPERATION,
        {"chat": CHAT, "text_completion": TEXT_COMPLETION, "generate_content": GENERATE_CONTENT},
    ),
    Dialect("openinference", "openinference.span.kind", {"llm": CHAT}),
    Dialect("openllmetry", "llm.request.type", {"chat": CHAT, "completion": TEXT_COMPLETION}),
    Dialect("langfuse", "langfuse.observation.type", {"generation": CHAT}),
    # MLflow writes its span type as JSON text, quotes included.
    Dialect("mlflow", "mlflow.spanType", {"chat_model": CHAT, "llm": TEXT_COMPLETION}),
    # OpenLIT before it took up the operation's name; embeddings and vector stores say so here only.
    Dialect("openlit-old", "gen_ai.type", {"chat": CHAT}),
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
# first. LangSmith's `langsmith.trace.session_id` is not among them: what it calls a session there is a project.
HANDLE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        OPERATION: (OPERATION,),
        "gen_ai.provider.name": (
            "gen_ai.provider.name",
            "gen_ai.system",
            "llm.provider",
            "llm.system",
            "mlflow.llm.provider",
        ),
        "gen_ai.request.model": (
            "gen_ai.request.model",
            "llm.request.model_name",
            "llm.model_name",
            "langfuse.observation.model.name",
            "mlflow.llm.model",
        ),
        "gen_ai.response.model": ("gen_ai.response.model", "llm.response.model_name"),
        RESPONSE_ID: (RESPONSE_ID, "llm.response.id"),
        CONVERSATION_ID: (
            CONVERSATION_ID,
            "session.id",
            "langfuse.session.id",
            "traceloop.association.properties.conversation_id",
            "traceloop.association.properties.session_id",
            "langsmith.metadata.thread_id",
            "langsmith.metadata.session_id",
            "langsmith.metadata.conversation_id",
            "mlflow.trace.session",
        ),
        USER_ID: (
            USER_ID,
            "langfuse.user.id",
            "traceloop.association.properties.user_id",
            "langsmith.metadata.user_id",
            "mlflow.trace.user",
            "enduser.id",
            # The `user` of OpenAI's request, as OpenLLMetry (new and old) and OpenLIT pass it on.
            "gen_ai.user",
            "llm.user",
            "gen_ai.request.user",
        ),
        BRAINTRUST_PARENT: (BRAINTRUST_PARENT,),
        BRAINTRUST_ROW: (BRAINTRUST_ROW,),
        TO: (TO,),
    }
)

# Whose attributes are JSON texts: a string there has quotes.
_WRITES_JSON = "mlflow."

# Each place with our name for it and its rank there, 0 being the best.
_PLACES: Mapping[str, tuple[str, int]] = {
    place: (name, rank) for name, places in HANDLE_ATTRIBUTES.items() for rank, place in enumerate(places)
}
_PLACE_NAMES = frozenset(_PLACES)

# What an LLM span has from its surroundings when it does not say it itself.
INHERITED = (CONVERSATION_ID, USER_ID)
_INHERITED_PLACES = frozenset(place for name in INHERITED for place in HANDLE_ATTRIBUTES[name])

# The keys of OpenTelemetry's context under which SDKs carry them along, best first; where there are two, the second is
# one of a mapping that stands under the first. OpenInference's `using_session` and `using_user`, Langfuse's
# `propagate_attributes`, Traceloop's associations and association properties.
CONTEXT_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        CONVERSATION_ID: (
            ("session.id",),
            ("langfuse.propagated.session_id",),
            ("associations", "conversation_id"),
            ("associations", "session_id"),
            ("association_properties", "conversation_id"),
            ("association_properties", "session_id"),
        ),
        USER_ID: (
            ("user.id",),
            ("langfuse.propagated.user_id",),
            ("associations", "user_id"),
            ("association_properties", "user_id"),
        ),
    }
)
_CONTEXT_KEYS = frozenset(path[0] for paths in CONTEXT_KEYS.values() for path in paths)

# The entries of the baggage that carry them, best first: the names of span attributes (pydantic-ai, and who does it by
# hand), and Langfuse's.
BAGGAGE_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        CONVERSATION_ID: (*HANDLE_ATTRIBUTES[CONVERSATION_ID], "langfuse_session_id"),
        USER_ID: (*HANDLE_ATTRIBUTES[USER_ID], "langfuse_user_id"),
    }
)

# Tracers that never open an LLM span: web clients and servers, remote calls, databases, caches, queues, and what
# belongs to the running of a process. AWS's botocore is not among them, since it opens Bedrock's.
SILENT_SCOPES = frozenset(
    "opentelemetry.instrumentation." + library
    for library in (
        *("aiohttp_client", "httpx", "requests", "urllib", "urllib3"),
        *("aiohttp_server", "asgi", "django", "falcon", "fastapi", "flask", "pyramid.callbacks", "starlette"),
        *("tornado", "wsgi", "grpc", "jinja2"),
        *("aiopg", "asyncpg", "cassandra", "dbapi", "elasticsearch", "mysql", "mysqlclient", "psycopg", "psycopg2"),
        *("pymongo", "pymssql", "pymysql", "sqlalchemy", "sqlite3", "tortoiseorm", "pymemcache", "redis"),
        *("aio_pika", "aiokafka", "boto3sqs", "celery", "confluent_kafka", "kafka", "pika", "remoulade"),
        *("asyncio", "aws_lambda", "click", "logging", "system_metrics", "threading"),
    )
)


def operation_of(attributes: Mapping[str, object]) -> str | None:
    """Name the LLM operation that a span's attributes speak of, or answer `None` for any other span."""
    if MARKERS.isdisjoint(attributes):
        return None
    for attribute, values in NOT_A_CALL.items():
        if attribute in attributes and _word(attributes[attribute]) in values:
            return None
    return next(_read(dialect, attributes[dialect.marker]) for dialect in DIALECTS if dialect.marker in attributes)


def handle_attributes(attributes: Mapping[str, object]) -> dict[str, str]:
    """Pick what a handle keeps from a span's attributes, under one set of names."""
    found: dict[str, str] = {}
    ranks: dict[str, int] = {}
    # One pass over what is there costs a fraction of looking for each place.
    for place in _PLACE_NAMES.intersection(attributes):
        value = _text(place, attributes[place])
        if value:
            name, rank = _PLACES[place]
            if name not in found or rank < ranks[name]:
                found[name], ranks[name] = value, rank
    return found


def inherited_attributes(
    known: Mapping[str, str],
    parents: Iterable[Mapping[str, object]],
    context: Mapping[str, object],
    baggage: Mapping[str, object],
) -> dict[str, str]:
    """Find the conversation and the user of an LLM span that does not say them itself.

    Args:
        known: what the span says.

        parents: the attributes of its local parents, nearest first.

        context: OpenTelemetry's context that it was started in.

        baggage: the baggage of that context.
    """
    missing = [name for name in INHERITED if name not in known]
    found: dict[str, str] = {}
    # The sources are read one after the other, until nothing is missing.
    for source in chain(map(_in_span, parents), map(_in_context, (context,)), map(_in_baggage, (baggage,))):
        if len(found) == len(missing):
            break
        for name in missing:
            if name in source:
                found.setdefault(name, source[name])
    return found


def _in_span(attributes: Mapping[str, object]) -> dict[str, str]:
    """Read what is inherited from a parent's attributes."""
    return {} if _INHERITED_PLACES.isdisjoint(attributes) else handle_attributes(attributes)


def _in_context(context: Mapping[str, object]) -> dict[str, str]:
    """Read what is inherited from OpenTelemetry's context."""
    if _CONTEXT_KEYS.isdisjoint(context):
        return {}
    return {
        name: text
        for name, paths in CONTEXT_KEYS.items()
        if (text := next(filter(None, (_text(path[0], _at(context, path)) for path in paths)), None))
    }


def _in_baggage(baggage: Mapping[str, object]) -> dict[str, str]:
    """Read what is inherited from the baggage."""
    if not baggage:
        return {}
    return {
        name: text
        for name, keys in BAGGAGE_KEYS.items()
        if (text := next(filter(None, (_text(key, baggage.get(key)) for key in keys)), None))
    }


def _at(context: Mapping[str, object], path: tuple[str, ...]) -> object:
    """Follow a path into mappings."""
    value: object = context
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(place: str, value: object) -> str | None:
    """Read a text that can be stored; anything else counts as absent."""
    if not isinstance(value, str):
        return None
    if place.startswith(_WRITES_JSON):
        value = value.strip('"')
    return value if value.isascii() or is_unicode(value) else None


def _read(dialect: Dialect, value: object) -> str | None:
    """Read the operation in one dialect."""
    return dialect.operations.get(_word(value)) if dialect.operations else CHAT


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
