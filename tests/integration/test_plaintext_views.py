"""Views that hold personal values in plain hear of every erasure, while they run and after they were away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentfield import Erasure, InvalidInputError, Memory, Scope, connect
from agentfield.memory import views
from agentfield.pattern import Pattern
from tests.support import NatsServer, eventually

SECRET = "ada@example.org"


@pytest.fixture
async def user(memory: Memory) -> Memory:
    await memory.set_personal(["session"])
    user = memory.session("user-1")
    await user.set("email", SECRET)
    return user


def noting(heard: list[str]) -> Callable[[Erasure], Awaitable[None]]:
    async def drop(erasure: Erasure) -> None:
        heard.append(erasure.id)

    return drop


async def test_a_view_that_runs_is_told_before_the_receipt_is_written(memory: Memory, user: Memory) -> None:
    view = {(Scope("session", "user-1"), "email"): SECRET, (Scope("session", "user-2"), "email"): "bob"}

    async def drop(erasure: Erasure) -> None:
        for scope, key in [each for each in view if erasure.concerns(*each)]:
            del view[scope, key]

    async with memory.plaintext_view("timeline", drop):
        receipt = await memory.erase(scope="session", scope_id="user-1")
        assert list(view.values()) == ["bob"]
    assert (receipt.views, receipt.complete) == ({"timeline": "dropped"}, True)


async def test_a_view_that_was_away_hears_of_it_when_it_is_kept_again(memory: Memory, user: Memory) -> None:
    heard: list[str] = []
    async with memory.plaintext_view("timeline", noting(heard)):
        pass
    receipt = await memory.erase(scope="session", scope_id="user-1")
    assert (receipt.views, receipt.complete) == ({"timeline": "not running"}, False)
    assert heard == []
    async with memory.plaintext_view("timeline", noting(heard)):
        assert heard == [receipt.id]
    async with memory.plaintext_view("timeline", noting(heard)):
        assert heard == [receipt.id]


async def test_a_view_that_could_not_start_hears_of_it_again(memory: Memory, user: Memory) -> None:
    async with memory.plaintext_view("timeline", noting([])):
        pass
    receipt = await memory.erase(scope="session", scope_id="user-1")

    async def fails(_: Erasure) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        async with memory.plaintext_view("timeline", fails):
            pass
    heard: list[str] = []
    async with memory.plaintext_view("timeline", noting(heard)):
        assert heard == [receipt.id]


async def test_a_view_that_fails_is_named_in_the_receipt(
    memory: Memory, user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Erasure) -> None:
        raise RuntimeError("the disk is full")

    async def hangs(_: Erasure) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(views, "PATIENCE", 0.3)
    async with memory.plaintext_view("broken", fails), memory.plaintext_view("stuck", hangs):
        receipt = await memory.erase(scope="session", scope_id="user-1")
    assert (receipt.views, receipt.complete) == ({"broken": "failed", "stuck": "told"}, False)


async def test_a_view_that_failed_once_is_told_of_that_again_before_the_next(memory: Memory, user: Memory) -> None:
    heard: list[str] = []
    broken = True

    async def drop(erasure: Erasure) -> None:
        if broken:
            raise RuntimeError("the disk is full")
        heard.append(erasure.id)

    async with memory.plaintext_view("timeline", drop):
        first = await memory.erase(scope="session", scope_id="user-1")
        broken = False
        second = await memory.erase(scope="session", scope_id="user-2")
    assert (first.views, second.views) == ({"timeline": "failed"}, {"timeline": "dropped"})
    assert heard == [first.id, second.id]


async def test_a_view_that_was_disconnected_is_told_when_it_is_connected_again(
    fresh_server: NatsServer, namespace: str
) -> None:
    heard: list[str] = []
    async with (
        connect(fresh_server.url, namespace=namespace, name="keeper") as keeper,
        connect(fresh_server.url, namespace=namespace) as memory,
    ):
        await memory.set_personal(["session"])
        async with keeper.plaintext_view("timeline", noting(heard)):
            fabric = await memory._fabric()
            target = Erasure("e-1", Pattern.parse("*"), (("session", "user-1"),))
            await views.notify(fabric, target)  # what an eraser leaves whom the view cannot hear
            assert heard == []
            await fresh_server.restart()
            await eventually(lambda: heard == ["e-1"], within=20, what="the view hears of it")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "x" * 65])
async def test_a_name_that_cannot_be_a_views_is_refused(memory: Memory, name: str) -> None:
    with pytest.raises(InvalidInputError, match="view name"):
        async with memory.plaintext_view(name, noting([])):
            pass


async def test_an_erasure_concerns_what_it_was_about(memory: Memory, user: Memory) -> None:
    heard: list[Erasure] = []

    async def drop(erasure: Erasure) -> None:
        heard.append(erasure)

    async with memory.plaintext_view("timeline", drop):
        await memory.erase("user_*_email")
        await memory.erase(scope="session", scope_id="user-1")
    by_pattern, by_scope = heard
    here, there = Scope("session", "user-1"), Scope("global", "global")
    assert by_pattern.concerns(here, "user_1_email")
    assert by_pattern.concerns(there, "user_1_email")
    assert not by_pattern.concerns(there, "user_1_name")
    assert by_scope.concerns(here, "anything")
    assert not by_scope.concerns(Scope("session", "user-2"), "anything")
