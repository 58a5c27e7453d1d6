"""Workflow scope: shared by every agent that works on one order."""

from agentfield import Agent

app = Agent("order-desk")

# --- the sample begins ---
@app.reasoner()
async def process_order(order_id: str):
    # Store in workflow scope (default)
    await app.memory.set(f"order_{order_id}_status", "processing")

    # Call another agent (same workflow)
    inventory = await app.call("inventory-agent.check_stock", order_id=order_id)

    # That agent can read the status
    # status = await app.memory.get(f"order_{order_id}_status")  # Gets "processing"
# --- the sample ends ---
