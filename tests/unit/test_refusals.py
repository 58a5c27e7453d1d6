"""What can never work is refused before anything is asked of a server: no connection is opened for it."""

import copy
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from agentfield.agent import Agent
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.memory import Memory, connect

LONG = "k" * 513
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001


async def nobody() -> Fabric:
    """The way to a fabric that nothing may take."""
    raise AssertionError("a server was asked")


MEMORY: Any = Memory(nobody, agent="tester", actor_id="tester")


async def taken(items: Any) -> None:
    async for _ in items:
        raise AssertionError("something came")


KEYED: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "get": lambda key: MEMORY.get(key),
    "get cached": lambda key: MEMORY.get(key, consistency="cached"),
    "entry": lambda key: MEMORY.entry(key),
    "exists": lambda key: MEMORY.exists(key),
    "get_many": lambda key: MEMORY.get_many(["fine", key]),
    "set": lambda key: MEMORY.set(key, 1),
    "create": lambda key: MEMORY.create(key, 1),
    "delete": lambda key: MEMORY.delete(key),
    "update": lambda key: MEMORY.update(key, lambda value: value),
    "increment": lambda key: MEMORY.increment(key),
    "set_many": lambda key: MEMORY.set_many({"fine": 1, key: 1}),
    "get of the past": lambda key: MEMORY.as_of(1).get(key),
    "entry of the past": lambda key: MEMORY.as_of(1).entry(key),
    "exists in the past": lambda key: MEMORY.as_of(1).exists(key),
    "get_many of the past": lambda key: MEMORY.as_of(1).get_many(["fine", key]),
}
PATTERNED: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "items": lambda pattern: taken(MEMORY.items(pattern)),
    "keys": lambda pattern: taken(MEMORY.keys(pattern)),
    "history": lambda pattern: taken(MEMORY.history(pattern)),
    "watch": lambda pattern: taken(MEMORY.watch(pattern)),
    "items of the past": lambda pattern: taken(MEMORY.as_of(1).items(pattern)),
    "keys of the past": lambda pattern: taken(MEMORY.as_of(1).keys(pattern)),
    "diff": lambda pattern: MEMORY.diff(pattern, 1),
    "revert": lambda pattern: MEMORY.revert(pattern, 1, scope="global"),
}


@pytest.mark.parametrize("key", ["", "a*", "a>b", "a\nb", "\ud800", LONG, 7, None], ids=ascii)
@pytest.mark.parametrize("operation", KEYED)
async def test_an_illegal_key(operation: str, key: Any) -> None:
    with pytest.raises(InvalidInputError):
        await KEYED[operation](key)


@pytest.mark.parametrize("pattern", ["", "a>b", "a\nb", "\ud800", LONG, 7], ids=ascii)
@pytest.mark.parametrize("operation", PATTERNED)
async def test_an_illegal_pattern(operation: str, pattern: Any) -> None:
    with pytest.raises(InvalidInputError):
        await PATTERNED[operation](pattern)


