"""Inside a handler, the same write has the same id whenever it is made because of the same event, and no other has."""

import random

from hypothesis import given
from hypothesis import strategies as st

from agentfield.effects import Effects


def effects(**changes: object) -> Effects:
    identity = {"agent": "billing", "handler": "react", "event_id": "e1", "revision": 7, "subject": "ns.memory.k"}
    return Effects(**{**identity, **changes})  # type: ignore[arg-type]


writes = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([b"1", b"2"])))


@given(writes)
def test_a_process_that_runs_the_handler_anew_gives_each_write_the_id_it_had(made: list[tuple[str, bytes]]) -> None:
    def ids() -> list[str]:
        fresh = effects()
        return [fresh.of_write(place, content) for place, content in made]

    assert ids() == ids()
    assert len(set(ids())) == len(made), "no two of them are one write"


@given(writes, st.randoms())
def test_in_which_order_several_places_are_written_does_not_matter(
    made: list[tuple[str, bytes]], chance: random.Random
) -> None:
    def ids(order: list[str]) -> dict[str, list[str]]:
        fresh = effects()
        left = {place: [content for each, content in made if each == place] for place in "abc"}
        found: dict[str, list[str]] = {}
        for place in order:
            found.setdefault(place, []).append(fresh.of_write(place, left[place].pop(0)))
        return found

    order = [place for place, _ in made]
    other = list(order)
    chance.shuffle(other)
    assert ids(order) == ids(other)


def test_an_id_depends_on_the_event_the_handler_the_place_and_the_content() -> None:
    other = [
        effects(agent="mail"),
        effects(handler="on_paid"),
        effects(event_id="e2"),
        effects(revision=8),
    ]
    ids = {each.of_write("k", b"1") for each in (effects(), *other)}
    ids |= {effects().of_write("l", b"1"), effects().of_write("k", b"2"), effects().of_update("k", b"1")}
    assert len(ids) == 8
    assert effects(agent="a", handler="bc").of_write("k") != effects(agent="ab", handler="c").of_write("k")


def test_an_id_can_stand_in_a_header() -> None:
    id = effects(event_id="é" * 100).of_write("ключ", "значение")
    assert (len(id), id.isascii(), id.isalnum()) == (32, True, True)


def test_after_an_error_a_run_that_does_the_same_gives_each_write_the_id_it_had() -> None:
    run = effects()
    first = [run.of_write("k", b"working"), run.of_write("k", b"done")]
    run.again()
    assert [run.of_write("k", b"working"), run.of_write("k", b"done")] == first
    assert run.of_write("k", b"more") not in first


async def test_after_an_error_what_the_failed_run_overwrote_is_restored_at_the_end_and_nothing_else() -> None:
    restored: list[tuple[str, str]] = []

    async def restore(stale: str, id: str) -> None:
        restored.append((stale, id))

    def write(run: Effects, place: str, content: bytes) -> str:
        id = run.of_write(place, content)
        run.restorable(id, restore)
        return id

    run = effects()
    working, failed = write(run, "status", b"working"), write(run, "status", b"failed")
    write(run, "other", b"1")
    await run.restore()
    assert not restored, "nothing has failed"
    run.again()
    assert write(run, "status", b"working") == working
    write(run, "other", b"1")
    await run.restore()
    ((stale, id),) = restored
    assert stale == failed
    assert id not in (working, failed)
    restored.clear()
    run.again()
    write(run, "status", b"working")
    write(run, "status", b"done")
    await run.restore()
    assert not restored, "the last thing that it says has just been written"


def test_after_an_error_the_nth_update_of_a_key_is_the_nth_update_of_it() -> None:
    run = effects()
    first = [run.of_update("total", b"+1") for _ in range(3)]
    run.again()
    assert [run.of_update("total", b"+1") for _ in range(3)] == first
    assert len(set(first)) == 3


def test_a_refused_write_does_not_count() -> None:
    lost, quick = effects(), effects()
    for _ in range(3):
        lost.refused(lost.of_write("k", b"based on what was old", conditional=True))
    assert lost.of_write("k", b"1") == quick.of_write("k", b"1")
    lost.refused(lost.of_write("k", b"again", conditional=True))
    assert lost.of_write("k", b"2") == quick.of_write("k", b"2")


async def test_a_refused_write_is_nothing_that_was_overwritten() -> None:
    async def restore(stale: str, id: str) -> None:
        raise AssertionError((stale, id))

    run = effects()
    run.of_write("k", b"1")
    run.refused(run.of_write("k", b"2", conditional=True))
    run.again()
    run.restorable(run.of_write("k", b"1"), restore)
    await run.restore()


def test_a_refused_write_that_others_followed_leaves_their_ids_alone() -> None:
    run = effects()
    refused = run.of_write("k", b"1", conditional=True)
    second = run.of_write("k", b"2")
    run.refused(refused)
    assert run.of_write("k", b"2") not in (refused, second)


def test_the_ids_of_a_batch_are_all_other_ones_if_one_of_its_writes_is() -> None:
    _, one = effects().of_batch([("a", [b"1"]), ("b", [b"1"])])
    _, same = effects().of_batch([("a", [b"1"]), ("b", [b"1"])])
    _, other = effects().of_batch([("a", [b"1"]), ("b", [b"2"])])
    assert one == same
    assert len({*one, *other}) == 4
    assert effects().of_write("a", b"1") not in one
