"""Reacts to a degraded system."""

from pydantic import BaseModel

# --- the sample begins ---
# Agent B: Incident Response (different process, different team)
from agentfield import Agent

app = Agent("incident-response")

@app.memory.on_change("system_status")
async def handle_system_status_change(event):
    """
    Reacts to system status changes automatically.
    Triggered when any agent writes to "system_status".
    """

    if event.data == "degraded":
        # Get error details from memory
        details = await app.memory.get("error_details")

        # AI determines incident severity and response
        assessment = await app.ai(
            system="You assess incident severity and recommend actions.",
            user=f"System degraded. Error rate: {details['error_rate']}. Affected: {details['affected_services']}",
            schema=IncidentAssessment
        )

        # Create incident automatically
        incident = await app.call(
            "incident-management.create_incident",
            severity=assessment.severity,
            details=details,
            recommended_actions=assessment.actions
        )

        # Notify on-call team
        await app.call(
            "notification-agent.page_oncall",
            incident_id=incident['id'],
            severity=assessment.severity
        )

        app.note(f"🚨 Incident {incident['id']} created, on-call notified", tags=["incident"])
# --- the sample ends ---


class IncidentAssessment(BaseModel):
    severity: str
    actions: list[str]
