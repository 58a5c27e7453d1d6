"""What counts as wrong, and what to do about it: one function for each thing the doctor checks.

Pure: from the facts to findings. Must not know: how the facts were gathered, how findings are shown. Invariant: every
finding names its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from agentfield.amount import number_of
from agentfield.cli.connecting import UNWELL
from agentfield.cli.examining import Facts, sources
from agentfield.cli.output import age, size
from agentfield.fabric.personal.policies import REMEDY
from agentfield.fabric.topology import REPLICAS, compare
from agentfield.fabric.trimmed import Trimmed, is_frozen, missing

_LEAST_ROOM = 1_000_000_000
"""Bytes free on the disk below which it is time to act: a full disk stops every write, and needs a restart."""
_MOST_USED = 0.9
_SILENT = 30.0
"""Seconds without a word from its source after which a bucket no longer follows the log; it hears one every second."""
_BUCKET_BEHIND = 1_000
FAR_BEHIND = 1_000
"""Events that a handler may be behind; it holds as many unhandled when it is busy."""
_STUCK = 300.0
"""Seconds without progress, with events to handle, after which a served handler counts as stuck."""
OVERDUE = 30.0
"""Seconds within which a worker, if there is one, has dealt with a due timer, that of one that died included."""
MOST_SKEW = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    check: str
    what: str
    remedy: str

    def fields(self) -> dict[str, Any]:
        """The finding as JSON."""
        return {"check": self.check, "finding": self.what, "remedy": self.remedy}


def server(facts: Facts) -> Iterator[tuple[str, str]]:
    """The server itself. That it answers, is new enough and has JetStream is known already."""
    if facts.fault is not None:
        yield f"the server is not well: {facts.fault}", UNWELL


def disk(facts: Facts) -> Iterator[tuple[str, str]]:
    """Room for what is to come."""
    if facts.disk_free is not None and facts.disk_free < _LEAST_ROOM:
        yield f"only {size(facts.disk_free)} are free where the server keeps its data", "make room on that disk"
    limit, used = int(facts.account["limits"].get("max_storage") or -1), int(facts.account.get("storage") or 0)
    if limit > 0 and used > _MOST_USED * limit:
        yield f"the account uses {size(used)} of its {size(limit)}", "raise the account's limit (max_file)"


def streams(facts: Facts) -> Iterator[tuple[str, str]]:
    """Every stream is there, as the table says, with its replicas."""
    there = [spec for spec in facts.topology.streams if facts.info(spec) is not None]
    if not there:
        return  # nobody has used the namespace yet
    if facts.keys_lost is not None:
        yield facts.keys_lost, REMEDY[0].lower() + REMEDY[1:]
    for spec in facts.topology.streams:
        info = facts.info(spec)
        if info is None and spec is facts.topology.log:
            yield (
                f"the log {spec.name} is gone: the server could not load it, or somebody deleted it",
                "the server's own log says why; restore its data from a backup. No agent makes a new log in its place",
            )
            continue
        if info is None:
            yield f"stream {spec.name} is missing", "it is made when the next agent connects; find out who deleted it"
            continue
        for drift in compare(spec, info["config"]):
            yield str(drift), f"if nobody meant that, set it back with `nats stream edit {spec.name}`"
        yield from _replicas(spec.name, info, facts.clustered)


def _replicas(name: str, info: Mapping[str, Any], clustered: bool) -> Iterator[tuple[str, str]]:
    if not clustered:
        return
    count = int(info["config"].get("num_replicas", 1))
    if count < REPLICAS:
        yield (
            f"stream {name} has {number_of(count, 'replica')}, {REPLICAS} are needed to survive a server",
            "have three servers in the cluster; the next agent that may then raises it",
        )
    cluster = info.get("cluster") or {}
    if not cluster.get("leader"):
        yield f"stream {name} has no leader", "bring back a majority of its servers"
    for replica in cluster.get("replicas") or ():
        if replica.get("offline"):
            yield f"stream {name}: its replica on {replica['name']} is offline", f"bring {replica['name']} back"
        elif not replica.get("current"):
            behind = f", {replica['lag']:,} behind" if replica.get("lag") else ""
            yield (
                f"stream {name}: its replica on {replica['name']} is not current{behind}",
                "wait until it has caught up; if that never ends, look into that server's log",
            )


def log(facts: Facts) -> Iterator[tuple[str, str]]:
    """The log is whole: nothing in it was ever deleted, so whatever is missing was lost."""
    info = facts.info(facts.topology.log)
    if info is None:
        return
    state = info["state"]
    first, last = int(state["first_seq"]), int(state["last_seq"])
    trimmed = Trimmed.of(info["config"])
    lost = missing(info["config"], state)
    if is_frozen(info["config"]):
        yield (
            "the log takes no writes: it is being trimmed, or whoever did that has died",
            "wait: it is thawed by any process of agentfield that is connected, a minute after it was frozen",
        )
    if lost:
        yield (
            f"{number_of(lost, 'event')} of the log cannot be read any more: "
            "its files are damaged, or somebody has set a limit on it",
            "restore the server's data from a backup; on a cluster, remove the damaged replica and let it fill anew",
        )
    for replica, short in sorted(facts.replicas.items()) if not lost else ():
        if short:
            yield (
                f"the log's replica on {replica} is short of {number_of(short, 'event')}",
                f"if that stays so, its files are damaged: stop {replica}, remove its copy of "
                f"{facts.topology.log.name}, start it, and it fills anew",
            )
    if last and first > (1 if trimmed is None else trimmed.first):
        yield (
            f"the log begins at revision {first:,}: what came before was trimmed, and history no longer has it",
            f"take the limits off {facts.topology.log.name}, and the permission to change it from agents",
        )


def buckets(facts: Facts) -> Iterator[tuple[str, str]]:
    """The server keeps the buckets equal to the log."""
    for spec in facts.topology.buckets:
        info = facts.info(spec)
        if info is None:
            continue
        for source in sources(info):
            silent = int(source.get("active", 0)) / 1e9
            if source.get("error"):
                what = f"bucket {spec.name} cannot follow the log: {source['error'].get('description')}"
            elif silent < 0 or silent > _SILENT:
                what = f"bucket {spec.name} no longer follows the log"
            elif int(source.get("lag", 0)) >= _BUCKET_BEHIND:
                what = f"bucket {spec.name} is {int(source['lag']):,} events behind the log"
            else:
                continue
            yield what, "agents are not concerned, they read the log; for those that read it, restart its server"


def handlers(facts: Facts) -> Iterator[tuple[str, str]]:
    """Every handler is somebody's, and gets on."""
    now = datetime.now(UTC)
    for each in facts.survey.handlers:
        durable = each.durable
        behind = f"{number_of(durable.lag, 'event')} behind"
        # A server that was restarted no longer knows when it last got on.
        since = durable.last_active or (now if durable.floor else durable.created)
        idle = (now - since).total_seconds()
        if each.orphan is not None:
            yield f"{each.name} is an orphan, {behind}: {each.orphan}", f"`agentfield handlers remove {each.name}`"
        elif not each.is_served and durable.lag:
            yield (
                f"nobody serves {each.name}, and it is {behind}",
                f"start {durable.agent}; or, if it is not coming back, `agentfield handlers remove {each.name}`",
            )
        elif durable.lag and idle > _STUCK:
            yield (
                f"{each.name} is {behind} and has not got on for {age(idle)}",
                "see what it does (the log of its process); timeout=… ends a try that hangs",
            )
        elif durable.lag >= FAR_BEHIND:
            yield (
                f"{each.name} is {behind}",
                "if that does not shrink: handle several keys at once with concurrency=…, or do less in it",
            )


