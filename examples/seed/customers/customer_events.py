"""Reacts to several patterns."""

from agentfield import Agent
from pydantic import BaseModel

app = Agent("customer-tracker")

# --- the sample begins ---
# React to multiple patterns
@app.memory.on_change(["customer_*_sentiment", "customer_*_escalated"])
async def track_customer_events(event):
    """Reacts to any customer sentiment or escalation change."""
    customer_id = event.key.split("_")[1]

    # AI analyzes the pattern
    analysis = await app.ai(
        f"Analyze customer {customer_id} event: {event.key} changed to {event.data}",
        schema=CustomerEventAnalysis
    )

    await log_customer_event(customer_id, analysis)
# --- the sample ends ---


class CustomerEventAnalysis(BaseModel):
    summary: str
    needs_attention: bool


async def log_customer_event(customer_id: str, analysis: CustomerEventAnalysis) -> None:
    """Keeps a list for each customer; one handler runs at a time, so nobody writes in between."""
    log = await app.memory.get(f"customer_{customer_id}_log", [], scope="actor")
    await app.memory.set(f"customer_{customer_id}_log", [*log, analysis], scope="actor")
