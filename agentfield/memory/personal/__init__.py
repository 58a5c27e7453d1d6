"""Personal data: saying what is personal, and erasing it with proof.

Owns: what an erasure covers, and its receipt. Must not know: where keys are kept. Invariant: what a receipt calls
erased was found to be so, by the leader's word.
"""
