"""A note never blocks, and is either stored or logged at WARNING with its text."""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest

from agentfield import Agent, InvalidInputError
from agentfield.agent.notes import Notes
from agentfield.execution import current, from_headers
from agentfield.fabric.fabric import Fabric
from tests.support import NatsServer, eventually

MakeAgent = Callable[..., Agent]


@pytest.fixture
def make(server: NatsServer, namespace: str) -> MakeAgent:
    """Return a function that makes agents of this test's namespace."""

    def make(name: str, **options: Any) -> Agent:
        return Agent(name, **{"nats_url": server.url, "namespace": namespace, **options})

    return make


class Stored:
    """A note as it lies in the stream."""

    def __init__(self, headers: dict[str, str], payload: bytes) -> None:
        self.headers = headers
        self.body = json.loads(payload)


async def stored(server: NatsServer, namespace: str, agent: str) -> list[Stored]:
    client = await nats.connect(server.url)
    try:
        context, subject = client.jetstream(), f"{namespace}.notes.{agent}"
        counts = (await context.stream_info(f"{namespace.upper()}_NOTES", subjects_filter=subject)).state.subjects
        subscription = await context.subscribe(subject, ordered_consumer=True)
        found = []
        for _ in range((counts or {}).get(subject, 0)):
            message = await subscription.next_msg(timeout=5)
            found.append(Stored(message.headers or {}, message.data))
        return found
    finally:
        await client.close()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "agentfield.notes" and record.levelno >= logging.WARNING
    ]


@pytest.mark.smoke
async def test_a_note_is_logged_and_stored_with_its_execution(
    make: MakeAgent, server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentfield.notes")
    app = make("app")

    @app.reasoner()
    async def work() -> str:
        app.note("📊 half done", tags=["analysis"])
        execution = current.get()
        assert execution is not None
        return execution.execution_id

    async with app:
        execution_id = await app.call("app.work", session_id="user-42")
    (note,) = await stored(server, namespace, "app")
    assert (note.body["text"], note.body["tags"], note.body["agent"]) == ("📊 half done", ["analysis"], "app")
    execution = from_headers(note.headers)
    assert execution is not None
    assert (execution.execution_id, execution.session_id) == (execution_id, "user-42")
    assert note.headers["Nats-Msg-Id"]
    assert [record.getMessage() for record in caplog.records if "half done" in record.getMessage()] == [
        "app: 📊 half done"
    ]


async def test_many_notes_are_all_stored_in_order_when_the_agent_closes(
    make: MakeAgent, server: NatsServer, namespace: str
) -> None:
    async with make("app") as app:
        for number in range(1_000):
            app.note(str(number))
    notes = await stored(server, namespace, "app")
    assert [note.body["text"] for note in notes] == [str(number) for number in range(1_000)]


async def test_notes_made_before_any_loop_and_in_threads_are_stored(
    make: MakeAgent, server: NatsServer, namespace: str
) -> None:
    app = make("app")
    thread = threading.Thread(target=app.note, args=("before",))
    thread.start()
    thread.join()

    @app.reasoner()
    def work() -> None:
        app.note("in a thread")

    async with app:
        await app.call("app.work")
        await asyncio.to_thread(app.note, "in another")
    notes = await stored(server, namespace, "app")
    assert {note.body["text"] for note in notes} == {"before", "in a thread", "in another"}


async def test_a_note_outside_async_with_connects_by_itself(
    make: MakeAgent, server: NatsServer, namespace: str
) -> None:
    app = make("app")
    app.note("hello")
    await app.aclose()
    assert [note.body["text"] for note in await stored(server, namespace, "app")] == ["hello"]


async def test_a_program_that_just_ends_loses_no_note(server: NatsServer, namespace: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\nfrom agentfield import Agent\napp = Agent('app')\n"
        "async def main():\n    await app.memory.set('a', 1)\n    app.note('the last word')\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"AGENTFIELD_NATS_URL": server.url, "AGENTFIELD_NAMESPACE": namespace}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-X", "dev", "-W", "error", str(program)),
        env=environment,
        cwd=Path(__file__).parents[2],
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert [note.body["text"] for note in await stored(server, namespace, "app")] == ["the last word"]


async def test_notes_made_while_the_server_is_away_are_stored_when_it_is_back(
    fresh_server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Agent("app", nats_url=fresh_server.url, namespace=namespace) as app:
        app.note("before")
        await eventually(lambda: app._presence.notes.delivered == 1)
        await fresh_server.kill()
        for number in range(100):
            app.note(str(number))
        await fresh_server.start()
        await eventually(lambda: app._presence.notes.delivered == 101, within=30)
    texts = [note.body["text"] for note in await stored(fresh_server, namespace, "app")]
    assert sorted(texts) == sorted(["before", *map(str, range(100))])
    assert not warnings_of(caplog)


async def test_what_cannot_be_stored_before_the_end_is_logged_with_its_text(
    fresh_server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Agent("app", nats_url=fresh_server.url, namespace=namespace)
    await app.__aenter__()
    await fresh_server.kill()
    for number in range(3):
        app.note(f"lost {number}")
    await app._presence.notes.aclose(0.2)
    await app.aclose()
    app.note("too late")
    assert [text.rpartition(": ")[2] for text in warnings_of(caplog)] == ["lost 0", "lost 1", "lost 2", "too late"]
    assert app._presence.notes.lost == 4


async def test_more_notes_than_can_wait_are_logged_with_their_text(caplog: pytest.LogCaptureFixture) -> None:
    async def never() -> Fabric:
        await asyncio.Event().wait()
        raise AssertionError

    notes = Notes("app", never, never, capacity=2)
    for number in range(5):
        notes.add(str(number))
    assert [text.rpartition(": ")[2] for text in warnings_of(caplog)] == ["2", "3", "4"]
    assert notes.lost == 3
    await notes.aclose(0.05)
    assert notes.lost == 5


async def test_a_note_too_large_for_the_server_is_logged_and_holds_no_other_up(
    make: MakeAgent, server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with make("app") as app:
        app.note("x" * 2_000_000)
        app.note("small")
    assert [note.body["text"] for note in await stored(server, namespace, "app")] == ["small"]
    assert len(warnings_of(caplog)) == 1


async def test_a_note_never_blocks(make: MakeAgent) -> None:
    app = make("app", nats_url="nats://127.0.0.1:1")
    began = time.monotonic()
    for number in range(1_000):
        app.note(str(number))
    assert time.monotonic() - began < 1
    await app._presence.notes.aclose(0.05)
    await app.aclose()


async def test_what_is_no_text_is_refused(make: MakeAgent) -> None:
    app = make("app")
    for arguments in ((7,), ("text", "tag"), ("text", [1])):
        with pytest.raises(InvalidInputError):
            app.note(*arguments)
