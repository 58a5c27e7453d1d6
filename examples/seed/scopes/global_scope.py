"""Global scope: one for the whole system."""

from agentfield import Agent

app = Agent("feature-checker")

# --- the sample begins ---
@app.reasoner()
async def check_feature_flag(feature: str):
    # Read from global scope
    flags = await app.memory.get("feature_flags", scope="global")

    if flags and flags.get(feature):
        # Feature is enabled system-wide
        return True
# --- the sample ends ---
