"""Decides on escalation from what the triage agent shared."""

from datetime import datetime

from pydantic import BaseModel

# --- the sample begins ---
# Agent 2: Escalation Handler (Team B, Server 2, different codebase)
from agentfield import Agent

app = Agent("escalation-handler")

@app.reasoner()
async def check_escalation(ticket_id: str, customer_id: str):
    """
    Decides if escalation is needed.
    Accesses memory set by triage agent automatically.
    """

    # Read sentiment from memory (set by triage agent)
    sentiment = await app.memory.get(f"ticket_{ticket_id}_sentiment")

    # Read customer history
    last_interaction = await app.memory.get(f"customer_{customer_id}_last_interaction")

    # AI decides escalation strategy
    if sentiment and sentiment["urgency"] in ["high", "critical"]:
        strategy = await app.ai(
            system="You determine escalation strategies.",
            user=f"""
            Ticket sentiment: {sentiment['mood']}
            Urgency: {sentiment['urgency']}
            Last interaction: {last_interaction}
            """,
            schema=EscalationStrategy
        )

        if strategy.escalate:
            # Create escalation case
            case = await create_escalation_case(ticket_id, strategy)

            # Store escalation decision in memory
            await app.memory.set(f"ticket_{ticket_id}_escalated", {
                "case_id": case.id,
                "strategy": strategy.dict(),
                "escalated_at": datetime.now().isoformat()
            })

            app.note(f"⚠️ Escalated to case {case.id}", tags=["escalation"])

            return {"escalated": True, "case_id": case.id}

    return {"escalated": False}
# --- the sample ends ---


class EscalationStrategy(BaseModel):
    escalate: bool
    priority: str
    reason: str


class Case(BaseModel):
    id: str
    priority: str


async def create_escalation_case(ticket_id: str, strategy: EscalationStrategy) -> Case:
    """Stands for the ticket system of a company."""
    return Case(id=f"CASE-{ticket_id}", priority=strategy.priority)