@pytest.mark.parametrize(
    ("scope", "scope_id"),
    [("planet", None), ("session", None), ("session", ""), (None, "x"), ("global", "x"), (7, "x")],
)
@pytest.mark.parametrize(
    "operation",
    [
        lambda **scope: MEMORY.get("k", **scope),
        lambda **scope: MEMORY.entry("k", **scope),
        lambda **scope: MEMORY.exists("k", **scope),
        lambda **scope: MEMORY.get_many(["k"], **scope),
        lambda **scope: taken(MEMORY.items(**scope)),
        lambda **scope: MEMORY.set("k", 1, **scope),
        lambda **scope: MEMORY.set_many({"k": 1}, **scope),
        lambda **scope: MEMORY.delete("k", **scope),
        lambda **scope: MEMORY.as_of(1).get("k", **scope),
        lambda **scope: MEMORY.as_of(1).get_many(["k"], **scope),
        lambda **scope: taken(MEMORY.as_of(1).items(**scope)),
        lambda **scope: MEMORY.revert("k", 1, **scope),
    ],
    ids=[
        *("get", "entry", "exists", "get_many", "items", "set", "set_many", "delete"),
        *("past get", "past get_many", "past items", "revert"),
    ],
)
async def test_an_illegal_scope(operation: Any, scope: Any, scope_id: Any) -> None:
    with pytest.raises(InvalidInputError):
        await operation(scope=scope, scope_id=scope_id)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: MEMORY.set("k", object()),
        lambda: MEMORY.set("k", float("nan")),
        lambda: MEMORY.create("k", {1}),
        lambda: MEMORY.set_many({"k": 2**64}),
        lambda: MEMORY.set_many({}),
        lambda: MEMORY.set_many({str(number): 1 for number in range(1001)}),
        lambda: MEMORY.set("k", 1, ttl=0),
        lambda: MEMORY.set("k", 1, ttl=-1),
        lambda: MEMORY.set("k", 1, ttl="soon"),
        lambda: MEMORY.set("k", 1, ttl=float("nan")),
        lambda: MEMORY.create("k", 1, ttl=-1),
        lambda: MEMORY.set_many({"k": 1}, ttl=-1),
        lambda: MEMORY.set("k", 1, if_revision=-1),
        lambda: MEMORY.set("k", 1, if_revision=True),
        lambda: MEMORY.set("k", 1, event_id="a b"),
        lambda: MEMORY.delete("k", if_revision="1"),
        lambda: MEMORY.increment("k", by="1"),
        lambda: MEMORY.get_many("keys"),
        lambda: MEMORY.get("k", consistency="lucky"),
        lambda: MEMORY.clear(),
        lambda: taken(MEMORY.history(limit=0)),
        lambda: taken(MEMORY.history(since=NAIVE)),
        lambda: taken(MEMORY.history(until="yesterday")),
        lambda: taken(MEMORY.history(since=-1)),
        lambda: taken(MEMORY.history(writer="")),
        lambda: MEMORY.diff("k", NAIVE),
        lambda: MEMORY.diff("k", 1, "now"),
        lambda: MEMORY.diff("k", 1, scope="planet"),
        lambda: MEMORY.revert("k", -1),
        lambda: MEMORY.revert("k_*", 1),
        lambda: MEMORY.as_of(1).get_many("keys"),
        lambda: taken(MEMORY.watch(start="yesterday")),
        lambda: taken(MEMORY.watch(start=NAIVE)),
        lambda: taken(MEMORY.watch(start=-1)),
        lambda: MEMORY.set_many(["k"]),
        lambda: MEMORY.set("k", 1, fence="lock"),
        lambda: MEMORY.get_many(None),
        lambda: MEMORY.as_of(1).get_many(None),
        lambda: MEMORY.update("k", 5),
        lambda: taken(MEMORY.history(limit="1")),
        lambda: taken(MEMORY.history(limit=True)),
        lambda: taken(MEMORY.history(writer=5)),
        lambda: taken(MEMORY.watch(start=2**64)),
    ],
    ids=range(43),
)
async def test_an_illegal_argument(operation: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(InvalidInputError):
        await operation()


async def test_a_watch_that_cannot_begin_there_names_what_can_be_said() -> None:
    with pytest.raises(InvalidInputError, match="'new', 'current', 'all', an aware datetime, or a revision"):
        await taken(MEMORY.watch(start="foo"))


def test_a_handler_without_a_pattern_is_refused_and_not_silently_deaf() -> None:
    async def react(event: object) -> None:
        raise AssertionError("something came")

    with pytest.raises(InvalidInputError, match=r"on_change without a pattern for 'react'.*@app\.memory\.on_change\("):
        MEMORY.on_change(react)


@pytest.mark.parametrize("point", [NAIVE, -1, True, "yesterday", 1.5, None, timedelta(seconds=-1)], ids=repr)
def test_what_is_no_point_in_the_past(point: Any) -> None:
    with pytest.raises(InvalidInputError):
        MEMORY.as_of(point)


@pytest.mark.parametrize("span", ["1", 0, -1, float("nan"), True, 10**400], ids=repr)
def test_what_is_no_span_of_time(span: Any) -> None:
    with pytest.raises(InvalidInputError):
        MEMORY.lock("name", timeout=span)
    with pytest.raises(InvalidInputError):
        MEMORY.offline(timeout=span)
    with pytest.raises(InvalidInputError):
        MEMORY.on_change("k", name="h", timeout=span)(lambda event: None)


@pytest.mark.parametrize("ttl", ["1", None, 0, -1, float("nan"), True, 10**400, 0.5], ids=repr)
def test_what_is_no_time_for_a_lease(ttl: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"(a|the) lease"):
        MEMORY.lock("name", ttl=ttl)


@pytest.mark.parametrize("count", ["1", 0, -1, 1.5, float("nan"), True, 2**64], ids=repr)
def test_what_is_no_count(count: Any) -> None:
    with pytest.raises(InvalidInputError):
        MEMORY.offline(limit=count)
    with pytest.raises(InvalidInputError):
        MEMORY.on_change("k", name="h", concurrency=count)(lambda event: None)


@pytest.mark.parametrize("span", ["5", None, 0, -1, float("nan"), float("inf"), True], ids=repr)
async def test_what_is_no_timeout_of_a_connection(span: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"timeout=.*seconds, above 0"):
        await connect("nats://127.0.0.1:1", timeout=span).__aenter__()


@pytest.mark.parametrize("given", [5, b"nats://127.0.0.1:1", ["nats://127.0.0.1:1"]], ids=repr)
async def test_what_is_no_text_where_a_server_or_a_name_is_wanted(given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"nats_url=.*a text such as"):
        await connect(given).__aenter__()
    with pytest.raises(InvalidInputError, match=r"nats_url=.*a text such as"):
        Agent("agent", nats_url=given)
    with pytest.raises(InvalidInputError, match="name must be a string"):
        await connect("nats://127.0.0.1:1", name=given).__aenter__()


async def test_connect_that_is_taken_for_the_memory_itself() -> None:
    connecting: Any = connect("nats://127.0.0.1:1")
    with pytest.raises(
        InvalidInputError, match=r"has no get\(\): write `async with agentfield.connect\(\) as memory:`"
    ):
        await connecting.get("key")
    with pytest.raises(InvalidInputError, match="entered, not awaited: write `async with"):
        await connecting
    with pytest.raises(InvalidInputError, match="takes `async with`"), connecting:
        pass
    assert not hasattr(connecting, "no_such_thing")
    assert copy.copy(connecting) is not connecting
