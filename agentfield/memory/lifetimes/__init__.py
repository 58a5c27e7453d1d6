"""Lifetimes: ending what has had its time, and clearing up behind it.

Owns: the worker that says what has expired, the end of workflows and sessions, and sweeping the buckets. Must not know:
who reads, or who wrote. Invariant: what ends, ends by events; of the log itself nothing is taken away.
"""
