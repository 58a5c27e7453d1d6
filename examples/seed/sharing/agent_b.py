"""Reads what agent A wrote."""

from agentfield import Agent

app = Agent("agent-b")


@app.reasoner()
async def read():
    # --- the sample begins ---
    value = await app.memory.get("key")  # Agent B
    # --- the sample ends ---
    return value
