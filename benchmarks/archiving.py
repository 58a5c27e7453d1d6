"""Archiving: how fast the log becomes Parquet, how small that is, and how fast it is verified and read on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentfield.audit.checking import check_archive
from agentfield.audit.nkey import Signer
from agentfield.fabric.fabric import Fabric
from benchmarks.consuming import raw_consumer
from benchmarks.measuring import Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import NAMESPACE, PATIENCE, Surroundings
from benchmarks.verifying import fill
from projections import Source, open_store
from projections.archive import Archive, Archiver
from projections.seals import Sealer, Seals


async def archived(here: Surroundings) -> Table:
    """Archive a log of so many events, and verify what came of it, beside a raw consumer that only decodes."""
    amount = here.scale(100_000, 20_000)
    rounds = here.scale(5, 3)
    signer = Signer.generate()
    numbers = itertools.count()
    places: list[Path] = []
    fabric = await Fabric.open(here.url, namespace=NAMESPACE, name="bench", timeout=PATIENCE)
    try:
        await fill(fabric, amount)
        await Sealer(Source(fabric), Seals(signer)).catch_up()
        log = int((await fabric.log.state())["bytes"])

        async def archive() -> Span:
            archiver = Archiver(Source(fabric), Archive(), open_store(here.home / f"views-{next(numbers)}").archive)
            begun = time.perf_counter()
            await archiver.catch_up()
            places.append(archiver.path)
            return Span(amount, time.perf_counter() - begun)

        async with here.raw() as raw:
            stream = raw.jetstream(timeout=PATIENCE)
            found = await rates(
                {"raw": raw_consumer(stream, f"{NAMESPACE}.>", amount), "archive": archive}, rounds=rounds
            )
        verified = await rates(
            {"seals": _verifying(fabric, places[-1], signer.public), "log": _comparing(fabric, places[-1])},
            rounds=rounds,
        )
    finally:
        await fabric.aclose()
    size = await asyncio.to_thread(_size, places[-1])
    ratio = found["archive"].ratio_to(found["raw"])
    table = Table(f"archive of a log of {amount:,} events", ("events a second",))
    table.add("raw pull consumer, decodes only", found["raw"].typical, ratio=1.0)
    table.add("archive", found["archive"].typical, ratio=ratio, targets=[Target(ratio, "≥", 0.6, "× raw")])
    rate = verified["seals"].typical
    table.add("audit verify of the archive", rate, targets=[Target(rate, "≥", 100_000, "a second")])
    table.add("compared with the log", verified["log"].typical)
    table.add("size", targets=[Target(size / log, "≤", 0.25, "× the log")])
    table.remarks.append(
        f"{log / amount:.0f} bytes an event in the log, as the server counts them, uncompressed; "
        f"{size / amount:.0f} in the archive"
    )
    return table


def _verifying(fabric: Fabric, path: Path, key: str) -> Callable[[], Any]:
    async def verify() -> Span:
        begun = time.perf_counter()
        verdict = (await check_archive(path, by=fabric, trusted=[key])).verdict
        if not verdict.intact or verdict.unsealed:
            raise RuntimeError(f"the archive is not what was sealed: {verdict}")
        return Span(verdict.events, time.perf_counter() - begun)

    return verify


def _comparing(fabric: Fabric, path: Path) -> Callable[[], Any]:
    async def compare() -> Span:
        begun = time.perf_counter()
        verdict = await Archiver(Source(fabric), Archive(), path).verify()
        if not verdict.equal:
            raise RuntimeError(f"the archive is not what the log says: {verdict}")
        return Span(verdict.rows, time.perf_counter() - begun)

    return compare


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.parquet"))
