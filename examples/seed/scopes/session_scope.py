"""Session scope: shared by every workflow of one user."""

from agentfield import Agent

app = Agent("user-assistant")

# --- the sample begins ---
@app.reasoner()
async def handle_user_request(user_id: str, request: str):
    # Store in session scope
    await app.memory.set(
        f"user_{user_id}_preferences",
        {"language": "en", "timezone": "UTC"},
        scope="session"
    )

    # Available across all workflows for this user
# --- the sample ends ---
