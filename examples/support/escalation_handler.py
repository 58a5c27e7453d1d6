"""Escalation: opens a case for tickets that cannot wait."""

from pydantic import BaseModel

from agentfield import Agent, Event

app = Agent("escalation-handler")


class EscalationStrategy(BaseModel):
    escalate: bool
    priority: str
    reason: str


@app.memory.on_change("ticket_*_team")
async def check_escalation(event: Event) -> None:
    """Decide from what the other agents found out, and share the outcome."""
    ticket_id = event.key.split("_")[1]
    sentiment = await app.memory.get(f"ticket_{ticket_id}_sentiment")
    history = await app.memory.get(f"ticket_{ticket_id}_history")
    strategy = await app.ai(
        system="You decide whether a support ticket is escalated, and with which priority (P1, P2, P3).",
        user=f"Mood: {sentiment['mood']}\nUrgency: {sentiment['urgency']}\nEarlier tickets: {len(history['earlier'])}",
        schema=EscalationStrategy,
    )
    case_id = f"CASE-{ticket_id}" if strategy.escalate else None
    if case_id is not None:
        await app.memory.set(f"ticket_{ticket_id}_escalated", {"case_id": case_id, **strategy.model_dump()})
        app.note(f"{case_id} opened with {strategy.priority}: {strategy.reason}", tags=["escalation"])
    await app.memory.set(f"ticket_{ticket_id}_outcome", {"team": event.data, "case_id": case_id})
