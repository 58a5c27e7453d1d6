"""Comparing: what a handler writes because of an event, with what it wrote when that was recorded.

Pure. Invariant: writes to different places are never compared, and the order between places counts for nothing; those
to one place are compared one by one, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import orjson

from agentfield.event import Event
from agentfield.value import encode_value

Verdict = Literal["same", "different", "missing", "extra", "erased"]
"""Of one write: as recorded; another value, ttl or operation; recorded, and not made now; made now, and not recorded;
or recorded, where its value, or that of the event that led to it, is erased, so that nobody can say."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One write, recorded and made now; at least one of the two is there."""

    verdict: Verdict
    recorded: Event | None
    replayed: Event | None

    @property
    def event(self) -> Event:
        """The one that is there: where it went is the same in both."""
        found = self.recorded or self.replayed
        assert found is not None
        return found

    @property
    def differs(self) -> bool:
        """Whether that is another behaviour."""
        return self.verdict not in ("same", "erased")


def compare(
    recorded: Sequence[Event], replayed: Sequence[Event], *, workflow_id: str | None = None
) -> Iterator[Compared]:
    """Go through the writes, place by place, in the order in which places come first.

    ``workflow_id``: the workflow that the handler ran in. The id of one that it began by a call is another one with
    every run: the first one begun counts as the first, and so on.
    """
    places: dict[tuple[str, str, str], tuple[list[Event], list[Event]]] = {}
    for side, events in enumerate((recorded, replayed)):
        begun: dict[str, str] = {}
        for event in events:
            id = event.scope_id
            if event.scope == "workflow" and id == event.writer.workflow_id != workflow_id:
                id = begun.setdefault(id, f"\0{len(begun)}")
            places.setdefault((event.scope, id, event.key), ([], []))[side].append(event)
    for before, now in places.values():
        for one, other in zip_longest(before, now):
            yield Compared(_verdict(one, other), one, other)


def _verdict(recorded: Event | None, replayed: Event | None) -> Verdict:
    if recorded is None:
        return "extra"
    if replayed is None:
        return "missing"
    if recorded.operation != replayed.operation:
        return "different"
    if recorded.erased:
        return "erased"
    same = recorded.ttl == replayed.ttl and _canonical(recorded) == _canonical(replayed)
    return "same" if same else "different"


def _canonical(event: Event) -> bytes:
    return orjson.dumps(orjson.loads(encode_value(event.data)), option=orjson.OPT_SORT_KEYS)
