"""Routing: as soon as mood and history of a ticket are known, in whichever order, picks the team that handles it."""

from typing import Literal

from pydantic import BaseModel

from agentfield import Agent, Event

app = Agent("routing-agent")


class Topic(BaseModel):
    topic: Literal["outage", "billing", "other"]


@app.memory.on_change(["ticket_*_sentiment", "ticket_*_history"])
async def route(event: Event) -> None:
    """Route the ticket once, when everything it takes is there."""
    ticket = "_".join(event.key.split("_")[:2])
    known = await app.memory.get_many([f"{ticket}_{part}" for part in ("opened", "sentiment", "history", "team")])
    if f"{ticket}_team" in known or len(known) < 3:
        return  # routed already, or the other half is still to come and will bring us here again
    found = await app.ai(
        system="You name the topic of a support ticket.", user=known[f"{ticket}_opened"]["message"], schema=Topic
    )
    teams = await app.memory.get("teams")  # no scope named: found in the global one
    await app.memory.set(f"{ticket}_team", teams[found.topic])
