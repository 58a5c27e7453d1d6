"""The agents of the soak: each follows every counter and writes down how far it came, and what it should not have seen.

At least once and in order is what a handler is promised. So the number it gets is one past the number it wrote down, or
an earlier one again; anything else is written down under ``fault_…``.
"""

from __future__ import annotations

import os

from agentfield import Agent, Event

app = Agent(os.environ["SOAK_AGENT"])


@app.memory.on_change("counter_*", scope="global")
async def follow(event: Event) -> None:
    name = event.key.removeprefix("counter_")
    came = await app.memory.get(f"came_{name}", 0, scope="actor")
    if event.previous_data != (event.data - 1 or None):
        await app.memory.set(f"fault_{name}", f"{event.data} came with {event.previous_data!r} before", scope="actor")
    if event.data == came + 1:
        await app.memory.set(f"came_{name}", event.data, scope="actor")
    elif event.data > came:
        await app.memory.set(f"fault_{name}", f"{event.data} came when {came} was the last", scope="actor")
