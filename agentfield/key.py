"""Keys: which names are legal, and how a key becomes the last tokens of a subject and comes back.

``_`` ends a token, so ``order_42_status`` is ``order.42.status``. A token's text is escaped as ``naming`` says, an
empty token is written as a lone ``=``, and the sixteenth token takes all that is left, its ``_`` written ``=5F``.

Pure. Invariant: ``key_tokens`` and ``key_of`` are inverse to each other between legal keys and their images; ``key_of``
refuses whatever is no image.
"""

from __future__ import annotations

from functools import lru_cache

from agentfield.errors import InvalidInputError
from agentfield.naming import check_name, check_text, escape, shown, unescape

# Escaped, a key takes at most three times as much: see MAX_SCOPE_ID_BYTES for what that leaves room for.
MAX_KEY_BYTES = 512

# A pattern's star stands for any number of tokens, and NATS has no wildcard for that in the middle of a subject: a
# bound on the tokens of a key bounds the filters a pattern needs.
MAX_TOKENS = 16

_EMPTY = "="
_SEPARATOR = "=5F"


def check_key(key: object) -> None:
    """Raises InvalidInputError unless the key is legal.

    It must be a non-empty string of at most 512 bytes of UTF-8, without control characters, lone surrogates, and ``*``
    and ``>``, which belong to patterns.
    """
    check_name(
        key,
        what="key",
        max_bytes=MAX_KEY_BYTES,
        forbidden="*>",
        remedy="'*' and '>' are kept for patterns and filters, so replace it in the key",
    )


def key_tokens(key: str) -> str:
    """The key as tokens of a subject, joined by dots. Raises InvalidInputError if the key is illegal."""
    if type(key) is not str:  # before the cache, which cannot take just anything
        check_key(key)
    return _tokens_of(key)


def key_of(tokens: str) -> str:
    """The key for which these tokens stand. Raises InvalidInputError if ``key_tokens`` never gives them."""
    if type(tokens) is not str:
        check_text(tokens, "key tokens")
    return _key_of(tokens)


def segment_tokens(segments: list[str]) -> list[str]:
    """The tokens of a key given as what stands between its ``_``, which is not checked.

    At most sixteen: the last one takes all that is left.
    """
    head, rest = segments[: MAX_TOKENS - 1], segments[MAX_TOKENS - 1 :]
    tokens = [escape(segment) or _EMPTY for segment in head]
    if rest:
        tokens.append(_SEPARATOR.join(map(escape, rest)) or _EMPTY)
    return tokens


@lru_cache(maxsize=8192)
def _tokens_of(key: str) -> str:
    check_key(key)
    return ".".join(segment_tokens(key.split("_")))


@lru_cache(maxsize=8192)
def _key_of(tokens: str) -> str:
    parts = tokens.split(".")
    if len(parts) > MAX_TOKENS:
        raise InvalidInputError(
            f"tokens {shown(tokens)} are no key's: they are {len(parts)}, and a key has at most {MAX_TOKENS}"
        )
    last = parts.pop().replace(_SEPARATOR, "_") if len(parts) == MAX_TOKENS else None
    texts = [_text_of(part) for part in parts]
    if last is not None:
        texts.append(_text_of(last))
    key = "_".join(texts)
    check_key(key)
    if ".".join(segment_tokens(key.split("_"))) != tokens:
        raise InvalidInputError(f"tokens {shown(tokens)} are no key's: the key {shown(key)} is written differently")
    return key


def _text_of(token: str) -> str:
    return "" if token == _EMPTY else unescape(token)
