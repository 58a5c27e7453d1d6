"""A durable consumer of the log as the server keeps it: what it is, where it begins, and what it remembers for us.

Owns: its definition and the metadata in it. Must not know: who pulls from it. Invariants: where an existing consumer
stands is never changed by declaring it; one that was deleted is made again to go on after what is known as handled.

* The seam of a consumer that begins with present values is written into its metadata when it is created.
* So is the number at which the log begins, as far as that has been reported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agentfield.fabric.consumers.beginning import beginning, can_be_moved, deliver_policy
from agentfield.fabric.consumers.consuming import ConsumerSpec
from agentfield.fabric.consumers.progress import Progress
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import PATIENCE, api
from agentfield.fabric.log import Log

logger = logging.getLogger("agentfield.consumer")

GROUP = "active"
PIN_TIMEOUT = 3.0
"""Seconds without a pull after which the server lets a standby take over."""
_ACK_WAIT = 24 * 3600
"""Seconds until the server redelivers by itself. Long: on takeover the reset redelivers, in order; a redelivery while
the instance lives could only come out of order."""
_SEAM = "seam"
_LOG_START = "log-start"


class Durable:
    """One consumer on the server. What is learned of it goes into ``progress``."""

    def __init__(self, log: Log, spec: ConsumerSpec, progress: Progress) -> None:
        self._log = log
        self._spec = spec
        self._progress = progress
        self.seam: int | None = None
        """Where the present values end and their changes begin; None for a consumer that begins elsewhere."""
        self.log_start = 1
        """Where the log begins, as far as that has been reported."""
        self.can_be_moved = False
        """Whether it can be reset to go on after what was handled of events that it did not deliver."""

    async def ensure(self, *, declare: bool = True) -> None:
        """Create the consumer, or make an existing one hear what it should; where it stands is never changed.

        Without ``declare``, one that is there is left as it is: whoever declared it last may have meant something else.
        Raises :class:`UnavailableError` (nothing changed) when the server does not answer.
        """
        state = await self._log.state()  # before it is created: what comes later is heard
        try:
            existing = await self._config()
            if existing is None:
                existing = await self._create(state)
            if existing is not None and declare:
                await self._conform(existing)
        except Fault as fault:
            raise error_of(fault, f"preparing the consumer {self._spec.name}") from None

    async def ask(
        self, what: str, body: Mapping[str, Any] | None = None, patience: float = PIN_TIMEOUT / 2
    ) -> dict[str, Any]:
        """What the server answers to a request about this consumer. Raises what :func:`api` raises."""
        subject = f"CONSUMER.{what}.{self._log.stream}.{self._spec.name}"
        return await api(self._log.connection, subject, body, patience=patience)

    def note(self, info: Mapping[str, Any]) -> None:
        """Remember what the consumer knows, should it be deleted: a standby knows it only from here."""
        self._progress.raise_floor(int(info["ack_floor"]["stream_seq"]))
        self.can_be_moved = can_be_moved(info["config"])
        metadata = info["config"].get("metadata") or {}
        if _SEAM in metadata:
            self.seam = int(metadata[_SEAM])
        self.log_start = max(self.log_start, int(metadata.get(_LOG_START, 1)))

    async def learn(self) -> None:
        """Ask the server how far the consumer has come. Raises :class:`UnavailableError`."""
        try:
            await self._config()
        except Fault as fault:
            raise error_of(fault, f"asking for the state of the consumer {self._spec.name}") from None

    async def note_log_start(self, start: int) -> None:
        """Let every instance know that it is known, or has been reported, that the log begins at ``start``."""
        self.log_start = max(self.log_start, start)
        config = (await self.ask("INFO"))["config"]
        metadata = {name: text for name, text in config["metadata"].items() if not name.startswith("_nats")}
        if int(metadata.get(_LOG_START, 1)) < self.log_start:
            config["metadata"] = {**metadata, _LOG_START: str(self.log_start)}
            await self.ask("CREATE", {"stream_name": self._log.stream, "config": config, "action": "update"})

    async def _create(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create the consumer; if another instance was faster, return what it made."""
        spec, floor = self._spec, self._progress.floor
        config = _config(spec)
        if floor is None:
            config |= deliver_policy(await beginning(self._log, spec.start, state))
            if spec.start == "current":
                self.seam = int(state["last_seq"])
            if spec.start in ("new", "current"):  # what was taken out before that is not missed
                self.log_start = int(state["first_seq"])
        else:
            config |= deliver_policy(floor + 1)
            logger.warning(
                "consumer %s is gone from the server: it is made again, to go on after revision %d", spec.name, floor
            )
        config["metadata"] = self._metadata()
        try:
            self.note(await self._define(config, "create"))
        except ServerFault as fault:
            if fault.verdict is not Verdict.EXISTS:
                raise
            if floor is None:
                self.seam, self.log_start = None, 1  # what the one who made it noted counts
            return await self._config()
        return None

    async def _conform(self, existing: Mapping[str, Any]) -> None:
        """Change what an existing consumer hears, if it is not what it should."""
        config = _config(self._spec)
        known = existing.get("metadata") or {}  # the server adds fields of its own
        wanted = known | self._metadata()
        if known == wanted and all(existing.get(name) == value for name, value in config.items() if value):
            return
        config["metadata"] = wanted
        for name in ("deliver_policy", "opt_start_seq", "opt_start_time"):
            if existing.get(name) is not None:
                config[name] = existing[name]
        self.note(await self._define(config, ""))

    async def _define(self, config: Mapping[str, Any], action: str) -> dict[str, Any]:
        body = {"stream_name": self._log.stream, "config": config, "action": action}
        return await self.ask("CREATE", body, PATIENCE)

    def _metadata(self) -> dict[str, str]:
        own = {_LOG_START: str(self.log_start)}
        if self.seam is not None:
            own[_SEAM] = str(self.seam)
        return {**self._spec.metadata, **own}

    async def _config(self) -> dict[str, Any] | None:
        """What the consumer is on the server, or None if it is not there; where it stands is taken note of."""
        try:
            info = await self.ask("INFO", patience=PATIENCE)
        except ServerFault as fault:
            if fault.verdict is Verdict.ABSENT:
                return None
            raise
        self.note(info)
        config: dict[str, Any] = info["config"]
        return config


def _config(spec: ConsumerSpec) -> dict[str, Any]:
    """What a consumer should be, whenever it was made, under the server's names."""
    return {
        "durable_name": spec.name,
        "name": spec.name,
        "description": spec.description,
        "ack_policy": "all",
        "ack_wait": int(_ACK_WAIT * 1e9),
        "max_deliver": -1,
        "max_ack_pending": -1,  # the window bounds it; a limit here would stop a consumer whose floor lags
        "max_waiting": 512,
        "filter_subjects": list(spec.filters),
        "priority_groups": [GROUP],
        "priority_policy": "pinned_client",
        "priority_timeout": int(PIN_TIMEOUT * 1e9),
    }