def deadletters(facts: Facts) -> Iterator[tuple[str, str]]:
    """No event waits for somebody to decide."""
    for (agent, handler), count in sorted(facts.survey.letters.items()):
        yield (
            f"{number_of(count, 'dead letter')} of {agent}.{handler}",
            f"`agentfield deadletters list --agent {agent} --handler {handler}`, then replay or drop",
        )


def timers(facts: Facts) -> Iterator[tuple[str, str]]:
    """Somebody deals with what comes due."""
    if facts.overdue and facts.overdue_for > OVERDUE:
        running = "the agents that run do not get to it" if facts.survey.agents else "no agent is running"
        yield (
            f"{number_of(facts.overdue, 'timer')} overdue, the first for {age(facts.overdue_for)}: {running}",
            "serve an agent, any one: each does this work for all",
        )


def clock(facts: Facts) -> Iterator[tuple[str, str]]:
    """The clock here and the server's agree."""
    skew = facts.skew
    if skew is not None and abs(skew.seconds) - skew.uncertainty > MOST_SKEW:
        side = "ahead of" if skew.seconds > 0 else "behind"
        yield (
            f"the server's clock is {abs(skew.seconds):.1f} s {side} the one here",
            "have both set by NTP; agentfield itself goes by the server's",
        )


CHECKS: Final[Mapping[str, Callable[[Facts], Iterator[tuple[str, str]]]]] = MappingProxyType(
    {check.__name__: check for check in (server, disk, streams, log, buckets, handlers, deadletters, timers, clock)}
)
"""What is checked, in the order in which it is told."""


def findings(facts: Facts) -> list[Finding]:
    """Everything that is wrong."""
    return [Finding(name, what, remedy) for name, check in CHECKS.items() for what, remedy in check(facts)]
