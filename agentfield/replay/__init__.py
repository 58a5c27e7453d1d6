"""Replay: a part of the past, read again at a pace, written again elsewhere, or handled again by today's code.

Owns: which part, how fast, the copies in another namespace, and the comparison of what handlers write with the record.
Must not know: who asks, and how the outcome is shown. Invariant: the recorded log is read, never written.
"""
