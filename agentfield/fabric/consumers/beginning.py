"""Where a consumer that has never heard anything begins, as a sequence of the log.

Must not know: what becomes of the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from agentfield.errors import InvalidInputError
from agentfield.fabric.consumers.consuming import Start
from agentfield.fabric.log import Log

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(seconds=1)
"""What a program's clock may be ahead of the server's, as for a look at the past."""


async def beginning(log: Log, start: Start, state: Mapping[str, Any]) -> int:
    """The first sequence to hear, for a log that was in ``state`` when hearing was asked for.

    That of the log's first event for ``"current"``, too: whoever begins so passes over the past by himself. Raises
    :class:`InvalidInputError` for a time that has not come.
    """
    if start in ("all", "current"):
        return 1
    if isinstance(start, datetime):
        _check_come(log, start)
        return await log.sequence_at(start)
    return int(state["last_seq"]) + 1 if isinstance(start, str) else max(1, start)


def _check_come(log: Log, start: datetime) -> None:
    """Refuse a time that lies in the future, beyond what clocks may differ by: it would mean all that is new."""
    now = _EPOCH + timedelta(microseconds=log.now_at_most() // 1000)
    if start > now + _AHEAD:
        raise InvalidInputError(
            f"start={start} lies in the future: for the server, it is {now}; give a time that has come, or 'new', and "
            "pass over what is earlier than you want by its timestamp"
        )


def deliver_policy(first: int) -> Mapping[str, Any]:
    """The same for a durable consumer, in the server's words.

    Never ``new`` or ``by_start_time``: the server does not reset such consumers to go on after what was handled without
    them, or not always. Never ``last_per_subject``: it forgets, on a reset, the values that were delivered and not
    acknowledged.
    """
    if first <= 1:
        return {"deliver_policy": "all"}
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": first}


def can_be_moved(config: Mapping[str, Any]) -> bool:
    """Whether the server resets a consumer that is so defined to go on at any later sequence."""
    return config["deliver_policy"] in ("all", "by_start_sequence")
