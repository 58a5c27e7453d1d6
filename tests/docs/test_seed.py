"""The product's own samples, each a program, do what the product promises of them."""

import asyncio
import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, AgentUnavailableError
from tests.docs.serving import AGENTFIELD, PROJECT, Serving
from tests.support.waiting import eventually

Serve = Callable[..., list[Serving]]

SEED = PROJECT / "examples" / "seed"
SAMPLES = Path(__file__).parent / "seed_samples"
BEGIN, END = "# --- the sample begins ---\n", "# --- the sample ends ---"

PROGRAMS = {
    "sharing_write": "sharing/agent_a.py",
    "sharing_read": "sharing/agent_b.py",
    "customer_triage": "tickets/customer_triage.py",
    "escalation_handler": "tickets/escalation_handler.py",
    "workflow_scope": "scopes/workflow_scope.py",
    "session_scope": "scopes/session_scope.py",
    "actor_scope": "scopes/actor_scope.py",
    "global_scope": "scopes/global_scope.py",
    "system_monitor": "incidents/system_monitor.py",
    "incident_response": "incidents/incident_response.py",
    "event_object": "incidents/event_object.py",
    "customer_events": "customers/customer_events.py",
    "document_processor": "documents/document_processor.py",
    "legal_analyzer": "documents/legal_agent.py",
    "financial_analyzer": "documents/financial_agent.py",
    "order_processor": "orders/order_processor.py",
    "fulfillment": "orders/fulfillment.py",
    "order_analytics": "orders/order_analytics.py",
}


def sample(name: str) -> str:
    return (SAMPLES / f"{name}.txt").read_text()


def between_the_marks(program: str) -> str:
    """What stands between the marks; without the indentation that a fragment gets inside a function."""
    (found,) = re.findall(rf"^ *{BEGIN}(.*?)^ *{END}", program, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found)


# -- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sample_is_in_its_program_unchanged(name: str) -> None:
    assert between_the_marks((SEED / PROGRAMS[name]).read_text()) == sample(name)


def test_every_sample_has_a_program() -> None:
    assert {path.stem for path in SAMPLES.iterdir()} == set(PROGRAMS)
    assert {path for path in SEED.rglob("*.py") if BEGIN in path.read_text()} == {
        SEED / path for path in PROGRAMS.values()
    }


# -- what each does ---------------------------------------------------------------------------------------------------


async def test_what_one_agent_writes_another_reads(serve: Serve, desk: Agent) -> None:
    serve(SEED / "sharing/agent_a.py", SEED / "sharing/agent_b.py")
    async with desk.workflow("w"):
        await desk.call("agent-a.write", value="hello")
        assert await desk.call("agent-b.read") == "hello"


async def test_the_escalation_handler_reads_what_the_triage_found(serve: Serve, desk: Agent) -> None:
    serve(SEED / "tickets/customer_triage.py", SEED / "tickets/escalation_handler.py")
    about: dict[str, Any] = {"ticket_id": "7", "customer_id": "ada"}
    escalation = "escalation-handler.check_escalation"
    async with desk.workflow("urgent"):
        found = await desk.call("customer-triage.analyze_ticket", message="It is down. Unacceptable!", **about)
        assert found == {"mood": "angry", "urgency": "critical", "confidence": 0.95}
        stored = await desk.memory.get("ticket_7_sentiment")
        assert (stored["mood"], stored["urgency"]) == ("angry", "critical")
        assert (await desk.memory.get("customer_ada_last_interaction"))["ticket_id"] == "7"

        assert await desk.call(escalation, **about) == {
            "escalated": True,
            "case_id": "CASE-7",
        }
        assert (await desk.memory.get("ticket_7_escalated"))["strategy"]["priority"] == "P1"

    async with desk.workflow("calm"):
        await desk.call("customer-triage.analyze_ticket", message="Where is my invoice?", **about)
        assert await desk.call(escalation, **about) == {"escalated": False}
        assert not await desk.memory.exists("ticket_7_escalated")


