"""Reacting: handlers, from their declaration to what becomes of an event that one of them gives up on.

Owns: in which order and how often a handler is called, its retries and timeouts, dead letters, loops, two versions at
once. Must not know: consumers and pins, which are the fabric's. Invariant: an event is done, dead-lettered or comes
again; it is never forgotten.
"""
