"""What is missing at the beginning is gone, unless a note that is as it was sealed says where it went."""

from collections.abc import Sequence

import pytest

from agentfield.archive.notes import TRIMMING, Note, accounted
from agentfield.audit.beginning import Sources, What
from agentfield.audit.chain import Stored
from agentfield.audit.comparing import Seen
from agentfield.audit.verifying import Extent, Verdict
from tests.support.sealed import STREAM, log, sealed, verdict

COUNT = 23
FIRST = 9
"""With which everything begins here that has lost its beginning."""


def noted(*notes: tuple[int, Note]) -> list[Stored]:
    """A log with these notes in it, each at its sequence."""
    messages = log(COUNT)
    for sequence, note in notes:
        messages[sequence - 1] = messages[sequence - 1]._replace(subject=note.subject("test"))
    return messages


def found(
    what: What, messages: Sequence[Stored], *, until: int = COUNT, first: int = FIRST, logged: int | None = None
) -> Verdict:
    """The verdict on what is left of messages that were sealed up to a sequence."""
    seals = sealed(messages[:until])
    notes = [Seen.of(each) for each in messages if Note.of(each.subject) is not None]
    sources = Sources(what, notes, believed_unsealed=what != "export", logged=logged)
    extent = Extent(STREAM, 1, first, COUNT)
    return verdict(messages[first - 1 :], seals, extent=extent, sources=sources)


TRIMMED = Note(1, FIRST)


@pytest.mark.parametrize(
    ("what", "note", "accounted_for"),
    [
        ("log", TRIMMED, True),
        ("log", Note(1, FIRST + 3), True),
        ("log", Note(1, TRIMMING), True),
        ("log", Note(1, FIRST - 1), False),
        ("log", Note(2, FIRST), False),
        ("export", TRIMMED, True),
        ("export", Note(1, FIRST + 3), False),
        ("export", Note(1, TRIMMING), False),
        ("archive", TRIMMED, False),
        ("archive", Note(FIRST, FIRST), False),
    ],
)
def test_a_note_accounts_for_what_it_says_and_no_more(what: What, note: Note, accounted_for: bool) -> None:
    result = found(what, noted((15, note)))
    assert (result.intact, result.whole, result.first, result.last) == (accounted_for, False, FIRST, COUNT)
    assert result.absent is not None
    assert (result.absent.first, result.absent.last) == (1, FIRST - 1)
    assert [left.revision for left in result.absent.left] == [15] * accounted_for


def test_an_archive_may_begin_where_a_note_says_that_it_did_if_another_one_holds_what_was_before() -> None:
    result = found("archive", noted((15, TRIMMED), (16, Note(FIRST, FIRST))))
    assert result.intact
    assert not found("archive", noted((15, Note(1, FIRST - 1)), (16, Note(FIRST, FIRST)))).intact
    assert not found("archive", noted((15, TRIMMED), (16, Note(FIRST + 1, FIRST + 1)))).intact


def test_what_the_log_still_has_is_missing_nowhere() -> None:
    result = found("archive", noted(), logged=1)
    assert (result.intact, result.whole) == (True, False)
    assert result.absent is not None
    assert result.absent.logged
    assert not found("archive", noted(), logged=2).intact


def test_a_note_that_is_not_sealed_is_believed_of_a_log_and_not_of_a_file() -> None:
    messages = noted((22, TRIMMED))
    result = found("log", messages, until=20)
    assert result.intact
    assert result.absent is not None
    assert [left.sealed for left in result.absent.left] == [False]
    assert not found("export", messages, until=20).intact


def test_a_note_that_is_not_what_was_sealed_there_is_not_believed() -> None:
    messages = noted((15, TRIMMED))
    seals = sealed(log(COUNT))
    sources = Sources("log", [Seen.of(messages[14])])
    result = verdict(log(COUNT)[FIRST - 1 :], seals, extent=Extent(STREAM, 1, FIRST, COUNT), sources=sources)
    assert not result.intact


def test_that_a_log_is_being_trimmed_counts_until_it_is_said_how_far() -> None:
    assert found("log", noted((15, Note(1, TRIMMING)))).intact
    assert not found("log", noted((15, Note(1, TRIMMING)), (16, Note(1, FIRST - 1)))).intact
    assert found("log", noted((15, Note(1, FIRST - 1)), (16, Note(1, TRIMMING)))).intact


def test_what_was_kept_is_not_missing() -> None:
    messages = noted((15, TRIMMED))
    seals = sealed(messages)
    left = [each for each in messages if each.sequence in (1, 2, 5, 7) or each.sequence >= FIRST]
    extent = Extent(STREAM, 1, FIRST, COUNT)
    result = verdict(left, seals, extent=extent)
    assert result.absent is not None
    assert (result.absent.first, result.absent.last, result.kept) == (3, 8, 4)
    result = verdict(messages, seals, extent=extent)
    assert (result.intact, result.absent, result.whole) == (True, None, True)


def test_what_was_not_asked_for_is_not_missed() -> None:
    messages = log(COUNT)
    result = verdict(messages[FIRST - 1 :], sealed(messages), extent=Extent(STREAM, 1, FIRST, COUNT), start=FIRST)
    assert (result.intact, result.absent, result.whole) == (True, None, False)


def test_archives_that_follow_one_another_account_for_everything_together() -> None:
    notes = [Note(1, 10), Note(10, 10), Note(10, 30), Note(25, 25)]
    assert accounted(notes, 1, 29) == [(10, 30), (1, 10)]
    assert accounted(notes, 3, 9) == [(1, 10)]
    assert accounted(notes, 1, 30) is None
    assert accounted([Note(2, 10)], 1, 9) is None


def test_what_is_no_note_says_nothing() -> None:
    for note in (Note(1, 1), Note(7, 12345), Note(3, TRIMMING)):
        assert Note.of(note.subject("test")) == note
    for subject in (
        "test.checks.archives.0.4",
        "test.checks.archives.5.4",
        "test.checks.archives.²²",
        "test.checks.a.1.2",
    ):
        assert Note.of(subject) is None
    for tail in ("trimming.1", "1.trimmed", "1.2.3", "01.4", "-1.4", "1.99999999999999999999"):
        assert Note.of(f"test.checks.archives.{tail}") is None
