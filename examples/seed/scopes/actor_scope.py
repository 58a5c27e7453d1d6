"""Actor scope: private to one agent."""

from agentfield import Agent

app = Agent("batch-processor")

# --- the sample begins ---
@app.reasoner()
async def process_batch(batch_id: str):
    # Store in actor scope (private to this agent)
    await app.memory.set(
        "processing_queue",
        {"current_batch": batch_id, "items_processed": 0},
        scope="actor"
    )

    # Other agents can't see this
# --- the sample ends ---
