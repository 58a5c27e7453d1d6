"""Views derived from the memory's log, each one a fold over its events.

A projection owns no state of its own that the log cannot give back: it can be thrown away and rebuilt by replaying the
log from the start, and a rebuilt view equals the one it replaces. This package stands on the public API of
`agentfield` only; it never speaks to the server by itself.
"""
