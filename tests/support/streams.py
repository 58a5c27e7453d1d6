"""What tests leave in a server that goes on: every namespace has streams of its own, which a crash makes it recover."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import nats


def delete_all_now(url: str) -> None:
    """Delete every stream of the server or cluster; blocks, and may be called with or without a running loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(_delete_all(url))).result()


async def _delete_all(url: str) -> None:
    client = await nats.connect(url, connect_timeout=10)
    try:
        jetstream = client.jetstream(timeout=30)
        while streams := await jetstream.streams_info():
            for info in streams:
                await jetstream.delete_stream(info.config.name or "")
    finally:
        await client.close()