async def test_an_agent_that_is_called_reads_the_status_of_its_callers_workflow(serve: Serve, desk: Agent) -> None:
    serve(SEED / "scopes/workflow_scope.py", SEED / "scopes/inventory_agent.py")
    async with desk.workflow("w"):
        await desk.call("order-desk.process_order", order_id="42")
        assert await desk.memory.get("order_42_status") == "processing"
        assert await desk.memory.get("order_42_stock") == {"in_stock": True, "status_seen": "processing"}
    assert await desk.memory.get("order_42_status") is None


async def test_preferences_are_there_in_every_workflow_of_the_session(serve: Serve, desk: Agent) -> None:
    serve(SEED / "scopes/session_scope.py")
    await desk.call("user-assistant.handle_user_request", user_id="7", request="hello", session_id="user-7")
    for workflow in ("one", "another"):
        async with desk.session("user-7"), desk.workflow(workflow):
            assert await desk.memory.get("user_7_preferences") == {"language": "en", "timezone": "UTC"}
    async with desk.session("user-8"):
        assert await desk.memory.get("user_7_preferences") is None


async def test_a_queue_is_private_to_its_agent(serve: Serve, desk: Agent) -> None:
    serve(SEED / "scopes/actor_scope.py")
    async with desk.workflow("w"), desk.session("s"):
        await desk.call("batch-processor.process_batch", batch_id="b-1")
        assert await desk.memory.get("processing_queue") is None
    assert await desk.memory.actor("batch-processor").get("processing_queue") == {
        "current_batch": "b-1",
        "items_processed": 0,
    }


async def test_a_feature_flag_is_seen_by_everybody(serve: Serve, desk: Agent, environment: dict[str, str]) -> None:
    serve(SEED / "scopes/global_scope.py")
    assert await desk.call("feature-checker.check_feature_flag", feature="dark_mode") is None
    store = [*AGENTFIELD, "set", "feature_flags", '{"dark_mode": true}']
    await asyncio.to_thread(subprocess.run, store, env=environment, check=True)
    assert await desk.call("feature-checker.check_feature_flag", feature="dark_mode") is True


async def test_a_degraded_system_leads_to_an_incident_and_a_page(serve: Serve, desk: Agent) -> None:
    serve(*(SEED / "incidents").glob("*.py"))
    metrics = {"error_rate": 0.12, "timestamp": "2026-01-01T00:00:00Z", "services": ["api"]}
    async with desk.workflow("w"):
        await desk.call("system-monitor.check_system_health", metrics=metrics | {"error_rate": 0.01})
        assert not await desk.memory.exists("system_status")
        await desk.memory.set("system_status", "healthy")
        await desk.call("system-monitor.check_system_health", metrics=metrics)

    page = await eventually(lambda: desk.memory.get("page_INC-1", scope="global"), within=20, what="somebody is paged")
    assert page == {"severity": "SEV1", "to": "on-call"}
    incident = await desk.memory.get("incident_1", scope="global")
    assert (incident["severity"], incident["details"]["affected_services"]) == ("SEV1", ["api"])

    async def recorded() -> Any:
        event = await desk.memory.get("last_system_status_event", scope="global")
        return event if event and event["data"] == "degraded" else None

    event = await eventually(recorded, within=20, what="the event is recorded")
    shown = {"key": "system_status", "data": "degraded", "previous_data": "healthy", "scope": "workflow"}
    assert {name: event[name] for name in shown} == shown
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", event["timestamp"])
    assert set(eval(sample("event_object"))) <= set(event)


async def test_one_handler_reacts_to_several_patterns(serve: Serve, desk: Agent) -> None:
    serve(SEED / "customers/customer_events.py")
    async with desk.workflow("w"):
        await desk.memory.set("customer_7_sentiment", "angry")
        await desk.memory.set("customer_7_unrelated", "angry")
        await desk.memory.set("customer_7_escalated", True)

    async def log() -> Any:
        entries = await desk.memory.actor("customer-tracker").get("customer_7_log", [])
        return entries if len(entries) == 2 else None

    analyses = await eventually(log, within=20, what="both events are logged")
    assert [analysis["summary"] for analysis in analyses] == [
        "Analyze customer 7 event: customer_7_sentiment changed to angry",
        "Analyze customer 7 event: customer_7_escalated changed to True",
    ]


