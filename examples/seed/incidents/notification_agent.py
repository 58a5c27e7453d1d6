"""The agent that pages people, called by the incident response."""

from agentfield import Agent

app = Agent("notification-agent")


@app.reasoner()
async def page_oncall(incident_id: str, severity: str):
    await app.memory.set(f"page_{incident_id}", {"severity": severity, "to": "on-call"}, scope="global")
