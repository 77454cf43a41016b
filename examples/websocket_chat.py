"""A chat over a WebSocket: before the words of each answer comes the token with which it may be judged.

    OTEL_FEEDBACK_SIGNING_KEYS=$(openssl rand -hex 32) uvicorn websocket_chat:app

`pip install "otel-feedback[web]" "uvicorn[standard]"`. The page sends a question as text, and gets JSON:
`{"token": …}`, `{"word": …}` again and again, `{"end": true}`.
"""

from collections.abc import AsyncIterator

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import otel_feedback as of
from otel_feedback.web.starlette import feedback_routes

trace.set_tracer_provider(TracerProvider())  # your app has one already

of.configure(exporters=[of.ConsoleFeedbackExporter()], store="memory:")


@of.capture
async def answer(question: str) -> AsyncIterator[str]:
    for word in f"You asked: {question}".split():
        yield word


async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for question in socket.iter_text():
        words = answer(question)
        handle = of.handle_of(words)  # there before the first word
        if handle is not None:
            await socket.send_json({"token": of.issue_token(handle, names=["rating"])})
        async for word in words:
            await socket.send_json({"word": word})
        await socket.send_json({"end": True})


app = Starlette(routes=[WebSocketRoute("/chat", chat), *feedback_routes("/feedback")])