async def test_three_agents_work_on_one_document(serve: Serve, desk: Agent) -> None:
    serve(*(SEED / "documents").glob("*.py"))
    async with desk.workflow("w"):
        result = await desk.call("document-processor.process_document", doc_id="9")
        assert result == {
            "legal": {"compliant": True, "clauses": ["penalty"]},
            "financial": {"amounts": ["5,000 EUR"], "due_days": 30},
        }
        assert await desk.memory.get("doc_9_legal") == result["legal"]
        assert await desk.memory.get("doc_9_financial") == result["financial"]


async def test_a_paid_order_is_shipped_and_counted(serve: Serve, desk: Agent) -> None:
    serve(*(SEED / "orders").glob("*.py"))
    async with desk.workflow("w"):
        await desk.call("order-processor.process_order", order_id="42")
        await check_order_42(desk, "order-analytics")
        await desk.call("order-processor.process_order", order_id="13")
        assert await desk.memory.get("order_13_status") == "payment_failed"

    async def counted() -> bool:
        counts = await desk.memory.actor("order-analytics").get("status_counts")
        return bool(counts == {"processing": 2, "paid": 1, "payment_failed": 1})

    await eventually(counted, within=20, what="every change is counted")
    assert not await desk.memory.exists("shipment_13", scope="workflow", scope_id="w")


async def check_order_42(desk: Agent, analytics: str) -> None:
    shipment = await eventually(lambda: desk.memory.get("shipment_42"), within=20, what="the order is shipped")
    assert shipment == {"carrier": "rail", "shipped": True}

    async def change() -> Any:
        found = await desk.memory.actor(analytics).get("last_change_42")
        return found if found and found["status"] == "paid" else None

    assert (await eventually(change, within=20, what="the change is tracked"))["previous_status"] == "processing"


# -- pasted as they stand ---------------------------------------------------------------------------------------------


async def test_two_agents_in_one_file_under_one_name_are_both_served(serve: Serve, desk: Agent, tmp_path: Path) -> None:
    file = tmp_path / "tickets.py"
    file.write_text("from datetime import datetime\n" + sample("customer_triage") + sample("escalation_handler"))
    serve(file)
    async with desk.workflow("w"):
        await desk.call("customer-triage.analyze_ticket", ticket_id="7", message="Where is it?", customer_id="ada")
        outcome = await desk.call("escalation-handler.check_escalation", ticket_id="7", customer_id="ada")
    assert outcome == {"escalated": False}


async def test_three_agents_of_a_sample_can_be_one_agent(serve: Serve, desk: Agent, tmp_path: Path) -> None:
    file = tmp_path / "orders.py"
    parts = [(SEED / PROGRAMS[name]).read_text() for name in ("order_processor", "fulfillment", "order_analytics")]
    below = [part.partition(END)[2] for part in parts]
    above = 'from agentfield import Agent\nfrom pydantic import BaseModel\n\napp = Agent("orders")\n'
    samples = [sample(name) for name in ("order_processor", "fulfillment", "order_analytics")]
    file.write_text("\n\n".join([above, *samples, *below]))
    serve(file, SEED / "orders/warehouse_agent.py")
    async with desk.workflow("w"):
        await desk.call("orders.process_order", order_id="42")
        await check_order_42(desk, "orders")


async def test_a_companion_that_does_not_run_is_named(serve: Serve, desk: Agent) -> None:
    serve(SEED / "scopes/workflow_scope.py")
    with pytest.raises(Exception, match="inventory-agent") as caught:
        await desk.call("order-desk.process_order", order_id="42")
    assert getattr(caught.value, "type_name", None) == AgentUnavailableError.__name__
