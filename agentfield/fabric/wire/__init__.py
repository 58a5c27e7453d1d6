"""The wire: a connection that outlives every outage, and nats-py's client under it, made cheaper and more careful.

Owns: sockets, frames, subscriptions, and which server is the right one. Must not know: streams, keys, agents.
Invariant: no exception of nats-py leaves it; every wait has a deadline.
"""
