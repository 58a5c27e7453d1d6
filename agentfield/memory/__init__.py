"""Memory: the part users call."""

from agentfield.memory.connecting import connect
from agentfield.memory.memory import Memory
from agentfield.memory.watch import CaughtUp

__all__ = ["CaughtUp", "Memory", "connect"]
