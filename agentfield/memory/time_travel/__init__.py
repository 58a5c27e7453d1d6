"""Time travel: memory as it was, what has changed since, and bringing it back.

Owns: reading as of a moment, comparing two of them, and reverting. Must not know: how the log gives the past.
Invariant: nothing here changes what was; a revert is new events.
"""
