"""A chat page whose answers stream in, with a thumb below each; it runs without a key, see the README beside this file.

The model is a stand-in, unless `OPENAI_API_KEY` (and, for another endpoint, `OPENAI_BASE_URL`) is set.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel

import otel_feedback as of
from otel_feedback.web import awith_token
from otel_feedback.web.fastapi import feedback_router

FEEDBACK = {"rating": of.Thumb(), "helpfulness": of.Rating(1, 5)}
MODEL = os.environ.get("CHAT_MODEL", "gpt-4o-mini")
PAGE = Path(__file__).with_name("page.html")

provider = TracerProvider()
# Spans go where OTEL_EXPORTER_OTLP_ENDPOINT and …_HEADERS say, or to several places: [{"url": …, "headers": …}, …].
is_set = any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ)
for place in json.loads(os.environ.get("CHAT_OTLP", "[{}]" if is_set else "[]")):
    exporter = OTLPSpanExporter(endpoint=place.get("url"), headers=place.get("headers"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
of.configure(feedback=FEEDBACK)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    # A server that is told to end by a signal runs nothing at exit: the last spans would never arrive.
    await asyncio.to_thread(provider.shutdown)


app = FastAPI(title="Chat", lifespan=lifespan)
app.include_router(feedback_router("/feedback"))


class Question(BaseModel):
    text: str


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE)


@app.post("/chat")
async def chat(question: Question) -> StreamingResponse:
    words = answer(question.text)
    handle = of.handle_of(words)  # there before the first word
    token = of.issue_token(handle, names=list(FEEDBACK)) if handle is not None else ""
    return StreamingResponse(awith_token(events(words), token), media_type="text/event-stream")


async def events(words: AsyncIterator[str]) -> AsyncIterator[str]:
    async for word in words:
        yield f"data: {json.dumps(word)}\n\n"
    yield "event: end\ndata:\n\n"


@of.capture
async def answer(question: str) -> AsyncIterator[str]:
    model = an_openai_model if "OPENAI_API_KEY" in os.environ else a_stand_in
    async for word in model(question):
        yield word


async def a_stand_in(question: str) -> AsyncIterator[str]:
    """Say a few words, slowly enough to be judged on the way."""
    subject = question.strip(" ?!.") or "nothing"
    for word in f"You asked about “{subject}”. A real model would know more about it than this stand-in does.".split():
        await asyncio.sleep(0.15)
        yield f"{word} "


async def an_openai_model(question: str) -> AsyncIterator[str]:
    """Ask any endpoint that speaks OpenAI's chat completions."""
    from openai import AsyncOpenAI  # noqa: PLC0415 (only who has a key needs it)

    async with AsyncOpenAI() as client:
        chunks = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content
