"""What an event looks like as JSON: this agent keeps the last one of system_status in global scope."""

from agentfield import Agent

app = Agent("event-recorder")


@app.memory.on_change("system_status")
async def record(event):
    await app.memory.set("last_system_status_event", event.model_dump(mode="json"), scope="global")


# It has the fields of this example, and more: who wrote, the revision, what led to it.

# --- the sample begins ---
{
    "key": "system_status",
    "data": "degraded",
    "previous_data": "healthy",
    "scope": "workflow",
    "timestamp": "2024-07-08T18:20:00Z"
}
# --- the sample ends ---
