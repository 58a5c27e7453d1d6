"""Personal data: the policy that says what is personal, and the keys that it is encrypted with.

Owns: the bucket of both, apart from the log, and what a process remembers of it. Must not know: values. Invariants: a
vault has at most one key at any time, the same for everybody; only the leader's word makes a key count as destroyed; a
bucket that was lost is neither taken for a namespace in which nothing is personal nor for an erasure.
"""
