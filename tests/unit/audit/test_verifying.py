"""Whatever is done to a log after it was sealed is found, and the first event concerned is named."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.audit.chain import Stored
from agentfield.audit.comparing import Seen
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import SignedSeal, signed
from agentfield.audit.verifying import Extent, Witness
from tests.support.sealed import SIGNER, STREAM, log, renumbered, sealed, verdict

COUNT = 23
LOG = log(COUNT)
SEALS = sealed(LOG)

places = st.integers(0, COUNT - 1)
FORGED = Stored("test.memory.global.global.forged", 0, 10**18 + 5, b"NATS/1.0\r\n\r\n", b"forged")


def found(messages: Sequence[Stored], seals: Sequence[SignedSeal] = SEALS) -> tuple[str, int] | None:
    """Kind and revision of what is found."""
    result = verdict(messages, seals, extent=Extent(STREAM, 1, 1, max(each.sequence for each in messages)))
    assert result.intact == (result.finding is None)
    return None if result.finding is None else (result.finding.kind, result.finding.sequence)


def test_a_log_that_is_as_it_was_sealed_is_intact_to_its_last_event() -> None:
    result = verdict(LOG, SEALS)
    assert (result.intact, result.first, result.last, result.events, result.seals) == (True, 1, COUNT, COUNT, 5)
    assert (result.last_time, result.unsealed, result.facts, result.whole) == (LOG[-1].timestamp, 0, [], True)
    assert (result.keys, result.trusted_on_first) == ([SIGNER.public], False)


def test_events_after_the_last_seal_are_counted_and_not_vouched_for() -> None:
    result = verdict(LOG, SEALS[:3])
    assert (result.intact, result.last, result.unsealed, result.unsealed_since) == (True, 15, 8, LOG[15].timestamp)
    assert verdict(LOG, []).unsealed == COUNT
    assert verdict([], []).intact


def flipped(content: bytes, bit: int) -> bytes:
    at = bit % (8 * len(content))
    return content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]


@given(places, st.integers(0, 10_000), st.sampled_from(["subject", "timestamp", "headers", "payload"]))
def test_one_flipped_bit_is_found_and_named(at: int, bit: int, part: str) -> None:
    stored = LOG[at]
    changed: dict[str, Stored] = {
        "subject": stored._replace(subject=flipped(stored.subject.encode(), bit).decode("utf-8", "surrogateescape")),
        "timestamp": stored._replace(timestamp=stored.timestamp ^ 1 << bit % 60),
        "headers": stored._replace(headers=flipped(stored.headers, bit)),
        "payload": stored._replace(payload=flipped(stored.payload, bit)),
    }
    messages = [*LOG[:at], changed[part], *LOG[at + 1 :]]
    assert found(messages) == ("changed", at + 1)
    result = verdict(messages, SEALS)
    assert result.finding is not None
    assert result.finding.found == Seen.of(changed[part])
    assert (result.last, result.events) == (at // 5 * 5, at // 5 * 5)


@given(places, places)
def test_a_message_in_anothers_place_is_found(at: int, other: int) -> None:
    messages = list(LOG)
    messages[at] = LOG[other]._replace(sequence=at + 1)
    assert (found(messages) is None) == (at == other)
    if at != other:
        assert verdict(messages, SEALS).finding is not None


@given(places)
def test_one_removed_event_is_found_and_named(at: int) -> None:
    rest = [*LOG[:at], *LOG[at + 1 :]]
    assert found(rest) == ("removed", at + 1)
    assert found(renumbered(rest)) == ("removed", at + 1)


@given(st.integers(0, COUNT - 2), st.integers(1, COUNT))
def test_of_several_removed_events_the_first_is_named(at: int, count: int) -> None:
    rest = [*LOG[:at], *LOG[at + count :]]
    if rest:
        assert found(rest) == ("removed", at + 1)


@given(st.integers(0, COUNT - 1))
def test_one_inserted_event_is_found_and_named(at: int) -> None:
    with_one = renumbered([*LOG[:at], FORGED, *LOG[at:]])
    assert found(with_one) == ("inserted", at + 1)
    copy = [*LOG[:at], FORGED._replace(sequence=at + 1), *LOG[at:]]
    assert found(copy) == ("inserted", at + 1)


@given(st.integers(1, COUNT - 1), places)
def test_a_copy_of_an_event_elsewhere_is_inserted(at: int, of: int) -> None:
    if of < at:
        assert found(renumbered([*LOG[:at], LOG[of], *LOG[at:]])) == ("inserted", at + 1)


@given(places, places)
def test_two_that_changed_places_are_found_and_the_first_place_is_named(one: int, other: int) -> None:
    low, high = sorted((one, other))
    if low == high:
        return
    messages = list(LOG)
    messages[low], messages[high] = messages[high], messages[low]
    result = found(renumbered(messages))
    assert result is not None
    assert result[1] == low + 1
    if high < (low // 5 + 2) * 5:  # within two seals, which is how far it is looked
        assert result == ("reordered", low + 1)


@given(places, places)
def test_an_event_that_was_moved_is_found(one: int, other: int) -> None:
    messages = list(LOG)
    messages.insert(other, messages.pop(one))
    result = found(renumbered(messages))
    assert (result is None) == (one == other)
    if result is not None:
        assert result[1] == min(one, other) + 1


@given(st.permutations(LOG))
def test_any_other_order_is_found(messages: list[Stored]) -> None:
    assert (found(renumbered(messages)) is None) == (messages == LOG)


def test_a_log_that_lost_its_end_names_the_first_that_is_gone() -> None:
    result = verdict(LOG[:12], SEALS)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence, result.last) == ("removed", 13, 10)
    assert "up to revision" in result.finding.detail


def test_of_a_log_that_lost_its_front_the_first_event_that_is_gone_is_named_and_the_rest_is_verified() -> None:
    for first in (4, 6, 11):
        result = verdict(LOG[first - 1 :], SEALS, extent=Extent(STREAM, 1, first, COUNT))
        assert result.finding is not None
        assert (result.finding.kind, result.finding.sequence) == ("removed", 1)
        assert (result.whole, result.first, result.last, result.begins_at) == (False, first, COUNT, first)
        changed = [*LOG[first - 1 : 20], LOG[20]._replace(payload=b"x"), *LOG[21:]]
        result = verdict(changed, SEALS, extent=Extent(STREAM, 1, first, COUNT))
        assert result.finding is not None
        assert (result.finding.kind, result.finding.sequence) == ("changed", 21)
    trimmed_into_a_seal = [LOG[3]._replace(payload=b"x"), *LOG[4:]]
    result = verdict(trimmed_into_a_seal, SEALS, extent=Extent(STREAM, 1, 4, COUNT))
    assert result.finding is not None
    assert result.finding.sequence == 4


def test_a_log_of_which_nothing_is_left_has_lost_everything() -> None:
    result = verdict([], SEALS, extent=Extent(STREAM, 1, COUNT + 1, COUNT))
    assert (result.intact, result.events, result.begins_at) == (False, 0, COUNT + 1)


def test_what_was_missing_when_it_was_sealed_is_a_fact_and_may_not_appear_later() -> None:
    gappy = [each for each in LOG if each.sequence not in (1, 8, 9)]
    seals = sealed(gappy)
    result = verdict(gappy, seals, extent=Extent(STREAM, 1, 2, COUNT))
    assert (result.intact, result.events) == (True, COUNT - 3)
    assert "revision 1: gone from the log already before sealing began" in result.facts
    assert "revision 8 to 9: gone from the log already when this was sealed" in result.facts
    back = [each for each in LOG if each.sequence not in (1, 9)]
    result = verdict(back, seals, extent=Extent(STREAM, 1, 2, COUNT))
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("inserted", 8)


def test_a_stream_that_was_made_anew_is_told_from_a_copy() -> None:
    copied = verdict(LOG, SEALS, extent=Extent(STREAM, 99, 1, COUNT))
    assert (copied.intact, len(copied.facts)) == (True, 1)
    assert "restored, copied or made anew" in copied.facts[0]
    other = [each._replace(timestamp=each.timestamp + 1) for each in LOG]
    anew = verdict(other, SEALS, extent=Extent(STREAM, 99, 1, COUNT))
    assert anew.finding is not None
    assert (anew.finding.kind, anew.finding.sequence, len(anew.facts)) == ("changed", 1, 1)


@pytest.mark.parametrize(("start", "stop", "first", "last"), [(7, 12, 6, 15), (1, 5, 1, 5), (16, None, 16, 23)])
def test_a_range_is_verified_in_whole_seals(start: int, stop: int | None, first: int, last: int) -> None:
    result = verdict(LOG, SEALS, start=start, stop=stop)
    assert (result.first, result.last, result.seals, result.intact) == (first, last, 5, True)
    outside = list(LOG)
    outside[2 if start > 5 else 10] = FORGED
    assert verdict(renumbered(outside), SEALS, start=start, stop=stop).intact
    inside = list(LOG)
    inside[first] = FORGED
    assert not verdict(renumbered(inside), SEALS, start=start, stop=stop).intact


# -- seals ----------------------------------------------------------------------------------------------------------


def _without(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
    return [*seals[:at], *seals[at + 1 :]]


def _altered(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
    body = seals[at].body.replace(b'"first":', b'"first": ')
    return [*seals[:at], seals[at]._replace(body=body), *seals[at + 1 :]]


def _resigned(signer: Signer) -> Callable[[list[SignedSeal], int], list[SignedSeal]]:
    def alter(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
        return [*seals[:at], signed(seals[at].open(), signer), *seals[at + 1 :]]

    return alter


def _swapped(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
    one, other = seals[at], seals[at + 1]
    pair = [other._replace(sequence=one.sequence), one._replace(sequence=other.sequence)]
    return [*seals[:at], *pair, *seals[at + 2 :]]


def _unsigned(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
    return [*seals[:at], SignedSeal.of(at + 1, {}, b"junk"), *seals[at + 1 :]]


def _lying(seals: list[SignedSeal], at: int) -> list[SignedSeal]:
    seal = dataclasses.replace(seals[at].open(), before=bytes(32))
    return [*seals[:at], signed(seal, SIGNER), *seals[at + 1 :]]


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (_without, "missing"),
        (_altered, "its signature does not hold"),
        (_resigned(Signer.generate()), "none of the keys that are trusted"),
        (_swapped, "does not follow the seal before it"),
        (_unsigned, "nobody has signed it"),
        (_lying, "does not go on where the seal before it ends"),
    ],
    ids=["removed", "changed", "other key", "swapped", "junk", "inconsistent"],
)
def test_a_seal_that_was_tampered_with_is_named(
    alter: Callable[[list[SignedSeal], int], list[SignedSeal]], said: str, at: int
) -> None:
    result = verdict(LOG, alter(SEALS, at))
    assert result.seal_fault is not None
    assert said in result.seal_fault
    assert f"seal {at + 1}" in result.seal_fault
    assert (result.intact, result.last, result.seals) == (False, at * 5, at)


def test_a_seal_that_its_own_key_made_anew_is_noticed_by_the_next_one() -> None:
    """Every word of it is right, but for when it was made: it is not the seal that was built upon."""
    other = signed(dataclasses.replace(SEALS[1].open(), sealed=99), SIGNER)
    result = verdict(LOG, [SEALS[0], other, *SEALS[2:]])
    assert result.seal_fault is not None
    assert "seal 3 does not follow the seal before it" in result.seal_fault


def test_a_seal_whose_chain_is_not_that_of_its_digests_is_not_believed() -> None:
    wrong = signed(dataclasses.replace(SEALS[-1].open(), after=bytes(32)), SIGNER)
    result = verdict(LOG, [*SEALS[:-1], wrong])
    assert result.finding is not None
    assert (result.finding.sequence, "its own digests" in result.finding.detail) == (21, True)


def test_without_a_key_that_of_the_first_seal_is_believed_and_no_other() -> None:
    result = verdict(LOG, SEALS, trusted=[])
    assert (result.intact, result.trusted_on_first, result.keys) == (True, True, [SIGNER.public])
    other = Signer.generate()
    result = verdict(LOG, _resigned(other)(SEALS, 3), trusted=[])
    assert result.seal_fault is not None
    assert other.public in result.seal_fault


def test_a_key_can_be_changed_for_another() -> None:
    other = Signer.generate()
    last = signed(dataclasses.replace(SEALS[-1].open()), other)
    result = verdict(LOG, [*SEALS[:-1], last], trusted=[SIGNER.public, other.public])
    assert (result.intact, result.keys) == (True, [SIGNER.public, other.public])


def test_seals_that_are_gone_from_the_end_are_noticed_by_who_has_seen_them() -> None:
    seen = verdict(LOG, SEALS).witness
    assert seen is not None
    assert verdict(LOG, SEALS, witness=seen).intact
    assert verdict(LOG, SEALS, witness=Witness(2, SEALS[1].hash.hex())).intact
    result = verdict(LOG, SEALS[:3], witness=seen)
    assert result.seal_fault is not None
    assert "seals 4 to 5 are gone" in result.seal_fault
    replaced = verdict(LOG, SEALS, witness=seen._replace(hash=seen.hash[::-1]))
    assert replaced.seal_fault is not None
    assert "not the one that was there" in replaced.seal_fault


def test_of_a_selection_what_is_there_is_verified_and_nothing_is_missed() -> None:
    some = [each for each in LOG if each.sequence % 3 == 0]
    assert verdict(some, SEALS, selection=True).intact
    for at, stored in enumerate(some):
        for changed in (stored._replace(payload=b"x"), stored._replace(sequence=stored.sequence + 1)):
            result = verdict([*some[:at], changed, *some[at + 1 :]], SEALS, selection=True)
            if changed.sequence <= COUNT:
                assert result.finding is not None
                assert result.finding.sequence == changed.sequence
    result = verdict([*some[:1], some[2], some[1], *some[3:]], SEALS, selection=True)
    assert result.finding is not None
