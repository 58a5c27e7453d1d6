"""Reading: parts of the log as they are asked for, each at a price that does not grow with the whole.

Owns: the ways: as it was at a sequence, the present before what comes, backwards, about few subjects. Must not know:
keys, scopes, who asks. Invariant: each way gives the same events as the plain one would.
"""
