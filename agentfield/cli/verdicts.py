"""How the outcome of an audit is shown, to people and to programs.

Owns: the words. Must not know: how it was found. Invariant: what a verdict does not prove is said with it.
"""

from __future__ import annotations

from typing import Any

from agentfield.amount import number_of
from agentfield.audit.beginning import Absent
from agentfield.audit.comparing import Difference, Seen
from agentfield.audit.jsonl import time_text
from agentfield.audit.reporting import Report
from agentfield.audit.reporting import visible as escaped
from agentfield.audit.verifying import Verdict
from agentfield.cli.output import Output, age, visible
from agentfield.errors import AgentFieldError
from agentfield.memory.addressing import AnyScope

TRUSTED_ON_FIRST = (
    "no --public-key was given, so the key of the first seal was believed: this shows that log and seals belong "
    "together, not that their keeper has not replaced both"
)
_WHAT = {
    "changed": "was changed",
    "removed": "is gone",
    "inserted": "was inserted",
    "reordered": "is not in its place",
}


def show(verdict: Verdict, output: Output, *, what: str, now: int) -> None:
    """Print what was verified and what is to be known besides, in lines, or as one object, before any error."""
    if output.as_json:
        output.object(_fields(verdict), flush=True)
        return
    if verdict.events:
        span = f"revisions {verdict.first} to {verdict.last}"
        held = f"{number_of(verdict.events, 'event')}, {number_of(verdict.seals, 'seal')}"
        output.line(("verified", "green"), f"{span} ({held}), the last of {_moment(verdict.last_time)}", flush=True)
    elif verdict.kept:
        kept = number_of(verdict.kept, "event")
        output.line(
            ("verified", "green"), f"{kept} from before revision {verdict.begins_at}, and none after", flush=True
        )
    else:
        output.line(("verified", "yellow"), "no event", flush=True)
    if verdict.whole:
        output.line(("whole", "green"), "every event that a seal covers is among them", flush=True)
    for key in verdict.keys:
        output.line("signed by", key, flush=True)
    if verdict.unsealed:
        since = f", the oldest {age((now - verdict.unsealed_since) / 1e9)} old" if verdict.unsealed_since else ""
        known = "nothing is known of " + ("it" if verdict.unsealed == 1 else "them")
        output.line(
            ("unsealed", "yellow"), f"{number_of(verdict.unsealed, 'event')} after that{since}: {known}", flush=True
        )
    for remark in remarks(verdict, what):
        output.line(("note", "yellow"), visible(remark), flush=True)


def remarks(verdict: Verdict, what: str) -> list[str]:
    """What one should know besides the numbers."""
    found = list(verdict.facts)
    if verdict.absent is not None:
        found += _absent(verdict.absent, what)
    if verdict.kept and verdict.events:
        found.append(
            f"of what was before revision {verdict.begins_at}, {number_of(verdict.kept, 'event')} are still there, and "
            "are as they were sealed"
        )
    if verdict.selection and not verdict.whole:
        found.append(
            "this is a selection, by its own word: each event in it is what was sealed; nothing is proven about any "
            "other, before, between or after them"
        )
    if verdict.trusted_on_first and verdict.seals:
        found.append(TRUSTED_ON_FIRST)
    return found


def _absent(absent: Absent, what: str) -> list[str]:
    """What is to be said of sealed events that lie before what is there."""
    if absent.first == absent.last:
        proven = f"revision {absent.first} is not in this {what}, so nothing is proven about it here"
    else:
        proven = (
            f"revisions {absent.first} to {absent.last} are not all in this {what}, and nothing is proven here about "
            "those that are not"
        )
    if absent.logged:
        return [f"{proven}; they are in the log"]
    if not absent.left:
        return []
    places = [
        f"the archive that begins at revision {left.note.begins}, says revision {left.revision} of {_moment(left.time)}"
        + ("" if left.sealed else ", which is not sealed yet")
        for left in absent.left
    ]
    return [
        f"{proven}: they were trimmed off the log into {', and '.join(places)}. Verify that as well (--archive), or "
        "log and archive as one (--whole)"
    ]


