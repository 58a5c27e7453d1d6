"""Incident management: keeps the incidents."""

from contextlib import suppress
from typing import Any

from agentfield import Agent, ConflictError

app = Agent("incident-management")


@app.reasoner()
async def create_incident(incident_id: str, severity: str, actions: list[str]) -> dict[str, Any]:
    """Open an incident; opening it again changes nothing."""
    incident = {"id": incident_id, "severity": severity, "actions": actions, "state": "open"}
    with suppress(ConflictError):
        await app.memory.create(f"incident_{incident_id}", incident, scope="global")
    return incident
