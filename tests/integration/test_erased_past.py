"""What was erased is gone from the past, too: it is absent there, never an envelope, and does not come back."""

import pytest

from agentfield import Memory
from agentfield.memory.time_travel.revert import Reverting
from tests.support.objects import LARGE

SECRET = "ada@example.org"


@pytest.fixture
async def user(memory: Memory) -> Memory:
    """Return the memory of one user's session, in a namespace where sessions are personal."""
    await memory.set_personal(["session"])
    return memory.session("user-1")


async def destroy_keys(memory: Memory) -> None:
    """Make everything personal unreadable without a delete: what an erasure is between two of its steps."""
    fabric = await memory._fabric()
    for stored in await fabric.keys.stored([">"]):
        await fabric.keys.destroy(stored)


async def test_a_past_read_gives_what_is_erased_as_absent(user: Memory) -> None:
    await user.set("email", SECRET)
    then = await user.set_many({"name": SECRET, "large": LARGE})
    past = user.as_of(then)
    assert await past.get_many(["email", "name", "large"]) == {"email": SECRET, "name": SECRET, "large": LARGE}
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    await user.set("email", "new")
    for view in (past, user.as_of(then)):
        assert await view.get("email", "absent") == "absent"
        assert await view.entry("large") is None
        assert not await view.exists("name")
        assert await view.get_many(["email", "name", "large"]) == {}
        assert [entry async for entry in view.items()] == []
        assert [key async for key in view.keys()] == []
    assert await user.as_of(await user.set("last", 1)).get("email") == "new"


async def test_the_history_of_an_erased_session_can_be_read_backwards(user: Memory) -> None:
    await user.set("email", SECRET)
    await user.set("email", "newer")
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    await user.set("email", "after")
    events = [event async for event in user.history("email", reverse=True)]
    assert [(event.data, event.previous_data, event.erased) for event in events] == [
        ("after", None, False),
        (None, None, False),
        (None, None, True),
        (None, None, True),
    ]


async def test_a_diff_compares_personal_values_and_shows_none_that_is_erased(user: Memory) -> None:
    before = await user.set_many({"email": SECRET, "same": [1], "gone": 1})
    await user.set("same", [1])
    await user.set("email", "newer")
    await user.delete("gone")
    diff = await user.diff("*", before)
    assert [(change.key, change.before and change.before.value) for change in diff.changes] == [
        ("email", SECRET),
        ("gone", 1),
    ]
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    assert not await user.diff("*", before)
    await user.set("email", "new")
    (added,) = (await user.diff("*", before)).added
    assert (added.before, added.after and added.after.value) == (None, "new")


async def test_a_revert_brings_personal_values_back_readable_and_encrypted_as_the_new_events_that_they_are(
    user: Memory,
) -> None:
    then = await user.set_many({"email": SECRET, "large": LARGE})
    await user.set("email", "newer")
    await user.delete("large")
    reverted = await user.revert("*", then)
    assert len(reverted.changes) == 2
    assert (await user.get("email"), await user.get("large")) == (SECRET, LARGE)
    fabric = await user._fabric()
    records = [record async for record in fabric.log.read([f"{fabric.subjects.namespace}.memory.>"], start=then + 1)]
    assert all(SECRET.encode() not in record.payload for record in records)
    assert not await user.revert("*", then)


async def test_a_revert_leaves_alone_what_cannot_be_brought_back(user: Memory) -> None:
    then = await user.set("email", SECRET)
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    assert not await user.revert("*", then)
    revision = await user.set("email", "new")
    later = await user.set("later", 1)
    reverted = await user.revert("*", then)
    assert [change.key for change in reverted.changes.removed] == ["later"]
    assert len(reverted.changes) == 1
    entry = await user.entry("email")
    assert entry is not None
    assert (entry.value, entry.revision) == ("new", revision)
    assert reverted.revision is not None
    assert reverted.revision > later


async def test_what_is_erased_while_it_is_reverted_does_not_come_back(
    user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = await user.set("email", SECRET)
    await user.delete("email")
    plan = Reverting._steps

    async def planned(self: Reverting, *args: object) -> object:
        steps = await plan(self, *args)  # type: ignore[arg-type]
        if steps:
            await destroy_keys(user)
        return steps

    monkeypatch.setattr(Reverting, "_steps", planned)
    reverted = await user.revert("email", then)
    assert (reverted.revision, len(reverted.changes)) == (None, 0)
    assert not await user.exists("email")


async def test_a_revert_of_more_keys_than_fit_a_batch_with_the_checks_of_their_data_keys_goes_through(
    memory: Memory,
) -> None:
    await memory.set_personal(patterns=["user_*"])
    scope = memory.session("s")
    then = await scope.set_many({f"user_{number}": number for number in range(600)})
    await scope.clear()
    assert len((await scope.revert("*", then)).changes) == 600
    assert len([key async for key in scope.keys()]) == 600
