"""Monitoring: says in memory how the system is."""

from typing import Any

from agentfield import Agent

app = Agent("system-monitor")

TOLERATED_ERROR_RATE = 0.05


@app.reasoner()
async def check_system_health(metrics: dict[str, Any]) -> str:
    """Compare the metrics with what is tolerated; the details come first, so they are there for who reacts."""
    status = "degraded" if metrics["error_rate"] > TOLERATED_ERROR_RATE else "healthy"
    if status == "degraded":
        await app.memory.set("error_details", metrics, scope="global")
        app.note(f"error rate {metrics['error_rate']:.0%}", tags=["alert"])
    await app.memory.set("system_status", status, scope="global")
    return status
