"""What events are compared with: a pull consumer by nats-py that decodes the payload of each and does nothing else."""

from __future__ import annotations

import itertools
import time

import orjson
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from benchmarks.measuring import Burst, Span
from benchmarks.surroundings import LOG, PATIENCE

_FETCHED = 1000


def raw_consumer(stream: JetStreamContext, subject_filter: str, amount: int, *, start: int = 1) -> Burst:
    """Take so many events of the log from a sequence on, each time by a new consumer; acknowledge in floors."""
    numbers = itertools.count()

    async def consume() -> Span:
        name = f"raw-{next(numbers)}"
        config = ConsumerConfig(
            durable_name=name,
            ack_policy=AckPolicy.ALL,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            filter_subject=subject_filter,
            max_ack_pending=4 * _FETCHED,
        )
        await stream.add_consumer(LOG, config)
        subscription = await stream.pull_subscribe_bind(name, LOG)
        begun = time.perf_counter()
        count = 0
        while count < amount:
            messages = await subscription.fetch(_FETCHED, timeout=PATIENCE)
            for message in messages:
                orjson.loads(message.data)
            count += len(messages)
            await messages[-1].ack()
        span = Span(count, time.perf_counter() - begun)
        await stream.delete_consumer(LOG, name)
        return span

    return consume
