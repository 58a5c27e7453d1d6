"""Consumers: what brings the events of the log to one active instance of a handler, and to who takes over from it.

Owns: pins, leases, floors, gaps, and present values before what comes. Must not know: what an event means or how it is
handled. Invariant: events come in order for each key, and again until they are handled; none is missed unsaid.
"""
