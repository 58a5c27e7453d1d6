"""Calling: both sides of a call between agents, and how agents are found.

Owns: the protocol of a call, who waits for it and who runs it. Must not know: streams, memory, what a reasoner is.
Invariant: a call has one outcome, or both sides are told that it has none.
"""
