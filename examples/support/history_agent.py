"""History: knows the earlier tickets of a customer, who is the session, across all the workflows of that session."""

from agentfield import Agent, Event

app = Agent("history-agent")


@app.memory.on_change("ticket_*_opened")
async def look_up_history(event: Event) -> None:
    """Share the customer's earlier tickets, and remember this one for the next."""
    ticket_id = event.key.split("_")[1]
    earlier = [each for each in await app.memory.get("tickets", [], scope="session") if each != ticket_id]
    await app.memory.set(f"ticket_{ticket_id}_history", {"earlier": earlier})
    await app.memory.set("tickets", [*earlier, ticket_id], scope="session")
    if earlier:
        app.note(f"{event.data['customer']} wrote before: {', '.join(earlier)}", tags=["history"])
