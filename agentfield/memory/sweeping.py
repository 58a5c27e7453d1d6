"""Sweeping: taking old delete markers out of the buckets, so that these stay as small as the live state.

Owns: one self-renewing timer a bucket, which carries how far the last sweep came. The log is never touched. A marker is
purged only up to its own position in the bucket, so a value written since is safe.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from agentfield.codec import is_delete
from agentfield.fabric.bucket import Bucket
from agentfield.fabric.fabric import Fabric
from agentfield.scope import RESOLUTION

logger = logging.getLogger("agentfield.sweep")

SWEEP = "sweep"
INTERVAL = timedelta(hours=1)
"""How often a bucket is swept, and how long a marker stays for those who watch the bucket."""
_AT_ONCE = 50


async def ensure_sweeps(fabric: Fabric, interval: timedelta = INTERVAL) -> None:
    """Start the timer of every bucket that has none; any number of processes may race to do it."""
    running = await fabric.timers.names(SWEEP)
    for kind in RESOLUTION:
        if f"{SWEEP}.{kind}" not in running:
            await _again(fabric, kind, 0, interval)


async def sweep(fabric: Fabric, kind: str, payload: bytes, interval: timedelta = INTERVAL) -> int:
    """Purge the markers of one bucket that are older than the interval, set its next timer, return how many went."""
    checkpoint = int(payload or b"0")
    bucket = Bucket(fabric.connection, f"{fabric.subjects.namespace}-{kind}")
    horizon = fabric.log.now() - int(interval.total_seconds() * 1_000_000_000)
    count = 0
    purges: list[asyncio.Future[None]] = []
    async for record in bucket.read(checkpoint + 1):
        if record.timestamp > horizon:
            break
        checkpoint = record.sequence
        if is_delete(record):
            purges.append(asyncio.ensure_future(bucket.purge(record.subject, record.sequence)))
            count += 1
        if len(purges) >= _AT_ONCE:
            await asyncio.gather(*purges)
            purges.clear()
    await asyncio.gather(*purges)
    await _again(fabric, kind, checkpoint, interval)
    if count:
        logger.info("bucket %s: purged %d old delete markers", bucket.name, count)
    return count


async def _again(fabric: Fabric, kind: str, checkpoint: int, interval: timedelta) -> None:
    at = fabric.log.now() + int(interval.total_seconds() * 1_000_000_000)
    await fabric.timers.schedule(f"{SWEEP}.{kind}", at, str(checkpoint).encode())
