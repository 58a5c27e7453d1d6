"""Notifications: pages the people on call; here, by leaving the page in memory."""

from agentfield import Agent

app = Agent("notification-agent")


@app.reasoner()
async def page_oncall(incident_id: str, severity: str) -> None:
    """Page whoever is on call for that severity."""
    who = "everybody" if severity == "SEV1" else "the first line"
    await app.memory.set(f"page_{incident_id}", {"severity": severity, "to": who}, scope="global")
    app.note(f"paged {who} for {incident_id}", tags=["page"])
