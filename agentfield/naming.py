"""What keys, scope ids and patterns have in common: which text is a legal name, and how text becomes a NATS token.

A token may hold ``A-Z a-z 0-9 - / _``; every other character is written as the bytes of its UTF-8, each ``=XX`` in
upper-case hexadecimal, ``=`` and ``.`` included. These are the characters a NATS KV key may hold (ADR-8), so a token
can stand in any subject and in any bucket. Pure: it knows nothing of scopes, of key separators or of the wire.

Invariant: ``unescape`` accepts exactly the texts that ``escape`` produces, so the two are inverse to each other.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from agentfield.errors import InvalidInputError

# Names are shown in messages, so a name of megabytes must not make a message of megabytes.
_SHOWN = 60

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # exactly the Unicode category Cc
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNSAFE = re.compile(r"[^A-Za-z0-9/_-]+")
_TOKEN = re.compile(r"(?:[A-Za-z0-9/_-]|=[0-9A-F]{2})+")


def shown(text: object) -> str:
    """The text as a message shows it: quoted, unprintable characters escaped, cut short."""
    if isinstance(text, str) and len(text) > _SHOWN:
        return repr(text[:_SHOWN]) + "…"
    whole = repr(text)
    return whole if len(whole) <= 4 * _SHOWN else whole[:_SHOWN] + "…"


def check_text(text: object, what: str) -> str:
    """The text, if it is a string. Raises InvalidInputError otherwise."""
    if not isinstance(text, str):
        raise InvalidInputError(f"{what} must be a string, not {type(text).__name__} ({shown(text)}): convert it first")
    return text


def check_name(text: object, *, what: str, max_bytes: int, forbidden: str = "", remedy: str = "") -> None:
    """Raises InvalidInputError unless the text is a legal name.

    It must be a non-empty string of at most ``max_bytes`` bytes of UTF-8, without control characters, lone surrogates
    and the ``forbidden`` characters; ``remedy`` says what to do about the latter.
    """
    text = check_text(text, what)
    if not text:
        raise InvalidInputError(f"{what} '' is empty: give it at least one character")
    for unwanted in forbidden:
        if unwanted in text:
            at = text.index(unwanted)
            raise InvalidInputError(f"{what} {shown(text)} contains {unwanted!r} at position {at}: {remedy}")
    if (found := _CONTROL.search(text)) is not None:
        raise InvalidInputError(
            f"{what} {shown(text)} contains the control character U+{ord(found[0]):04X} at position {found.start()}: "
            f"remove it, or write it some other way"
        )
    if (found := _SURROGATE.search(text)) is not None:
        raise InvalidInputError(
            f"{what} {shown(text)} contains the lone surrogate U+{ord(found[0]):04X} at position {found.start()}, "
            f"which is not text (often undecodable bytes): decode the input properly, or replace the character"
        )
    # A character takes at least one byte, so a very long text need not be encoded to be refused.
    size = len(text) if len(text) > max_bytes else len(text.encode())
    if size > max_bytes:
        raise InvalidInputError(
            f"{what} {shown(text)} takes {'at least ' if size == len(text) else ''}{size} bytes of UTF-8, but at most "
            f"{max_bytes} are allowed: shorten it, for example by putting a hash in place of its longest part"
        )


def escape(text: str) -> str:
    """The text with everything a token may not hold written ``=XX``; ``_`` is kept. The empty text gives no token."""
    return _UNSAFE.sub(lambda found: "".join([f"={byte:02X}" for byte in found[0].encode()]), text)


def unescape(token: str) -> str:
    """The text whose ``escape`` is this token. Raises InvalidInputError if there is none."""
    if _TOKEN.fullmatch(token) is None:
        raise InvalidInputError(
            f"token {shown(token)} is not one agentfield writes: it must consist of A-Z a-z 0-9 - / _ and of bytes "
            f"written =XX in upper-case hexadecimal"
        )
    if "=" not in token:
        return token
    try:
        text = unquote_to_bytes(token.replace("=", "%")).decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"token {shown(token)} is not one agentfield writes: {error}") from error
    if escape(text) != token:
        raise InvalidInputError(
            f"token {shown(token)} is not one agentfield writes: it escapes characters that need no escaping "
            f"({shown(escape(text))} is the proper form)"
        )
    return text
