"""Analytics: keeps its own record of every ticket, and publishes the trend for everybody."""

from collections import Counter

from agentfield import Agent, Event

app = Agent("analytics-agent")


@app.memory.on_change("ticket_*_outcome")
async def track(event: Event) -> None:
    """Count the ticket; by its id, so that one that comes again after a crash is not counted twice."""
    ticket_id = event.key.split("_")[1]
    outcomes = await app.memory.get("outcomes", {}, scope="actor") | {ticket_id: event.data}
    await app.memory.set("outcomes", outcomes, scope="actor")
    trend = {
        "tickets": len(outcomes),
        "escalated": sum(outcome["case_id"] is not None for outcome in outcomes.values()),
        "by_team": Counter(outcome["team"] for outcome in outcomes.values()),
    }
    await app.memory.set("support_trend", trend, scope="global")
