"""A loopback stand-in of OpenAI's endpoints, as far as the `openai` client and pydantic-ai speak to them.

The model's name says what happens, so that one server serves many tests at once; see `FAILURES` and `CUT`. Each
answer has an id of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from loopback import Loopback, LoopbackHandler

# The models that there are: one that answers, and those whose name says how they fail.
MODEL = "gpt-4o-mini"
FULL_MODEL = "gpt-4o-mini-2024-07-18"
EMBEDDING_MODEL = "text-embedding-3-small"
FAILURES: Mapping[str, int] = MappingProxyType({"gpt-429": 429, "gpt-500": 500})
# Its stream ends amid the answer, without a word.
CUT = "gpt-cut"

WORDS = ("Paris", " is", " the", " capital", ".")
USAGE: Mapping[str, Any] = MappingProxyType({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
RESPONSE_USAGE: Mapping[str, Any] = MappingProxyType(
    {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
)

_counter = itertools.count(1)


class ChatCompletions(Loopback):
    """The server, running on a free port while it is entered."""

    def __init__(self) -> None:
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        """What the client takes as its `base_url`."""
        return f"{self.origin}/v1"


class _Handler(LoopbackHandler):
    """One request to a model."""

    def do_POST(self) -> None:  # noqa: N802 (the standard library's name)
        """Answer as the path and the model say."""
        request = json.loads(self.read_body())
        status = FAILURES.get(request["model"], 200)
        if status != 200:
            self._send_json(status, {"error": {"message": "as asked for", "type": "test", "code": None}})
        elif request.get("stream"):
            self._send_stream(_EVENTS[self.path](request), is_cut=request["model"] == CUT)
        else:
            self._send_json(200, _ANSWERS[self.path](request))

    def _send_json(self, status: int, body: object) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def _send_stream(self, events: Iterator[str], *, is_cut: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in itertools.islice(events, 3 if is_cut else None):
            content = event.encode()
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        if not is_cut:
            self.wfile.write(b"0\r\n\r\n")


# --- /v1/chat/completions ----------------------------------------------------------------------------------------


def _completion(_request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer at once."""
    return {
        "id": f"chatcmpl-{next(_counter)}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": FULL_MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(WORDS), "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE | {},
        "system_fingerprint": "fp_1",
    }


def _completion_events(request: Mapping[str, Any]) -> Iterator[str]:
    """Answer word by word, with the usage at the end where that was asked for."""
    frame = {
        "id": f"chatcmpl-{next(_counter)}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": FULL_MODEL,
        "system_fingerprint": "fp_1",
    }
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS)]
    for delta in deltas:
        yield _data({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _data({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (request.get("stream_options") or {}).get("include_usage"):
        yield _data({**frame, "choices": [], "usage": USAGE | {}})
    yield "data: [DONE]\n\n"


# --- /v1/embeddings ----------------------------------------------------------------------------------------------


def _embedding(_request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer with a vector."""
    return {
        "object": "list",
        "model": EMBEDDING_MODEL,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


# --- /v1/responses -----------------------------------------------------------------------------------------------


def _response(_request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer at once."""
    return _response_object(f"resp_{next(_counter)}", "completed")


def _response_events(_request: Mapping[str, Any]) -> Iterator[str]:
    """Answer word by word."""
    response_id = f"resp_{next(_counter)}"
    empty = _message(response_id, "", "in_progress")
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": empty["id"], "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "response": _response_object(response_id, "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": {**empty, "content": []}},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in WORDS),
        {"type": "response.output_text.done", **at, "text": "".join(WORDS), "logprobs": []},
        {"type": "response.content_part.done", **at, "part": {**part, "text": "".join(WORDS)}},
        {
            "type": "response.output_item.done",
            "output_index": 0,
            "item": _message(response_id, "".join(WORDS), "completed"),
        },
        {"type": "response.completed", "response": _response_object(response_id, "completed")},
    ]
    for number, event in enumerate(events):
        yield f"event: {event['type']}\n{_data({**event, 'sequence_number': number})}"


def _response_object(response_id: str, status: str) -> dict[str, Any]:
    is_done = status == "completed"
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": FULL_MODEL,
        "output": [_message(response_id, "".join(WORDS), status)] if is_done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSE_USAGE | {} if is_done else None,
    }


def _message(response_id: str, text: str, status: str) -> dict[str, Any]:
    return {
        "id": response_id.replace("resp", "msg"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def _data(event: object) -> str:
    return f"data: {json.dumps(event)}\n\n"


_ANSWERS = {"/v1/chat/completions": _completion, "/v1/embeddings": _embedding, "/v1/responses": _response}
_EVENTS = {"/v1/chat/completions": _completion_events, "/v1/responses": _response_events}
