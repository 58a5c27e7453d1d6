"""Where a consumer that has never heard anything begins, as a sequence of the log.

Must not know: what becomes of the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from agentfield.fabric.consumers.consuming import Start
from agentfield.fabric.log import Log


async def beginning(log: Log, start: Start, state: Mapping[str, Any]) -> int:
    """The first sequence to hear, for a log that was in ``state`` when hearing was asked for.

    That of the log's first event for ``"current"``, too: whoever begins so passes over the past by himself.
    """
    if start in ("all", "current"):
        return 1
    if isinstance(start, datetime):
        return await log.sequence_at(start)
    return int(state["last_seq"]) + 1 if isinstance(start, str) else max(1, start)


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
