"""Takes an order and says in memory how far it is."""

from agentfield import Agent
from pydantic import BaseModel

app = Agent("order-processor")

# --- the sample begins ---
# Agent A: Order Processor
@app.reasoner()
async def process_order(order_id: str):
    """Processes order and updates status."""

    await app.memory.set(f"order_{order_id}_status", "processing")

    # Process payment
    payment = await process_payment(order_id)

    if payment.success:
        # Update status (triggers event)
        await app.memory.set(f"order_{order_id}_status", "paid")
    else:
        await app.memory.set(f"order_{order_id}_status", "payment_failed")
# --- the sample ends ---


class Payment(BaseModel):
    success: bool


async def process_payment(order_id: str) -> Payment:
    """Stands for a payment provider, which refuses orders whose number ends in 13."""
    return Payment(success=not order_id.endswith("13"))
