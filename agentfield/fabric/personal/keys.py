"""Keys: what personal values are encrypted with, and which of them this process remembers.

Owns: what is remembered, and until when. Must not know: values, or what is personal. Invariants: no key is remembered
for longer than :data:`KEY_LIFETIME` without being looked up again, and none survives the announcement of an erasure.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from agentfield.envelope import DataKey
from agentfield.fabric.log import Log
from agentfield.fabric.personal.bucket import KeyBucket, StoredKey
from agentfield.fabric.personal.policies import Policies
from agentfield.fabric.topology import Topology
from agentfield.privacy import Vault
from agentfield.subject import Subjects

KEY_LIFETIME: Final = 20.0
"""Seconds after which a key that this process remembers is forgotten, and looked up again when it is needed."""
_MAX_KEYS: Final = 10_000


class _Remembered(NamedTuple):
    key: DataKey | None
    """None for one that was destroyed."""
    until: float


class Keys:
    """The data keys of one namespace, and the policy on what they are for. The fabric starts and closes it."""

    def __init__(self, log: Log, topology: Topology) -> None:
        self._bucket = KeyBucket(log.connection, topology, timeout=log.timeout)
        self.policies = Policies(log, topology, self._bucket, self.forget)
        self._subjects = Subjects(topology.namespace)
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()  # what ends first comes first
        self._looking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._epoch = 0
        self._forgetting: asyncio.TimerHandle | None = None

    async def aclose(self) -> None:
        """Forget every key, and stop following the policy. Idempotent."""
        await self.policies.aclose()
        self.forget()

    async def find(self, vault: Vault, fingerprint: str) -> DataKey | None:
        """The key of that name, if it is still there; None if it was destroyed. Asks the server once a vault.

        Raises :class:`UnavailableError` and its kin: whether it is still there is not known then.
        """
        tokens = vault.tokens(self._subjects)
        for name in (tokens, fingerprint):  # what is destroyed is remembered under its own name
            known = self._recall(name)
            if known is not None and (known.key is None or known.key.fingerprint == fingerprint):
                return known.key
        async with self._lock(tokens):
            known = self._recall(tokens)
            if known is not None and known.key is not None and known.key.fingerprint == fingerprint:
                return known.key
            key = await self._look(tokens)
            if key is not None and key.fingerprint == fingerprint:
                return key
            await self.policies.check_not_lost()
            self._remember(fingerprint, None)
            return None

    async def current(self, vault: Vault) -> DataKey:
        """The key that what is written to a vault now is encrypted with; made if there is none.

        Of processes that make it at once, the first one's is everybody's. Raises :class:`UnavailableError` and its kin.
        """
        tokens = vault.tokens(self._subjects)
        known = self._recall(tokens)
        if known is not None and known.key is not None:
            return known.key
        async with self._lock(tokens):
            known = self._recall(tokens)
            if known is not None and known.key is not None:
                return known.key
            key = await self._look(tokens)
            if key is None:
                await self.policies.check_not_lost()
                epoch = self._epoch
                key = await self._bucket.create_key(tokens)
                self._remember(tokens, key, epoch)
            return key

    async def stored(self, tails: Sequence[str]) -> list[StoredKey]:
        """The keys whose vaults match one of these filters; see :meth:`KeyBucket.keys`."""
        return await self._bucket.keys(tails)

    async def destroy(self, stored: StoredKey) -> None:
        """Destroy a key, and remember none; see :meth:`KeyBucket.destroy`."""
        try:
            await self._bucket.destroy(stored)
        finally:
            self.forget()

    async def renew_journals(self) -> bool:
        """See that no replica's journal holds what was destroyed; see :mod:`agentfield.fabric.journals`."""
        return await self._bucket.renew_journals()

    def forget(self) -> None:
        """Remember no key any more."""
        self._epoch += 1
        self._remembered.clear()
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    # -- what is remembered -------------------------------------------------------------------------------------------

    def _recall(self, name: str) -> _Remembered | None:
        known = self._remembered.get(name)
        return known if known is not None and known.until > asyncio.get_running_loop().time() else None

    def _remember(self, name: str, key: DataKey | None, epoch: int | None = None) -> None:
        if epoch is not None and epoch != self._epoch:
            return  # an erasure was announced meanwhile: this key may be one of those
        loop = asyncio.get_running_loop()
        self._remembered[name] = _Remembered(key, loop.time() + KEY_LIFETIME)
        self._remembered.move_to_end(name)
        if len(self._remembered) > _MAX_KEYS:
            self._remembered.popitem(last=False)
        if self._forgetting is None:
            self._forgetting = loop.call_later(KEY_LIFETIME, self._forget_old)

    def _forget_old(self) -> None:
        loop = asyncio.get_running_loop()
        while self._remembered:
            name, known = next(iter(self._remembered.items()))
            if known.until > loop.time():
                self._forgetting = loop.call_at(known.until, self._forget_old)
                return
            del self._remembered[name]
        self._forgetting = None

    def _lock(self, tokens: str) -> asyncio.Lock:
        """Held by whoever asks the server about a vault, so that others need not."""
        return self._looking.setdefault(tokens, asyncio.Lock())

    async def _look(self, tokens: str) -> DataKey | None:
        epoch = self._epoch
        key = await self._bucket.key(tokens)
        if key is not None:
            self._remember(tokens, key, epoch)
        return key
