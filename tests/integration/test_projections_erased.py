"""What is erased goes from the views as well: at once from those that run, from others before anything else."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from agentfield import Erasure, Event, Memory, ProjectionError, Scope, connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.personal.policies import Policies
from agentfield.memory import views
from agentfield.pattern import Pattern
from projections import Projection, Runner, Source, open_store
from projections.erasures import Erasures, owed, owed_elsewhere
from projections.source import Batch, Feed
from projections.stores import Directory, Stores
from projections.timeline import Timeline
from projections.view import Head, View
from tests.support import NatsServer, eventually
from tests.support.projecting import Chain, checkpoint_in, connected_to, rows
from tests.support.searching import files_with

SECRET = secrets.token_hex(40)
NEEDLE = SECRET[:32].encode()


class Kept(Projection):
    """Every value, and the last of each key, which is replaced in its place."""

    name = "kept"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE kept (revision BIGINT, scope TEXT, scope_id TEXT, key TEXT, data TEXT)")
        view.execute("CREATE TABLE newest (key TEXT PRIMARY KEY, data TEXT)")

    def apply(self, event: Event, view: Any) -> None:
        data = None if event.data is None else str(event.data)
        view.execute(
            "INSERT INTO kept VALUES (?, ?, ?, ?, ?)", (event.revision, event.scope, event.scope_id, event.key, data)
        )
        view.execute("INSERT OR REPLACE INTO newest VALUES (?, ?)", (event.key, data))


class InDuck(Kept):
    store = "duckdb"


class InBucket(Projection):
    name = "kept"
    store = "bucket"

    async def apply(self, event: Event, view: Any) -> None:
        view.put(event.key, event.data)


class Forgetting(Kept):
    """Takes out rows by itself."""

    called: list[str]

    def __init__(self) -> None:
        self.called = []

    def erase(self, erasure: Erasure, view: Any) -> None:
        self.called.append(erasure.id)
        if self.store == "sqlite":  # some builds of SQLite overwrite what is deleted by themselves, others do not
            view.execute("PRAGMA secure_delete = OFF")
        found = view.execute("SELECT DISTINCT scope, scope_id, key FROM kept").fetchall()
        for scope, scope_id, key in found:
            if erasure.concerns(Scope.of(scope, scope_id), key):
                view.execute("DELETE FROM kept WHERE scope = ? AND scope_id = ? AND key = ?", (scope, scope_id, key))
                view.execute("DELETE FROM newest WHERE key = ?", (key,))


class ForgettingInDuck(Forgetting):
    store = "duckdb"


@pytest.fixture
def source(fabric: Fabric) -> Source:
    return Source(fabric)


@pytest.fixture
def store(source: Source, tmp_path: Path) -> Stores:
    return Stores(source, open_store(tmp_path / "views"))


@pytest.fixture
async def user(memory: Memory) -> Memory:
    """Return a user's session with a secret in it, in a namespace where sessions are personal; others keep theirs."""
    await memory.set_personal(["session"])
    await memory.session("user-2").set("other", "bob")
    user = memory.session("user-1")
    for number in range(20):
        await user.set(f"note_{number}", f"{SECRET}{number}")
        await user.set("last", f"{SECRET}{number}")
    await user.set("last", "harmless")
    return user


@asynccontextmanager
async def running(runner: Runner, until: Callable[[], Awaitable[object]]) -> AsyncIterator[asyncio.Task[None]]:
    """Run it during the block, which begins when it has come to something."""
    task = asyncio.create_task(runner.run())
    try:
        await eventually(until, within=20, what="the projection runs")
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def head_of(store: Stores) -> Head:
    view = await store.live("kept")
    assert view is not None
    try:
        return await view.head()
    finally:
        await view.aclose()


def at(store: Stores, source: Source) -> Callable[[], Awaitable[bool]]:
    """Whether the view has come to where the log is, and is registered."""

    async def arrived() -> bool:
        if "kept" not in await store.names():
            return False
        registered = await views.registered(source.fabric)
        return bool(registered) and (await head_of(store)).checkpoint >= await source.last() - 1

    return arrived


async def erase(user: Memory) -> dict[str, views.Answer]:
    return (await Memory(user._fabric).erase(scope="session", scope_id="user-1")).views


