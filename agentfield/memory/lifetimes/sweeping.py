"""Sweeping: taking away what nobody needs any more, so that the server holds little more than log and live state.

That is old delete markers in the buckets, values whose events never came, and the stages of replays that were killed.

Owns: one self-renewing timer a bucket, which carries how far the last sweep came. The log is never touched. A marker is
purged only up to its own position in the bucket, so a value written since is safe. A sweep passes every event once, an
hour after it was stored, and so it is also where a value is found that lost its timer: its writer died between a write
that took longer than its ttl and setting the timer anew.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from agentfield.codec import Record, expires_at_ns, is_delete
from agentfield.errors import AgentFieldError, DecodeError
from agentfield.fabric.bucket import Bucket
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.stages import remove_abandoned
from agentfield.memory.orphans import OBJECTS, sweep_objects
from agentfield.memory.timing import set_timers
from agentfield.scope import GLOBAL, RESOLUTION

logger = logging.getLogger("agentfield.sweep")

SWEEP = "sweep"
STAGES = "stages"
"""The name of the sweep for what killed replays have left, wherever on the server, beside those of the buckets."""
INTERVAL = timedelta(hours=1)
"""How often a bucket is swept, and how long a marker stays for those who watch the bucket."""
_AT_ONCE = 50
_AT_MOST = 20_000
"""Markers purged in one go (some 10 s of work); the rest follows at once, in a turn of its own."""


async def ensure_sweeps(fabric: Fabric, interval: timedelta = INTERVAL) -> None:
    """Start the timer of every bucket that has none; any number of processes may race to do it."""
    running = await fabric.timers.names(SWEEP)
    for kind in (*RESOLUTION, OBJECTS, STAGES):
        if f"{SWEEP}.{kind}" not in running:
            await _again(fabric, kind, 0, interval)


async def sweep(fabric: Fabric, kind: str, payload: bytes, interval: timedelta = INTERVAL) -> int:
    """Purge the markers of one bucket that are older than the interval, set its next timer, return how many went.

    What goes from the object store are values of that age whose events never came; stages go as a whole.
    """
    if kind == OBJECTS:
        count, checkpoint, done = await sweep_objects(fabric, int(payload) if payload.isdigit() else 0, interval)
        await _again(fabric, kind, checkpoint, interval if done else timedelta(0))
        return count
    if kind == STAGES:
        count = await _sweep_stages(fabric)
        await _again(fabric, kind, 0, interval)
        return count
    if kind not in RESOLUTION:
        logger.warning("no bucket is called %r: not swept", kind)
        return 0
    bucket = Bucket(fabric.connection, f"{fabric.subjects.namespace}-{kind}")
    last = await bucket.last_sequence()
    checkpoint = int(payload) if payload.isdigit() else 0
    if checkpoint > last:  # the bucket has been made anew, and counts from one again
        checkpoint = 0
    horizon = fabric.log.now() - _nanoseconds(interval)
    count = 0
    markers: list[Record] = []
    async for record in bucket.read(checkpoint + 1):
        if record.timestamp > horizon or count + len(markers) >= _AT_MOST:
            break
        checkpoint = record.sequence
        if is_delete(record):
            markers.append(record)
        else:
            await _remind(fabric, kind, bucket, record)
        if len(markers) >= _AT_ONCE:
            count += await _purge(bucket, markers)
    count += await _purge(bucket, markers)
    await _again(fabric, kind, checkpoint, interval if count < _AT_MOST else timedelta(0))
    if count:
        logger.info("bucket %s: purged %d old delete markers", bucket.name, count)
    return count


async def _sweep_stages(fabric: Fabric) -> int:
    try:
        return len(await remove_abandoned(fabric.connection))
    except AgentFieldError as error:  # it may be forbidden, and must not keep the worker from anything else
        logger.debug("what killed replays may have left stays: %s", error)
        return 0


async def _purge(bucket: Bucket, markers: list[Record]) -> int:
    """Purge these; all have been tried when this returns or raises. The list is empty afterwards."""
    tried = [bucket.purge(record.subject, record.sequence) for record in markers]
    markers.clear()
    for outcome in await asyncio.gather(*tried, return_exceptions=True):
        if outcome is not None:
            raise outcome
    return len(tried)


async def _remind(fabric: Fabric, kind: str, bucket: Bucket, record: Record) -> None:
    """Set the timer of a value that will end, should it have none. It may have one: then the worker is asked twice."""
    try:
        expires = expires_at_ns(record)
    except DecodeError:
        return
    if expires is not None:
        rest = record.subject.removeprefix(f"$KV.{bucket.name}.")
        token = f"{GLOBAL.token}." if kind == GLOBAL.kind else ""
        await set_timers(fabric, [(f"{fabric.subjects.namespace}.memory.{kind}.{token}{rest}", expires)])


async def _again(fabric: Fabric, kind: str, checkpoint: int, interval: timedelta) -> None:
    await fabric.timers.schedule(f"{SWEEP}.{kind}", fabric.log.now() + _nanoseconds(interval), str(checkpoint).encode())


def _nanoseconds(interval: timedelta) -> int:
    return int(interval.total_seconds() * 1_000_000_000)
