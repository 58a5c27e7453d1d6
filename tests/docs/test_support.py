"""The agents of the support desk, run together in one process, and one alone with a model that says what it is told."""

import pytest

from agentfield import Memory
from agentfield.testing import Agents, FakeModel
from examples import stand_in
from examples.support import (
    analytics_agent,
    customer_triage,
    escalation_handler,
    history_agent,
    incident_management,
    incident_response,
    notification_agent,
    routing_agent,
    system_monitor,
)
from examples.support.escalation_handler import EscalationStrategy
from examples.support.tickets import FIRST, LATER, METRICS, TEAMS, Ticket

DESK = [module.app for module in (customer_triage, history_agent, routing_agent, escalation_handler, analytics_agent)]
OPERATIONS = [module.app for module in (system_monitor, incident_response, incident_management, notification_agent)]


async def come_in(ticket: Ticket) -> None:
    app = customer_triage.app
    async with app.workflow(f"ticket-{ticket.id}"):
        await app.call(
            "customer-triage.analyze_ticket",
            ticket_id=ticket.id, message=ticket.message, customer_id=ticket.customer, session_id=ticket.customer,
        )  # fmt: skip


async def test_every_ticket_finds_its_team_and_only_those_that_cannot_wait_become_cases(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    async with agentfield_agents.run(*DESK, model=stand_in.answer):
        await agentfield_memory.set("teams", TEAMS, scope="global")
        for ticket in (*FIRST, LATER):
            await come_in(ticket)
            await agentfield_agents.settled()

        outcomes = {
            ticket.id: await agentfield_memory.workflow(f"ticket-{ticket.id}").get(f"ticket_{ticket.id}_outcome")
            for ticket in (*FIRST, LATER)
        }
        assert {id: outcome["team"] for id, outcome in outcomes.items()} == {
            "1001": "platform", "1002": "accounts", "1003": "platform", "1004": "platform",
        }  # fmt: skip
        assert [id for id, outcome in outcomes.items() if outcome["case_id"]] == ["1001", "1004"]
        trend = await agentfield_memory.get("support_trend")
        assert (trend["tickets"], trend["escalated"]) == (4, 2)


@pytest.mark.parametrize("escalate", [True, False])
async def test_what_the_model_decides_is_what_becomes_of_the_ticket(
    agentfield_agents: Agents, agentfield_memory: Memory, agentfield_model: FakeModel, escalate: bool
) -> None:
    strategy = EscalationStrategy(escalate=escalate, priority="P2", reason="a test said so")
    agentfield_model.rule(strategy, about="mood: angry", schema=EscalationStrategy)
    async with agentfield_agents.run(escalation_handler.app):
        ticket = agentfield_memory.workflow("w")
        await ticket.set("ticket_7_sentiment", {"mood": "angry", "urgency": "high"})
        await ticket.set("ticket_7_history", {"earlier": ["5", "6"]})
        await ticket.set("ticket_7_team", "platform")
        await agentfield_agents.settled()

        case = "CASE-7" if escalate else None
        assert await ticket.get("ticket_7_outcome") == {"team": "platform", "case_id": case}
        assert await ticket.exists("ticket_7_escalated") is escalate
    (question,) = agentfield_model.asked
    assert question.user.endswith("Earlier tickets: 2")


async def test_an_incident_is_opened_and_paged_once_however_often_the_system_is_degraded(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    async with agentfield_agents.run(*OPERATIONS, model=stand_in.answer):
        for metrics in (METRICS, METRICS | {"error_rate": 0.2}):
            await system_monitor.app.call("system-monitor.check_system_health", metrics=metrics)
        await agentfield_agents.settled()
        pages = [entry async for entry in agentfield_memory.items("page_*", scope="global")]
        assert [page.value for page in pages] == [{"severity": "SEV1", "to": "everybody"}]
