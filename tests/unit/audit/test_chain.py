"""The digest of a message and the chain of them change with every bit and every place."""

from hypothesis import given
from hypothesis import strategies as st

from agentfield.audit.chain import Stored, chained, digest_of, genesis, link
from tests.support.sealed import log

MESSAGE = Stored("ns.memory.global.global.k", 7, 1_700_000_000_000_000_001, b"NATS/1.0\r\nA: b\r\n\r\n", b'"v"')
stored = st.builds(
    Stored,
    st.text(max_size=8),
    st.integers(1, 2**40),
    st.integers(0, 2**62),
    st.binary(max_size=8),
    st.binary(max_size=8),
)


def test_the_digest_of_a_message_never_changes() -> None:
    """Seals of years ago must still hold: whoever changes this needs another version of the rules."""
    assert digest_of(MESSAGE).hex() == "7b12a57969c93c0d030883a53f2b8f3052590514e7b934b859cd185f3e0d226c"
    assert link(genesis("AGENTFIELD_MEMORY"), 7, digest_of(MESSAGE)).hex() == (
        "4ad3ca8c94292d0471ae1fed3750378487e887f4c2bca0c00d36b93c7d65bb65"
    )


@given(stored, stored)
def test_messages_that_differ_in_anything_but_their_place_differ_in_their_digest(one: Stored, other: Stored) -> None:
    assert (digest_of(one) == digest_of(other)) == (one._replace(sequence=0) == other._replace(sequence=0))


@given(st.text(min_size=2, max_size=6), st.binary(max_size=6), st.binary(max_size=6), st.integers(0, 18))
def test_what_moves_from_one_part_of_a_message_to_the_next_changes_it(
    subject: str, headers: bytes, payload: bytes, at: int
) -> None:
    """The parts have lengths: no text can be read as another one that is divided elsewhere."""
    whole = headers + payload
    cut = at % (len(whole) + 1)
    moved = Stored(subject, 1, 1, whole[:cut], whole[cut:])
    original = Stored(subject, 1, 1, headers, payload)
    assert (digest_of(moved) == digest_of(original)) == (moved == original)


def test_a_subject_that_is_no_utf_8_has_a_digest_of_its_own() -> None:
    odd = MESSAGE._replace(subject=b"ns.\xff".decode("utf-8", "surrogateescape"))
    assert digest_of(odd) != digest_of(odd._replace(subject=b"ns.\xfe".decode("utf-8", "surrogateescape")))


@given(st.integers(0, 9), st.integers(0, 9))
def test_the_chain_depends_on_every_message_and_on_its_place(one: int, other: int) -> None:
    digests = [(each.sequence, digest_of(each)) for each in log(10)]
    swapped = list(digests)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    start = genesis("S")
    assert (chained(start, swapped) == chained(start, digests)) == (one == other)
    assert chained(start, digests[:one] + digests[one + 1 :]) != chained(start, digests)
    shifted = [(sequence + 1, digest) for sequence, digest in digests]
    assert chained(start, shifted) != chained(start, digests) != chained(genesis("T"), digests)
    assert chained(start, digests) == chained(chained(start, digests[:one]), digests[one:])
