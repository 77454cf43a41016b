"""An application's code around the `openai` client: nothing in it is of this library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import openai
from chat_completions import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True, slots=True)
class Way:
    """How an application calls the model."""

    is_async: bool
    streams: bool

    def __str__(self) -> str:
        return f"{'async' if self.is_async else 'sync'}-{'stream' if self.streams else 'whole'}"


WAYS = tuple(Way(is_async, streams) for is_async in (False, True) for streams in (False, True))
STREAMING_WAYS = tuple(way for way in WAYS if way.streams)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application got."""

    id: str
    text: str


def ask(
    url: str, way: Way, *, model: str = MODEL, before_first: Callable[[], None] = lambda: None, take: int | None = None
) -> Answer:
    """Ask the model, as the way says.

    Args:
        url: the endpoint.

        way: how.

        model: whom.

        before_first: called when a stream has been opened and none of it read.

        take: how many chunks of a stream are read before it is closed; by default all.
    """
    if way.is_async:
        return asyncio.run(_ask_async(url, way, model, before_first, take))
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        answer: Any = client.chat.completions.create(model=model, messages=QUESTION, stream=way.streams)
        if not way.streams:
            return Answer(answer.id, answer.choices[0].message.content)
        before_first()
        with answer:
            return joined(list(islice(answer, take)))


async def _ask_async(url: str, way: Way, model: str, before_first: Callable[[], None], take: int | None) -> Answer:
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
        answer: Any = await client.chat.completions.create(model=model, messages=QUESTION, stream=way.streams)
        if not way.streams:
            return Answer(answer.id, answer.choices[0].message.content)
        before_first()
        chunks = []
        async with answer:
            async for chunk in answer:
                chunks.append(chunk)
                if len(chunks) == take:
                    break
        return joined(chunks)


def joined(chunks: list[Any]) -> Answer:
    """Put a stream's chunks together."""
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    return Answer(chunks[0].id, "".join(deltas))
