"""What a server has to say before it is used, and what counts while it cannot say it."""

import pytest

from agentfield.errors import UnavailableError
from agentfield.fabric.wire.recognising import Proof, Recognition, StrangerError

RIGHT, WRONG, OPEN = b"right", b"wrong", b""
PROOF = Proof("question", {RIGHT: True, WRONG: False, OPEN: None}.__getitem__)


async def is_used(recognition: Recognition, answer: bytes | None, **info: str) -> bool:
    async def ask(subject: str) -> bytes | None:
        assert subject == "question"
        return answer

    try:
        recognition.check_name(info)
        await recognition.check_proof(ask, info)
    except StrangerError:
        return False
    return True


async def test_before_there_is_a_proof_any_server_is_used() -> None:
    assert await is_used(Recognition(), WRONG, server_name="a")


@pytest.mark.parametrize("place", [{"server_name": "a"}, {"server_name": "a", "cluster": "c"}])
async def test_the_answer_decides_whatever_the_name(place: dict[str, str]) -> None:
    recognition = Recognition()
    recognition.know_by(PROOF, place)
    assert await is_used(recognition, RIGHT, server_name="b")
    assert not await is_used(recognition, WRONG, **place)


@pytest.mark.parametrize("answer", [OPEN, None])
async def test_while_the_answer_is_open_the_name_of_the_server_or_of_its_cluster_counts(answer: bytes | None) -> None:
    recognition = Recognition()
    recognition.know_by(PROOF, {"server_name": "a", "cluster": "c"})
    assert await is_used(recognition, answer, server_name="b", cluster="c")
    assert not await is_used(recognition, answer, server_name="a", cluster="d")
    assert not await is_used(recognition, answer, server_name="a")
    assert await is_used(recognition, RIGHT, server_name="e")
    assert await is_used(recognition, answer, server_name="e")


async def test_where_a_record_is_kept_its_name_is_a_must_and_a_lost_record_leaves_the_last() -> None:
    records: list[tuple[str, str] | None] = [("nats://a:1", "a"), ("nats://a:2", "b"), None]

    async def find() -> tuple[str, str] | None:
        if not records:
            raise UnavailableError("the home cannot be read")
        return records.pop(0)

    recognition = Recognition(find)
    recognition.know_by(PROOF, {"server_name": "a"})
    assert await recognition.locate() == "nats://a:1"
    assert await is_used(recognition, RIGHT, server_name="a")
    assert await recognition.locate() == "nats://a:2"
    assert not await is_used(recognition, RIGHT, server_name="a")
    for _ in range(2):
        assert await recognition.locate() == "nats://a:2"
        assert await is_used(recognition, OPEN, server_name="b")
        assert not await is_used(recognition, WRONG, server_name="b")
