"""The agent that packs orders, called by the fulfillment."""

from agentfield import Agent

app = Agent("warehouse-agent")


@app.reasoner()
async def fulfill_order(order_id: str, strategy: dict):
    await app.memory.set(f"shipment_{order_id}", {"carrier": strategy["carrier"], "shipped": True})
    return {"shipped": True}
