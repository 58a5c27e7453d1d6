"""Says in memory when the system is degraded."""

# --- the sample begins ---
# Agent A: Monitoring System
from agentfield import Agent

app = Agent("system-monitor")

@app.reasoner()
async def check_system_health(metrics: dict):
    """Monitors system and sets state when issues detected."""

    if metrics['error_rate'] > 0.05:
        # Set state in memory
        await app.memory.set("system_status", "degraded")
        await app.memory.set("error_details", {
            'error_rate': metrics['error_rate'],
            'timestamp': metrics['timestamp'],
            'affected_services': metrics['services']
        })

        app.note("⚠️ System degraded - error rate exceeded threshold", tags=["alert"])
# --- the sample ends ---
