"""Incident response: when the system degrades, opens an incident and has somebody paged."""

from pydantic import BaseModel

from agentfield import Agent, Event

app = Agent("incident-response")


class IncidentAssessment(BaseModel):
    severity: str
    actions: list[str]


@app.memory.on_change("system_status")
async def handle_system_status_change(event: Event) -> None:
    """React to the change from well to degraded, not to being told again."""
    if event.data != "degraded" or event.previous_data == "degraded":
        return
    details = await app.memory.get("error_details")
    assessment = await app.ai(
        system="You assess the severity of incidents (SEV1, SEV2, SEV3) and recommend actions.",
        user=f"Error rate: {details['error_rate']}. Affected: {', '.join(details['services'])}",
        schema=IncidentAssessment,
    )
    # The revision names the incident: should this handler run again for the same event, it finds the same one.
    incident = await app.call(
        "incident-management.create_incident",
        incident_id=f"INC-{event.revision}",
        severity=assessment.severity,
        actions=assessment.actions,
    )
    await app.call("notification-agent.page_oncall", incident_id=incident["id"], severity=assessment.severity)
    app.note(f"{incident['id']} created, on-call paged", tags=["incident"])
