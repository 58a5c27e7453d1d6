"""Analyses a ticket and shares what it found."""

from datetime import datetime

# --- the sample begins ---
# Agent 1: Customer Triage (Team A, Server 1)
from agentfield import Agent
from pydantic import BaseModel

app = Agent("customer-triage")

class SentimentAnalysis(BaseModel):
    mood: str  # "frustrated", "angry", "neutral", "happy"
    urgency: str  # "low", "medium", "high", "critical"
    confidence: float

@app.reasoner()
async def analyze_ticket(ticket_id: str, message: str, customer_id: str):
    """
    Analyzes customer ticket and stores context for other agents.
    Memory is automatically shared across the workflow.
    """

    # AI analyzes sentiment
    sentiment = await app.ai(
        system="You are a customer sentiment expert.",
        user=f"Analyze this support ticket:\n{message}",
        schema=SentimentAnalysis
    )

    # Store in shared memory (other agents can access this)
    await app.memory.set(f"ticket_{ticket_id}_sentiment", {
        "mood": sentiment.mood,
        "urgency": sentiment.urgency,
        "confidence": sentiment.confidence,
        "analyzed_at": datetime.now().isoformat()
    })

    # Also store customer context
    await app.memory.set(f"customer_{customer_id}_last_interaction", {
        "ticket_id": ticket_id,
        "sentiment": sentiment.mood,
        "timestamp": datetime.now().isoformat()
    })

    app.note(f"📊 Sentiment: {sentiment.mood}, Urgency: {sentiment.urgency}", tags=["analysis"])

    return sentiment.dict()
# --- the sample ends ---