def failure(verdict: Verdict, *, whole: bool = False) -> AgentFieldError | None:
    """The error that a verdict amounts to; None if everything is as it was sealed.

    With ``whole``, everything that a seal covers must have been there.
    """
    up_to = f"; verified up to revision {verdict.last}" if verdict.last else ""
    if not verdict.last and not verdict.kept:
        up_to = "; nothing before it was verified"
    if (
        verdict.finding is not None
        and verdict.absent is not None
        and not (verdict.absent.left or verdict.absent.logged)
    ):
        there = f"verified from revision {verdict.first} to {verdict.last}" if verdict.last else "nothing was verified"
        return AgentFieldError(f"{told(verdict.finding)}; {there}")
    if verdict.finding is not None:
        return AgentFieldError(f"{told(verdict.finding)}{up_to}")
    if verdict.seal_fault is not None:
        return AgentFieldError(f"{verdict.seal_fault}{up_to}")
    if not verdict.seals:
        return AgentFieldError(
            "there are no seals, so nothing can be verified: `agentfield audit seal` makes them; if there were some, "
            "they are gone"
        )
    if not verdict.events and not verdict.kept:
        return AgentFieldError("nothing was verified: no event that was looked at is one that a seal covers")
    if whole and not verdict.whole:
        verified = verdict.events + verdict.kept
        return AgentFieldError(
            f"not whole: the seals cover {number_of(verdict.sealed, 'event')}, of which {verified:,} were verified; "
            "nothing is proven about the others"
        )
    return None


def entitle(
    report: Report,
    *,
    pattern: str,
    scope: AnyScope | None,
    writer: str | None,
    since: object,
    until: object,
) -> None:
    """Say on a report what it is about, and what was found."""
    of = [("keys", pattern)] if pattern != "*" else []
    if scope is not None:
        of.append(("scope", scope[0] if scope[1] is None or scope[0] == "global" else f"{scope[0]}:{scope[1]}"))
    if writer is not None:
        of.append(("written by", writer))
    report.title = escaped(" · ".join(text for _, text in of) or "everything")
    of += [(name, str(point)) for name, point in (("since", since), ("until", until)) if point is not None]
    report.selected = [(name, escaped(text)) for name, text in of]
    verdict = report.checked.verdict
    unsealed = sum(row.state == "unsealed" for row in report.rows)
    if not verdict.intact:
        fault = failure(verdict)
        report.state, report.statement = "tampered", f"Not as it was sealed: {escaped(str(fault))}"
    elif not verdict.seals:
        report.state, report.statement = "unsealed", "Nothing here is sealed: it cannot be verified"
    elif unsealed:
        verified = len(report.rows) - unsealed
        report.state = "unsealed"
        report.statement = (
            f"{verified:,} of {number_of(len(report.rows), 'event')} are as they were sealed, the others not sealed yet"
        )
    else:
        report.state, report.statement = "verified", "Every event here is as it was sealed"
    report.remarks = [escaped(remark) for remark in remarks(verdict, "log")]


def told(finding: Difference) -> str:
    """A difference in a sentence: which event, where it stands, and what is wrong with it."""
    where = ""
    if finding.found is not None:
        where = f" ({_subject(finding.found)}, {_moment(finding.found.timestamp)})"
    return f"revision {finding.sequence}{where} {_WHAT[finding.kind]}: {finding.detail}"


def _fields(verdict: Verdict) -> dict[str, Any]:
    finding = verdict.finding
    return {
        "intact": verdict.intact and verdict.seals > 0,
        "whole": verdict.whole,
        "first": verdict.first,
        "last": verdict.last,
        "last_time": _moment(verdict.last_time) if verdict.last_time else None,
        "events": verdict.events,
        "seals": verdict.seals,
        "unsealed": verdict.unsealed,
        "unsealed_since": _moment(verdict.unsealed_since) if verdict.unsealed_since else None,
        "keys": verdict.keys,
        "trusted_on_first": verdict.trusted_on_first,
        "selection": verdict.selection,
        "begins_at": verdict.begins_at or None,
        "absent": None if verdict.absent is None else _absent_fields(verdict.absent),
        "kept": verdict.kept,
        "sealed": verdict.sealed,
        "facts": verdict.facts,
        "seal_fault": verdict.seal_fault,
        "last_seal": None if verdict.witness is None else verdict.witness._asdict(),
        "finding": None
        if finding is None
        else {
            "kind": finding.kind,
            "revision": finding.sequence,
            "subject": None if finding.found is None else _subject(finding.found),
            "time": None if finding.found is None else _moment(finding.found.timestamp),
            "detail": finding.detail,
        },
    }


def _absent_fields(absent: Absent) -> dict[str, Any]:
    archives = [
        {"begins": left.note.begins, "revision": left.revision, "time": _moment(left.time), "sealed": left.sealed}
        for left in absent.left
    ]
    return {"first": absent.first, "last": absent.last, "in_log": absent.logged, "in_archives": archives}


def _moment(nanoseconds: int) -> str:
    try:
        return time_text(nanoseconds)
    except (OverflowError, ValueError, OSError):  # a time that somebody made up
        return f"{nanoseconds} ns"


def _subject(seen: Seen) -> str:
    return seen.subject.encode("utf-8", "backslashreplace").decode()
