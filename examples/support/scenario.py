"""The run itself: what is put in from outside, and what has to have happened before the next thing is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentfield import Agent
from examples.support.feed import Feed
from examples.support.screen import Screen
from examples.support.tickets import FIRST, LATER, METRICS, TEAMS, Ticket


async def play(desk: Agent, feed: Feed, screen: Screen) -> None:
    """Play it through; return when the last agent has done its part."""
    await desk.memory.set("teams", TEAMS, scope="global")

    screen.heading(f"{len(FIRST)} tickets come in at once")
    await asyncio.gather(*(_submit(desk, ticket) for ticket in FIRST))
    await _dealt_with(feed, FIRST)

    screen.heading(f"Later, {LATER.customer} writes again: another workflow, the same session")
    await _submit(desk, LATER)
    await _dealt_with(feed, (*FIRST, LATER))

    screen.heading("The system degrades, and recovers")
    await desk.call("system-monitor.check_system_health", metrics=METRICS)
    await feed.until(lambda each: "note" in each and each["agent"] == "incident-response")
    await desk.call("system-monitor.check_system_health", metrics=METRICS | {"error_rate": 0.01})
    await feed.until(lambda each: each.get("key") == "system_status" and each["data"] == "healthy")


async def _submit(desk: Agent, ticket: Ticket) -> None:
    """Hand a ticket to the triage, in a workflow of its own and in the session of its customer."""
    async with desk.workflow(f"ticket-{ticket.id}"):
        await desk.call(
            "customer-triage.analyze_ticket",
            ticket_id=ticket.id,
            message=ticket.message,
            customer_id=ticket.customer,
            session_id=ticket.customer,
        )


async def _dealt_with(feed: Feed, tickets: Sequence[Ticket]) -> None:
    """Return when every one of these tickets has its outcome, and is counted."""
    for ticket in tickets:
        await _decided(feed, f"ticket_{ticket.id}_outcome")
    await feed.until(lambda each: each.get("key") == "support_trend" and each["data"]["tickets"] == len(tickets))


async def _decided(feed: Feed, key: str) -> None:
    """Return when that outcome is there, and the note about its case, if it has one."""
    outcome = await feed.until(lambda each: each.get("key") == key)
    case = outcome["data"]["case_id"]
    if case is not None:
        await feed.until(lambda each: case in each.get("note", ""))
