"""Memory: the part users call."""

from agentfield.memory import merges
from agentfield.memory.cache import Freshness
from agentfield.memory.connecting import connect
from agentfield.memory.lock import Lock
from agentfield.memory.memory import Memory
from agentfield.memory.moment import Moment
from agentfield.memory.offline import OfflineBuffer
from agentfield.memory.personal.erasing import ErasureReceipt
from agentfield.memory.reads import Consistency
from agentfield.memory.time_travel.diff import Change, Diff
from agentfield.memory.time_travel.past import Past
from agentfield.memory.time_travel.revert import Reverted
from agentfield.memory.transaction import Transaction
from agentfield.memory.views import Erasure
from agentfield.memory.watch import CaughtUp

__all__ = [
    "CaughtUp",
    "Change",
    "Consistency",
    "Diff",
    "Erasure",
    "ErasureReceipt",
    "Freshness",
    "Lock",
    "Memory",
    "Moment",
    "OfflineBuffer",
    "Past",
    "Reverted",
    "Transaction",
    "connect",
    "merges",
]