@pytest.mark.parametrize("kind", [Kept, InDuck, InBucket, Forgetting, ForgettingInDuck])
async def test_a_view_that_runs_has_dropped_it_before_the_receipt_is_written(
    memory: Memory, user: Memory, source: Source, store: Stores, kind: type[Projection]
) -> None:
    runner = Runner(source, kind(), store)
    name = f"kept-{store.identity(kind.store)}"
    async with running(runner, at(store, source)):
        assert kind is InBucket or files_with(store.root, NEEDLE)
        receipt = await memory.erase(scope="session", scope_id="user-1")
        assert (receipt.views, receipt.complete) == ({name: "dropped"}, True)
        assert files_with(store.root, NEEDLE) == []
        last = await memory.session("user-2").set("other", "still here")

        async def goes_on() -> bool:
            return (await head_of(store)).checkpoint >= last

        await eventually(goes_on, within=20, what="the view goes on")
    head = await head_of(store)
    assert head.generation == (1 if issubclass(kind, Forgetting) else 2)
    assert head.erased == await views.last_notice(source.fabric)
    assert issubclass(kind, Forgetting) or (await Runner(source, kind(), store).verify()).equal
    assert files_with(store.root, b"bob") or kind is InBucket


async def test_a_view_in_a_bucket_leaves_nothing_on_the_server(
    fresh_server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    async with connect(fresh_server.url, namespace=namespace) as memory:
        await memory.set_personal(["session"])
        await memory.session("user-1").set("note", SECRET)
        await memory.session("user-2").set("other", "bob-in-a-bucket")
        source = Source(await memory._fabric())
        store = Stores(source, open_store(tmp_path / "views"))
        await Runner(source, InBucket(), store).catch_up()
        assert files_with(fresh_server.store, NEEDLE)
        assert await erase(memory.session("user-1")) == {"kept-bucket": "not running"}
        await Runner(source, InBucket(), store).catch_up()
        await eventually(lambda: files_with(fresh_server.store, NEEDLE) == [], within=10, what="the server is done")
        assert files_with(fresh_server.store, b"bob-in-a-bucket")


async def test_a_view_that_does_not_run_owes_it_until_it_is_opened_again(
    memory: Memory, user: Memory, source: Source, store: Stores, tmp_path: Path
) -> None:
    runner = Runner(source, Kept(), store)
    await runner.catch_up()
    name = f"kept-{store.identity('sqlite')}"
    assert await erase(user) == {name: "not running"}
    assert await owed(source, await head_of(store)) == 1
    assert await owed_elsewhere(source, set()) == {name: 1}
    assert await owed_elsewhere(source, {name}) == {}
    await erase(memory.session("user-3"))
    assert await owed(source, await head_of(store)) == 2
    assert files_with(store.root, NEEDLE)
    await runner.catch_up()
    assert files_with(store.root, NEEDLE) == []
    head = await head_of(store)
    assert (await owed(source, head), await owed_elsewhere(source, set()), head.generation) == (0, {}, 2)
    await runner.catch_up()
    assert (await head_of(store)).generation == 2
    await Erasures(source, "kept", name).unregister()
    assert await erase(user) == {}


async def test_a_view_that_cannot_hold_it_is_not_made_anew(
    memory: Memory, user: Memory, source: Source, store: Stores
) -> None:
    class Elsewhere(Kept):
        scopes = ("global", Scope("session", "user-2"))

    runner = Runner(source, Elsewhere(), store)
    await runner.catch_up()
    await erase(user)
    await runner.catch_up()
    head = await head_of(store)
    assert (head.generation, await owed(source, head)) == (1, 0)


async def test_a_paused_view_drops_it_all_the_same_and_stays_paused(
    user: Memory, source: Source, store: Stores
) -> None:
    runner = Runner(source, Kept(), store)
    async with running(runner, at(store, source)):
        await runner.pause(True)
        answers = await erase(user)
    assert list(answers.values()) == ["dropped"]
    assert files_with(store.root, NEEDLE) == []
    assert (await head_of(store)).paused


@pytest.mark.parametrize("kind", [Kept, Forgetting])
async def test_a_paused_view_of_an_earlier_version_drops_it_too(
    user: Memory, source: Source, store: Stores, kind: type[Kept]
) -> None:
    newer: Projection = type("Newer", (kind,), {"version": 2})()
    runner = Runner(source, Kept(), store)
    await runner.catch_up()
    await runner.pause(True)
    stands = (await head_of(store)).checkpoint
    assert await Runner(source, newer, store).catch_up() == stands
    assert (await head_of(store)).version == 1
    await erase(user)
    await Runner(source, newer, store).catch_up()
    assert files_with(store.root, NEEDLE) == []
    head = await head_of(store)
    assert (head.paused, head.version, await owed(source, head)) == (True, 2, 0)


async def test_an_erasure_that_was_not_heard_is_dropped_when_the_connection_is_back(
    memory: Memory, user: Memory, source: Source, store: Stores
) -> None:
    async with running(Runner(source, Kept(), store), at(store, source)):
        fabric = await memory._fabric()
        for stored in await fabric.keys.stored([">"]):
            await fabric.keys.destroy(stored)
        await views.notify(fabric, Erasure("e-1", Pattern.parse("*"), (("session", "user-1"),)))
        assert files_with(store.root, NEEDLE)
        transport = source.fabric.connection.client._transport
        assert transport is not None
        transport.write(b"NONSENSE\r\n")  # the server hangs up
        await eventually(lambda: not files_with(store.root, NEEDLE), within=20, what="the view has dropped it")


async def test_what_is_declared_personal_while_a_projection_runs_is_dropped_as_well(
    memory: Memory, source: Source, store: Stores
) -> None:
    await memory.set("other", 1)

    async def begun() -> bool:
        return "kept" in await store.names() and (await head_of(store)).checkpoint > 0

    async with running(Runner(source, Kept(), store), begun):
        assert await views.registered(source.fabric) == {}
        await memory.set_personal(["session"])
        await memory.session("user-1").set("note", SECRET)
        await eventually(at(store, source), within=20, what="the view has registered itself")
        assert files_with(store.root, NEEDLE)
        assert list((await erase(memory.session("user-1"))).values()) == ["dropped"]
        assert files_with(store.root, NEEDLE) == []


async def test_what_was_decrypted_before_an_erasure_is_not_added_after_it(
    user: Memory, source: Source, store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else drops what was erased while this one has a batch in its hands that still holds it."""
    runner = Runner(source, Forgetting(), store)
    await store.directory.create("sqlite", await runner._generations.new_head(), runner._generations.prepare)
    until = Feed.until
    between = True

    async def slow(self: Feed, target: int, most: Callable[[], int]) -> AsyncIterator[Batch]:
        nonlocal between
        async for batch in until(self, target, most):
            if between:
                between = False
                assert any(event.data and SECRET in str(event.data) for event in batch.events)
                await erase(user)
                async with Runner(source, Forgetting(), store).opened():
                    pass  # which marks the view as one that owes nothing
            yield batch

    monkeypatch.setattr(Feed, "until", slow)
    await runner.catch_up()
    assert files_with(store.root, NEEDLE) == []
    assert rows(store.root / "kept.sqlite", "SELECT count(*) FROM kept WHERE scope_id = 'user-2'") == [(1,)]


@pytest.mark.parametrize("kind", [Forgetting, ForgettingInDuck])
async def test_a_file_that_could_not_be_freed_of_it_is_freed_the_next_time(
    user: Memory, source: Source, store: Stores, kind: type[Forgetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process were killed between taking the rows out and writing the file anew."""
    await Runner(source, kind(), store).catch_up()
    await erase(user)
    with monkeypatch.context() as patch:
        for place in ("sqlite.SqliteView", "duckdb.DuckView"):
            patch.setattr(f"projections.stores.{place}.scrub", dies)
        with pytest.raises(KeyboardInterrupt):
            await Runner(source, kind(), store).catch_up()
    assert await owed(source, await head_of(store)) == 1
    projection = kind()
    await Runner(source, projection, store).catch_up()
    assert len(projection.called) == 1
    assert files_with(store.root, NEEDLE) == []
    assert await owed(source, await head_of(store)) == 0


def dies(*_: Any) -> None:
    raise KeyboardInterrupt


async def test_a_file_is_freed_only_when_nobody_reads_it_as_it_was(
    user: Memory, source: Source, store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.stores.sqlite._BUSY", 0.2)
    await Runner(source, Forgetting(), store).catch_up()
    await erase(user)
    with closing(connected_to(store.root / "kept.sqlite")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM kept").fetchone() != (0,)
        with pytest.raises(ProjectionError, match="somebody reads it"):
            await Runner(source, Forgetting(), store).catch_up()
        assert await owed(source, await head_of(store)) == 1
    await Runner(source, Forgetting(), store).catch_up()
    assert files_with(store.root, NEEDLE) == []


async def test_a_hook_that_raises_is_done_without(
    user: Memory, source: Source, store: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Forgetting):
        def erase(self, erasure: Erasure, view: Any) -> None:
            super().erase(erasure, view)
            raise RuntimeError("no such column")

    await Runner(source, Raising(), store).catch_up()
    await erase(user)
    with caplog.at_level(logging.WARNING, "agentfield.projections"):
        await Runner(source, Raising(), store).catch_up()
    assert "cannot take out what was erased" in caplog.text
    assert (await head_of(store)).generation == 2
    assert files_with(store.root, NEEDLE) == []


async def test_a_hook_may_be_async(user: Memory, source: Source, store: Stores) -> None:
    class Later(Forgetting):
        async def erase(self, erasure: Erasure, view: Any) -> None:  # type: ignore[override]  # either is allowed
            await asyncio.sleep(0)
            super().erase(erasure, view)

    projection = Later()
    await Runner(source, projection, store).catch_up()
    await erase(user)
    await erase(user)
    await Runner(source, projection, store).catch_up()
    assert (len(projection.called), (await head_of(store)).generation) == (2, 1)
    assert files_with(store.root, NEEDLE) == []


async def test_one_that_cannot_fold_what_was_erased_fails_and_owes_it_still(
    user: Memory, source: Source, store: Stores
) -> None:
    class Careless(Kept):
        def apply(self, event: Event, view: Any) -> None:
            if event.operation == "set":
                assert event.data is not None, "there was always data"
            super().apply(event, view)

    async with running(Runner(source, Careless(), store), at(store, source)) as task:
        assert list((await erase(user)).values()) == ["failed"]
        with pytest.raises(ProjectionError, match="there was always data"):
            await task
    assert await owed(source, await head_of(store)) == 1


async def test_what_a_rebuild_and_a_comparison_left_behind_goes_as_well(
    user: Memory, source: Source, store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(source, Forgetting(), store)
    await runner.catch_up()
    building = await store.create("sqlite", await runner._generations.new_head(), runner._generations.prepare)
    scratch = await store.scratch("sqlite", await runner._generations.new_head(), runner._generations.prepare)
    for view in (building, scratch):
        await _fold(runner, view)
    scratch.temporary = False  # type: ignore[attr-defined]  # whoever compared them was killed
    for view in (building, scratch):
        await view.aclose()
    old = await store.directory.live("kept")
    assert old is not None
    shutil.copy(old.path, old.path.with_name("0.sqlite"))  # as if it was killed when it had put another in its place
    assert len(files_with(store.root / "kept", NEEDLE)) >= 4
    await erase(user)
    await runner.catch_up()
    assert files_with(store.root, NEEDLE) == []
    assert await store.building("kept") is None


async def _fold(runner: Runner, view: View) -> None:
    from projections.folding import Folder

    await runner._fold(Folder(runner.projection, view, await view.head()), await runner.source.last())


async def test_a_rebuild_that_was_begun_before_an_erasure_is_begun_anew(
    user: Memory, source: Source, store: Stores
) -> None:
    runner = Runner(source, Kept(), store)
    await runner.catch_up()
    building = await store.create("sqlite", await runner._generations.new_head(), runner._generations.prepare)
    await _fold(runner, building)
    await building.aclose()
    await erase(user)
    await runner.rebuild()
    assert files_with(store.root, NEEDLE) == []
    assert await owed(source, await head_of(store)) == 0
    assert await owed_elsewhere(source, set()) == {}


async def test_keys_that_a_process_remembers_are_not_used_for_a_view_that_is_made_anew(
    user: Memory, source: Source, store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcement of the erasure did not reach this process."""

    async def silent(self: Policies) -> None:
        pass

    runner = Runner(source, Kept(), store)
    await runner.catch_up()
    assert source.fabric.keys._remembered
    monkeypatch.setattr(Policies, "announce", silent)
    await erase(user)
    assert source.fabric.keys._remembered
    await runner.catch_up()
    assert files_with(store.root, NEEDLE) == []


async def test_the_timeline_finds_no_word_of_it_any_more(user: Memory, source: Source, tmp_path: Path) -> None:
    store: Directory = open_store(tmp_path)
    await user.set("note", "rumpelstiltskin")
    found = "SELECT count(*) FROM words WHERE words MATCH 'rumpelstiltskin'"
    await Runner(source, Timeline(), store).catch_up()
    assert rows(store.root / "timeline.sqlite", found) == [(1,)]
    await erase(user)
    await Runner(source, Timeline(), store).catch_up()
    assert rows(store.root / "timeline.sqlite", found) == [(0,)]
    assert files_with(store.root, b"rumpelstiltskin", NEEDLE) == []


async def test_where_nothing_is_personal_nothing_is_registered(memory: Memory, source: Source, store: Stores) -> None:
    await memory.set("item_1", 1)
    async with running(Runner(source, Chain(), store), lambda: _there(store)):
        pass
    assert await source.last() == 2  # the event, and the runner's lease


async def _there(store: Stores) -> bool:
    return checkpoint_in(store.root / "chain.sqlite") > 0
