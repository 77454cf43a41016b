"""The instrumentations of the `openai` client, as data: how each is switched on, and what its chat span says."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from chat_completions import FULL_MODEL, MODEL
from pydantic.warnings import PydanticDeprecatedSince20

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """One instrumentation and what is true of it.

    `attributes` are a handle's, after a call that went well and without its response id, which is there if `says_id`.
    `early` are those at the span's start. `knows_responses` is whether it sees the endpoint `/v1/responses`.
    """

    name: str
    module: str
    attributes: Mapping[str, str]
    early: Mapping[str, str]
    says_id: bool = True
    knows_responses: bool = True

    def __str__(self) -> str:
        return self.name

    def handle_attributes(self, response_id: str) -> Mapping[str, str]:
        """What a handle has after a call that went well."""
        said = {"gen_ai.response.id": response_id} if self.says_id else {}
        return {**self.attributes, **said}

    @contextmanager
    def on(self, tracer_provider: TracerProvider) -> Iterator[None]:
        """Instrument the client, and leave it as it was."""
        before = _methods()
        with warnings.catch_warnings():
            # OpenLLMetry declares a pydantic model in the old way, in a module that it loads when it is switched on.
            warnings.simplefilter("ignore", PydanticDeprecatedSince20)
            instrumentor = import_module(self.module).OpenAIInstrumentor()
            instrumentor.instrument(tracer_provider=tracer_provider)
        try:
            yield
        finally:
            instrumentor.uninstrument()
            _restore(before)


# What the tests call. The client loads them when they are first used, which may be by an instrumentation.
RESOURCES = (
    "openai.resources.chat.completions.completions",
    "openai.resources.embeddings",
    "openai.resources.responses.responses",
)

Methods = Mapping[tuple[type, str], Any]


def _methods() -> Methods:
    """Answer every method of the client that the tests call."""
    return {
        (each, name): method
        for module in map(import_module, RESOURCES)
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__ == module.__name__
        for name, method in vars(each).items()
        if callable(method)
    }


def _restore(before: Methods) -> None:
    """Put the methods back: OpenLLMetry's `uninstrument` leaves all of them wrapped (0.62.4)."""
    for (owner, name), method in before.items():
        if vars(owner)[name] is not method:
            setattr(owner, name, method)


CHAT: Mapping[str, str] = MappingProxyType(
    {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": FULL_MODEL,
    }
)
CHAT_AT_START: Mapping[str, str] = MappingProxyType(
    {name: value for name, value in CHAT.items() if name != "gen_ai.response.model"}
)

# OpenTelemetry's own, under its present name.
GENAI_OPENAI = Instrumentation(
    "genai-openai", "opentelemetry.instrumentation.genai.openai", attributes=CHAT, early=CHAT_AT_START
)
# The same under its former name.
OPENAI_V2 = Instrumentation(
    "openai-v2",
    "opentelemetry.instrumentation.openai_v2",
    attributes=CHAT,
    early=CHAT_AT_START,
    knows_responses=False,
)
# It writes no response id anywhere but into the answer's text, which is never read, and the model that answered only.
OPENINFERENCE = Instrumentation(
    "openinference",
    "openinference.instrumentation.openai",
    attributes={
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": FULL_MODEL,
    },
    early={"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"},
    says_id=False,
)
OPENLLMETRY = Instrumentation(
    "openllmetry",
    "opentelemetry.instrumentation.openai",
    attributes=CHAT,
    early={"gen_ai.operation.name": "chat"},
)

ALL = (GENAI_OPENAI, OPENAI_V2, OPENINFERENCE, OPENLLMETRY)
THAT_SAY_THE_ID = tuple(each for each in ALL if each.says_id)


@contextmanager
def instrumented(tracer_provider: TracerProvider, *instrumentations: Instrumentation) -> Iterator[None]:
    """Switch several on, the last one outermost, and off again in reverse."""
    with ExitStack() as stack:
        for each in instrumentations:
            stack.enter_context(each.on(tracer_provider))
        yield
