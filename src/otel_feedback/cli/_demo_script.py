"""What happens in the demo: who asks what, and who judges it how. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXPORTERS = ("orq", "braintrust", "weave")


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of the app, and the judgement that is given on it later, in another process.

    `said` is the judgement in a reader's words. A turn that `runs_on` is still running when it is judged.
    """

    message_id: str
    question: str
    answer: str
    said: str
    judgement: Mapping[str, Any]
    runs_on: bool = False


TURNS = (
    Turn(
        "msg-1",
        "What is the capital of France?",
        "Paris.",
        "thumb up, by ada",
        {"name": "rating", "value": True, "user_id": "ada"},
    ),
    Turn(
        "msg-2",
        "And of Australia?",
        "Sydney.",
        "thumb down, comment and correction, by ada",
        {
            "name": "rating",
            "value": False,
            "comment": "Wrong city",
            "correction": "Canberra.",
            "user_id": "ada",
        },
    ),
    Turn(
        "msg-3",
        "Is a tomato a fruit?",
        "Botanically, yes.",
        "label 'saved', by ben",
        {"name": "interactions", "value": "saved", "user_id": "ben"},
    ),
    Turn(
        "msg-4",
        "Write me a long poem.",
        "Roses are red …",
        "thumb up while the call still ran, by ben",
        {"name": "rating", "value": True, "user_id": "ben"},
        runs_on=True,
    ),
)
