"""Personal values: encrypted before they leave the process, and no different to whoever may read them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.js.errors import KeyNotFoundError
from pydantic import BaseModel

from agentfield import Agent, ConflictError, DecodeError, Event, InvalidInputError, Memory, UnavailableError, connect
from agentfield.codec import encrypted_by
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.fabric.personal.bucket import KeyBucket
from agentfield.fabric.personal.policies import Policies
from agentfield.header import EVENT_HEADER
from agentfield.memory.watch import CaughtUp
from agentfield.privacy import PrivacyPolicy
from tests.support import NatsServer, eventually
from tests.support.objects import LARGE

SECRET = "ada@example.org"


@pytest.fixture
async def user(memory: Memory) -> Memory:
    """Return the memory of one user's session, in a namespace where sessions are personal."""
    await memory.set_personal(["session"], ["user_*_email"])
    return memory.session("user-1")


async def payloads(memory: Memory) -> list[bytes]:
    fabric = await memory._fabric()
    return [record.payload async for record in fabric.log.read([f"{fabric.subjects.namespace}.memory.>"])]


async def test_without_a_policy_nothing_is_encrypted_and_no_key_is_made(memory: Memory) -> None:
    await memory.session("user-1").set("email", SECRET)
    assert await payloads(memory) == [json.dumps(SECRET).encode()]
    assert not await memory.personal()
    assert await (await memory._fabric()).keys.stored([">"]) == []


