"""Langfuse's wrapper of the `openai` client, in a program of its own: it cannot be taken off again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chat_completions import FULL_MODEL, MODEL, ChatCompletions

if TYPE_CHECKING:
    from trace_collector import TraceCollector

HERE = Path(__file__).parent


@pytest.mark.parametrize("streams", ["whole", "stream"])
def test_a_generation_is_collected_with_its_model(
    streams: str, collector: TraceCollector, model: ChatCompletions
) -> None:
    """
    Langfuse says at the end only that a span is a generation, and neither provider nor response id.
    """
    said = subprocess.run(
        [sys.executable, HERE / "programs" / "langfuse_app.py", collector.origin, model.url, MODEL, streams],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )

    facts = json.loads(said.stdout)
    (span_id,) = facts["spans"]
    assert [[span_id, {"gen_ai.operation.name": "chat", "gen_ai.request.model": FULL_MODEL}]] == facts["collected"]
    assert (span_id,) == collector.span_ids
