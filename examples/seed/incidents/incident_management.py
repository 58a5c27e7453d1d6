"""The agent that keeps incidents, called by the incident response."""

from agentfield import Agent, ConflictError

app = Agent("incident-management")


@app.reasoner()
async def create_incident(severity: str, details: dict, recommended_actions: list[str]):
    incident = {"severity": severity, "details": details, "recommended_actions": recommended_actions}
    number = 1
    while True:
        try:
            await app.memory.create(f"incident_{number}", incident, scope="global")
        except ConflictError:  # that number is taken
            number += 1
        else:
            return {"id": f"INC-{number}", **incident}
