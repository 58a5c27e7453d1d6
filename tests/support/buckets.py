"""What a stock NATS client sees in a bucket: the ordinary KV API of nats-py, nothing of ours."""

import nats
from nats.js.kv import KeyValue


async def contents(url: str, bucket: str) -> dict[str, bytes]:
    """Every key of a bucket that has a value, with its value."""
    entries = await _entries(url, bucket)
    return {entry.key: entry.value or b"" for entry in entries if entry.operation not in ("DEL", "PURGE")}


async def markers(url: str, bucket: str) -> set[str]:
    """The keys of a bucket that hold nothing but the mark of their deletion."""
    return {entry.key for entry in await _entries(url, bucket) if entry.operation in ("DEL", "PURGE")}


async def _entries(url: str, bucket: str) -> list[KeyValue.Entry]:
    client = await nats.connect(url)
    try:
        watcher = await (await client.jetstream().key_value(bucket)).watchall()
        entries = []
        while (entry := await watcher.updates(timeout=10)) is not None:  # type: ignore[no-untyped-call]
            entries.append(entry)  # None stands between what there is and what will come
        await watcher.stop()  # type: ignore[no-untyped-call]
        return entries
    finally:
        await client.close()
