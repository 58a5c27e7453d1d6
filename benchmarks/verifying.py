"""Auditing: how fast the log is sealed and verified, beside a plain consumer that only decodes; and an export of it."""

from __future__ import annotations

import time
from pathlib import Path

from agentfield.audit.checking import Checked, check_export, check_live
from agentfield.audit.exporting import Selection, export
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.batch import MAX_BATCH, BatchItem, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.header import encode_event
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION
from benchmarks.consuming import raw_consumer
from benchmarks.measuring import Burst, Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import NAMESPACE, PATIENCE, PAYLOAD, Surroundings
from projections import Source
from projections.seals import Sealer, Seals

_WRITER = Writer(agent="customer-triage", execution_id=new_id(), workflow_id="wf-1", session_id="user-42")


async def verifying(here: Surroundings) -> Table:
    """Verify a log of so many events, live and exported."""
    amount = here.scale(100_000, 20_000)
    rounds = here.scale(5, 3)
    signer = Signer.generate()
    table = Table(f"audit of a log of {amount:,} events", ("events a second",))
    fabric = await Fabric.open(here.url, namespace=NAMESPACE, name="bench", timeout=PATIENCE)
    try:
        await fill(fabric, amount)
        begun = time.perf_counter()
        made: list[Seal] = []
        await Sealer(Source(fabric), Seals(signer, made=made.append)).catch_up()
        sealing = amount / (time.perf_counter() - begun)
        path = here.home / "log.jsonl"
        begun = time.perf_counter()
        await export(fabric, path, "jsonl", Selection(Pattern.parse("*"), [(kind, None) for kind in RESOLUTION]))
        exporting = amount / (time.perf_counter() - begun)
        async with here.raw() as raw:
            stream = raw.jetstream(timeout=PATIENCE)
            found = await rates(
                {
                    "raw": raw_consumer(stream, f"{NAMESPACE}.>", amount),
                    "live": _live(fabric, signer.public),
                    "export": _exported(path, signer.public),
                },
                rounds=rounds,
            )
    finally:
        await fabric.aclose()
    raw_rate = found["raw"]
    ratio = found["live"].ratio_to(raw_rate)
    table.add("raw pull consumer, decodes only", raw_rate.typical, ratio=1.0)
    table.add("audit verify", found["live"].typical, ratio=ratio, targets=[Target(ratio, "≥", 0.6, "× raw")])
    table.add("audit verify of an export", found["export"].typical, ratio=found["export"].ratio_to(raw_rate))
    table.add("audit seal, once", sealing)
    table.add("audit export, once", exporting)
    table.remarks.append(f"{len(made)} seals; every event is hashed twice: for its digest, and for the chain")
    return table


async def fill(fabric: Fabric, amount: int) -> None:
    subject = f"{NAMESPACE}.memory.workflow.wf-1.order."
    for start in range(0, amount, MAX_BATCH):
        items = [
            BatchItem(
                f"{subject}{number % 10_000}.status",
                PAYLOAD,
                encode_event(event_id=new_id(), operation="set", writer=_WRITER),
            )
            for number in range(start, min(amount, start + MAX_BATCH))
        ]
        await append_batch(fabric.log, items)


def _live(fabric: Fabric, key: str) -> Burst:
    async def verify() -> Span:
        begun = time.perf_counter()
        return _span(await check_live(fabric, trusted=[key]), begun)

    return verify


def _exported(path: Path, key: str) -> Burst:
    async def verify() -> Span:
        begun = time.perf_counter()
        return _span(await check_export(path, trusted=[key]), begun)

    return verify


def _span(checked: Checked, begun: float) -> Span:
    verdict = checked.verdict
    if not verdict.intact or verdict.unsealed:
        raise RuntimeError(f"the log is not what was sealed: {verdict}")
    return Span(verdict.events, time.perf_counter() - begun)
