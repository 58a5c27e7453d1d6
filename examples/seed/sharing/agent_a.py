"""Writes what agent B reads."""

from agentfield import Agent

app = Agent("agent-a")


@app.reasoner()
async def write(value: str):
    # --- the sample begins ---
    await app.memory.set("key", value)  # Agent A
    # --- the sample ends ---
