"""Personal data: declaring it, and erasing it for good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from agentfield.errors import InvalidInputError
from agentfield.memory.addressing import AnyScope
from agentfield.memory.base import Base
from agentfield.memory.personal.erasing import ErasureReceipt, Sign, Target, erase
from agentfield.memory.views import Drop, keeping
from agentfield.pattern import Pattern
from agentfield.privacy import PrivacyPolicy
from agentfield.scope import GLOBAL, RESOLUTION, Scope, check_scope_kind


class Private(Base):
    """The operations on personal data; see docs/privacy.md."""

    async def personal(self) -> PrivacyPolicy:
        """What is personal in this namespace, by the server's word."""
        return await (await self._fabric()).keys.policies.present()

    async def set_personal(self, scopes: Iterable[str] = (), patterns: Iterable[str] = ()) -> PrivacyPolicy:
        """Declare what is personal in this namespace, for every process, in place of what was declared before.

        ``scopes``: of ``"workflow"``, ``"session"`` and ``"actor"``, those that are personal as a whole; ``patterns``:
        of keys, in whatever scope. From then on their values are encrypted before they leave a process: other processes
        learn of it within a moment, at the latest within ten seconds. What was written before stays as it is.
        """
        policy = PrivacyPolicy.of(scopes, patterns)
        fabric = await self._fabric()
        await fabric.keys.policies.set(policy)
        return policy

    async def erase(
        self,
        pattern: str = "*",
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        by: str | None = None,
        sign: Sign | None = None,
    ) -> ErasureReceipt:
        """Erase personal values for good: of one scope, or of the keys that match a pattern; return the receipt.

        Deletes what is present (``reason="cleared"``), destroys the keys that the values are encrypted with, in every
        copy of the log there is, and proves it. Without a scope, a pattern is looked for in all there are. What was
        written in plain is deleted but stays readable in the history: the receipt says how much, so look at
        ``receipt.complete``. ``by``: who asks for it. ``sign`` signs the receipt.

        Raises :class:`UnavailableError` at any step; erasing again goes on.
        """
        target = target_of(pattern, scope, scope_id)
        receipt = await erase(await self._fabric(), target, writer=self._writer(), by=by, sign=sign)
        self.seen.saw(receipt.up_to)
        return receipt

    @asynccontextmanager
    async def plaintext_view(self, name: str, drop: Drop) -> AsyncIterator[None]:
        """Keep a view that holds personal values in plain: ``async with memory.plaintext_view("timeline", drop):``.

        The view is registered for good under its name. ``drop`` is awaited with an :class:`Erasure` for every erasure
        there was while nobody kept the view, before the block begins, and for every one that comes while it runs; what
        it concerns is to be gone from the view on return. An erasure may come twice.
        """
        async with keeping(await self._fabric(), name, drop, self._writer()):
            yield


def target_of(pattern: str, scope: str | None, scope_id: str | None) -> Target:
    """What an erasure is about. Raises InvalidInputError for what can only be a slip."""
    parsed = Pattern.parse(pattern)
    if scope is None:
        if scope_id is not None:
            raise InvalidInputError(f"scope_id={scope_id!r} without a scope: say which kind, e.g. scope='session'")
        scopes: tuple[AnyScope, ...] = tuple((kind, GLOBAL.id if kind == "global" else None) for kind in RESOLUTION)
    else:
        kind = check_scope_kind(scope)
        id = GLOBAL.id if kind == "global" else scope_id
        if id is not None:
            Scope.of(kind, id)
        if kind == "global" and scope_id is not None:
            Scope.of(kind, scope_id)
        scopes = ((kind, id),)
    if parsed.text == "*" and (scopes[0][1] is None or scopes[0][0] == "global"):
        raise InvalidInputError(
            "erasing every key there is can only be a slip: name one workflow, session or actor by its id, or give a "
            "pattern that says which keys"
        )
    return Target(parsed, scopes)
