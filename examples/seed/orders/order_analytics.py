"""Counts what happens to orders."""

from agentfield import Agent

app = Agent("order-analytics")

# --- the sample begins ---
# Agent C: Analytics (also reacts to status changes)
@app.memory.on_change("order_*_status")
async def track_order_metrics(event):
    """Tracks order metrics for analytics."""

    order_id = event.key.split("_")[1]

    await update_metrics({
        "order_id": order_id,
        "status": event.data,
        "previous_status": event.previous_data,
        "timestamp": event.timestamp
    })
# --- the sample ends ---


async def update_metrics(change: dict) -> None:
    """Keeps every change, and how many there were of each status, where only this agent sees it."""
    counts = await app.memory.get("status_counts", {}, scope="actor")
    counts[change["status"]] = counts.get(change["status"], 0) + 1
    await app.memory.set("status_counts", counts, scope="actor")
    await app.memory.set(f"last_change_{change['order_id']}", change, scope="actor")
