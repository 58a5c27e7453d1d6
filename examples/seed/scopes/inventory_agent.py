"""The agent that the workflow example calls: it runs in the caller's workflow and so reads the status set there."""

from agentfield import Agent

app = Agent("inventory-agent")


@app.reasoner()
async def check_stock(order_id: str):
    status = await app.memory.get(f"order_{order_id}_status")
    await app.memory.set(f"order_{order_id}_stock", {"in_stock": True, "status_seen": status})
    return {"in_stock": True, "status_seen": status}
