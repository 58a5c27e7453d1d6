"""An agent with nothing to do: what `idle` measures, and what expires keys for `expiring`."""

from __future__ import annotations

from typing import Any

from agentfield import Agent

app = Agent("idle")


@app.reasoner()
async def answer(question: str) -> str:
    return question


@app.memory.on_change("never_*_written")
async def react(event: Any) -> None:
    await app.memory.set("reacted", event.data)
