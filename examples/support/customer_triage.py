"""Triage: takes a ticket, reads its mood, and tells everybody who cares."""

from pydantic import BaseModel

from agentfield import Agent

app = Agent("customer-triage")


class SentimentAnalysis(BaseModel):
    mood: str
    urgency: str
    confidence: float


@app.reasoner()
async def analyze_ticket(ticket_id: str, message: str, customer_id: str) -> SentimentAnalysis:
    """Open a ticket and say how its author feels."""
    await app.memory.set(f"ticket_{ticket_id}_opened", {"customer": customer_id, "message": message})
    sentiment = await app.ai(
        system="You judge the mood (happy, neutral, frustrated, angry) and urgency (low, medium, high, critical) "
        "of support tickets.",
        user=message,
        schema=SentimentAnalysis,
    )
    await app.memory.set(f"ticket_{ticket_id}_sentiment", sentiment)
    app.note(f"ticket {ticket_id}: {sentiment.mood}, urgency {sentiment.urgency}", tags=["analysis"])
    return sentiment