async def test_without_a_policy_no_operation_asks_about_keys(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(self: KeyBucket, *_: object) -> Any:
        raise AssertionError("a round trip that nobody needs")

    await memory.set("warm", 1)
    monkeypatch.setattr(KeyBucket, "_leader_get", asked)
    session = memory.session("user-1")
    await session.set("email", SECRET)
    await session.set_many({"a": 1, "large": LARGE})
    assert await session.get("email") == await session.get("email", consistency="cached") == SECRET
    assert len([entry async for entry in session.items()]) == 3
    assert len([event async for event in session.history()]) == 3


@pytest.mark.smoke
async def test_a_personal_value_is_the_same_to_every_read_and_never_in_the_log(
    server: NatsServer, namespace: str, user: Memory
) -> None:
    await user.set("email", SECRET)
    await user.set_many({"name": SECRET, "large": LARGE})
    await user.create("count", 1)
    assert await user.increment("count") == 2
    async with user.transaction() as tx:
        assert await tx.get("email") == SECRET
        tx.set("note", SECRET)
        assert await tx.get("note") == SECRET
    async with user.offline() as buffer:
        buffer.set("later", SECRET)
    async with connect(server.url, namespace=namespace) as other:
        theirs = other.session("user-1")
        for consistency in ("strong", "session", "cached", "cached", "linearizable"):
            assert await theirs.get("email", consistency=consistency) == SECRET
        assert await theirs.get_many(["name", "note"]) == {"name": SECRET, "note": SECRET}
        assert await theirs.get("large") == LARGE
        assert {entry.key: entry.value async for entry in theirs.items()} == {
            **dict.fromkeys(("email", "name", "note", "later"), SECRET),
            "large": LARGE,
            "count": 2,
        }
        assert [event.data async for event in theirs.history("count")] == [1, 2]
    for payload in await payloads(user):
        assert SECRET.encode() not in payload


async def test_stock_tools_show_an_envelope(server: NatsServer, namespace: str, user: Memory) -> None:
    await user.set("email", SECRET)
    client = await nats.connect(server.url)
    try:
        bucket = await client.jetstream().key_value(f"{namespace}-session")

        async def shown() -> Any:
            try:
                return json.loads((await bucket.get("user-1.email")).value or b"")
            except KeyNotFoundError:
                return None

        envelope = (await eventually(shown, what="the bucket has it"))["agentfield_encrypted"]
        assert set(envelope) == {"cipher", "key", "nonce", "data"}
    finally:
        await client.close()


async def test_a_pattern_makes_single_keys_of_any_scope_personal(memory: Memory) -> None:
    await memory.set_personal(patterns=["user_*_email"])
    fabric = await memory._fabric()
    for where in (memory.global_scope, memory.session("user-1")):
        record = await fabric.log.at(await where.set("user_1_email", SECRET))
        assert record is not None
        encryption = encrypted_by(record)
        assert encryption is not None
        assert (encryption.per, await where.get("user_1_email")) == ("key", SECRET)
        assert await fabric.log.at(await where.set("user_1_name", "Ada")) is not None
    assert (await payloads(memory)).count(b'"Ada"') == 2
    assert len(await fabric.keys.stored([">"])) == 2


async def test_running_processes_learn_a_new_policy_at_once(server: NatsServer, namespace: str, memory: Memory) -> None:
    async with connect(server.url, namespace=namespace) as other:
        fabric = await other._fabric()
        await other.set("warm", 1)
        await memory.set_personal(["actor"])

        async def learned() -> bool:
            return fabric.keys.policies.known == PrivacyPolicy.of(["actor"])

        await eventually(learned, within=2.0, what="the other process knows")
        revision = await other.set("k", SECRET, scope="actor", scope_id="a")
        record = await fabric.log.at(revision)
        assert record is not None
        assert encrypted_by(record) is not None
        await memory.set_personal()
        await eventually(_says_nothing(fabric), within=2.0, what="the other process knows again")
        assert await other.get("k", scope="actor", scope_id="a") == SECRET


def _says_nothing(fabric: Fabric) -> Callable[[], Awaitable[bool]]:
    async def says() -> bool:
        return not fabric.keys.policies.known

    return says


async def test_a_process_that_missed_the_news_learns_them_by_itself(
    server: NatsServer, namespace: str, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.fabric.personal.policies.INTERVAL", 0.1)
    async with connect(server.url, namespace=namespace) as other:
        policies = (await memory._fabric()).keys.policies
        monkeypatch.setattr(Policies, "announce", Policies.present)
        await policies.set(PrivacyPolicy.of(["session"]))

        async def learned() -> bool:
            return bool((await other._fabric()).keys.policies.known)

        await eventually(learned, within=5.0, what="the other process has looked")


async def test_a_policy_set_at_the_same_time_is_a_conflict_and_the_first_one_counts(memory: Memory) -> None:
    several = [PrivacyPolicy.of([], [f"p{number}_*"]) for number in range(4)]
    outcomes = await asyncio.gather(*map((await memory._fabric()).keys.policies.set, several), return_exceptions=True)
    won = [policy for policy, outcome in zip(several, outcomes, strict=True) if outcome is None]
    assert all(outcome is None or isinstance(outcome, ConflictError) for outcome in outcomes), outcomes
    assert await memory.personal() == won[-1]


async def test_first_writers_of_a_scope_agree_on_its_key(server: NatsServer, namespace: str, user: Memory) -> None:
    async def write(number: int) -> None:
        async with connect(server.url, namespace=namespace) as memory:
            await memory.session("new").set(f"k_{number}", number)

    await asyncio.gather(*(write(number) for number in range(12)))
    fabric = await user._fabric()
    assert len(await fabric.keys.stored(["session.new"])) == 1
    read = {entry.key: entry.value async for entry in Memory(user._fabric).session("new").items()}
    assert read == {f"k_{number}": number for number in range(12)}


async def test_the_key_of_a_scope_is_fetched_once_for_many_reads(
    server: NatsServer, namespace: str, user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await user.set_many({f"k_{number}": number for number in range(50)})
    asked: list[str] = []
    look = KeyBucket.key

    async def counted(self: KeyBucket, tokens: str) -> Any:
        asked.append(tokens)
        return await look(self, tokens)

    monkeypatch.setattr(KeyBucket, "key", counted)
    async with connect(server.url, namespace=namespace) as other:
        theirs = other.session("user-1")
        await asyncio.gather(*(theirs.get(f"k_{number}") for number in range(50)))
        assert len([entry async for entry in theirs.items()]) == 50
    assert asked == ["session.user-1"]


async def test_a_key_is_forgotten_soon_even_if_no_erasure_was_heard_of(
    user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.fabric.personal.keys.KEY_LIFETIME", 0.2)
    keys = (await user._fabric()).keys
    keys.forget()
    await user.set("email", SECRET)
    assert keys._remembered

    async def forgotten() -> bool:
        return not keys._remembered

    await eventually(forgotten, within=5.0, what="no key is in memory any more")
    assert await user.get("email") == SECRET


async def test_handlers_and_watchers_get_the_plain_value_and_the_one_before(
    server: NatsServer, namespace: str, user: Memory
) -> None:
    heard: list[tuple[Any, Any]] = []
    agent = Agent("reader", nats_url=server.url, namespace=namespace)

    @agent.memory.on_change("email", scope="session")
    async def react(event: Event) -> None:
        heard.append((event.data, event.previous_data))

    async with agent:
        await user.set("email", "old")
        await user.set("email", SECRET)

        async def both() -> bool:
            return len(heard) == 2

        await eventually(both, what="the handler has run twice")
    assert heard == [("old", None), (SECRET, "old")]
    seen = []
    async for item in user.watch("email", start="current"):
        if isinstance(item, CaughtUp):
            break
        seen.append((item.data, item.previous_data))
    assert seen == [(SECRET, "old")]


class Profile(BaseModel):
    email: str


async def test_schemas_and_expectations_hold_for_personal_values(user: Memory) -> None:
    user.schema("profile", Profile)
    revision = await user.set("profile", Profile(email=SECRET))
    assert await user.get("profile") == Profile(email=SECRET)
    with pytest.raises(ConflictError) as conflict:
        await user.set("profile", Profile(email="new"), if_revision=revision + 5)
    assert conflict.value.actual == revision
    again = await user.set("profile", Profile(email="new"), if_revision=revision)
    with pytest.raises(ConflictError):
        await user.create("profile", Profile(email="newer"))
    async with user.lock("profile") as lock:
        assert await user.set("profile", Profile(email="locked"), fence=lock, if_revision=again) > again


async def test_a_repeated_write_is_stored_once(user: Memory) -> None:
    first = await user.set("email", SECRET, event_id="once")
    assert await user.set("email", SECRET, event_id="once") == first
    assert len([event async for event in user.history("email")]) == 1


async def test_a_ciphertext_moved_to_another_key_is_damage_and_no_value(user: Memory) -> None:
    revision = await user.set("email", SECRET)
    fabric = await user._fabric()
    record = await fabric.log.at(revision)
    assert record is not None
    headers = {"Nats-Msg-Id": "moved", EVENT_HEADER: record.headers[EVENT_HEADER]}
    await fabric.log.append(record.subject.replace("email", "mail"), record.payload, headers)
    with pytest.raises(DecodeError, match="belongs to another event"):
        await user.get("mail")


async def test_an_outage_of_the_keys_is_never_an_erasure(user: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    await user.set("email", SECRET)
    fabric = await user._fabric()
    fabric.keys.forget()
    monkeypatch.setattr(fabric.keys._bucket, "timeout", 0.3)
    monkeypatch.setattr(fabric.keys._bucket, "stream", "KV_elsewhere")
    with pytest.raises(UnavailableError):
        await user.get("email", "absent")
    with pytest.raises(UnavailableError):
        await user.set("email", SECRET)


async def test_keys_that_were_lost_are_no_erasure_and_nothing_is_written_in_plain(
    server: NatsServer, namespace: str, user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await user.set("email", SECRET)
    fabric = await user._fabric()
    await api(fabric.connection, f"STREAM.DELETE.{fabric.topology.keys.name}", {})
    async with connect(server.url, namespace=namespace) as memory:  # makes the bucket anew, with nothing in it
        other = memory.session("user-1")
        for refused in (
            lambda: other.get("email", "absent"),
            lambda: other.set("email", SECRET),
            lambda: memory.erase(scope="session", scope_id="user-1"),
            lambda: memory.personal(),
        ):
            with pytest.raises(UnavailableError, match=r"keys of personal data are lost.*personal set"):
                await refused()
        fabric.keys.forget()
        monkeypatch.setattr("agentfield.fabric.personal.policies._MOMENT", 0.0)
        with pytest.raises(UnavailableError, match="are lost"):
            await user.get("email", "absent")
        await memory.set_personal(["session"])
        assert await other.get("email", "absent") == "absent"
        await other.set("email", SECRET)
        assert await other.get("email") == SECRET
    assert not any(SECRET.encode() in payload for payload in await payloads(user))


@pytest.mark.parametrize(("entry", "said"), [("policy.1", "upgrade"), ("policy.theirs", "did not write")])
async def test_a_policy_that_cannot_be_understood_is_refused_and_never_taken_for_none(
    server: NatsServer, namespace: str, memory: Memory, entry: str, said: str
) -> None:
    fabric = await memory._fabric()
    await fabric.connection.request(f"$KV.{namespace}-keys.{entry}", b'{"v":9}', {}, timeout=2.0)
    with pytest.raises(InvalidInputError, match=said):
        async with connect(server.url, namespace=namespace):
            pass


async def test_the_bucket_of_keys_can_neither_be_purged_nor_written_over(user: Memory, namespace: str) -> None:
    await user.set("email", SECRET)
    fabric = await user._fabric()
    (stored,) = await fabric.keys.stored(["session.user-1"])
    answer = await fabric.connection.request(
        f"$KV.{namespace}-keys.data.session.user-1", b"{}", {"KV-Operation": "PURGE"}, timeout=2.0
    )
    assert json.loads(answer.payload)["error"]
    with pytest.raises(Exception, match="purge"):
        await api(fabric.connection, f"STREAM.PURGE.{fabric.topology.keys.name}", {})
    assert await fabric.keys.stored(["session.user-1"]) == [stored]


async def test_without_the_package_personal_values_are_refused_in_one_sentence_and_others_are_not(
    user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await user.set("email", SECRET)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    stored = await payloads(user)
    for refused in (user.set("email", "new"), user.get("email"), user.set("report", LARGE)):
        with pytest.raises(InvalidInputError, match=r'pip install "agentfield\[privacy\]"'):
            await refused
    assert await payloads(user) == stored
    await Memory(user._fabric).set("plain", 1, scope="global")
    assert await Memory(user._fabric).get("plain", scope="global") == 1
