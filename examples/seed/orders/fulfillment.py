"""Ships an order as soon as it is paid."""

from agentfield import Agent
from pydantic import BaseModel

app = Agent("fulfillment")

# --- the sample begins ---
# Agent B: Fulfillment (reacts to status changes)
@app.memory.on_change("order_*_status")
async def handle_order_status_change(event):
    """Automatically triggered when order status changes."""

    order_id = event.key.split("_")[1]

    if event.data == "paid":
        # AI determines fulfillment strategy
        strategy = await app.ai(
            f"Determine fulfillment strategy for order {order_id}",
            schema=FulfillmentStrategy
        )

        # Start fulfillment
        await app.call(
            "warehouse-agent.fulfill_order",
            order_id=order_id,
            strategy=strategy.dict()
        )
# --- the sample ends ---


class FulfillmentStrategy(BaseModel):
    carrier: str
    priority: str
