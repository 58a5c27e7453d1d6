"""Audit: proof that the log is what it was, in seals that anyone can check.

Owns: the digest of a stored message, the chain over all of them, seals and their signatures, sealing, verifying,
exports and reports. Must not know: how the log is written. The rules (``chain``, ``seal``, ``nkey``, ``comparing``) are
pure and work on what any reader gives: the live log, an export, an archive.
"""
