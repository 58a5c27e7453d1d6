"""``doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

from agentfield.amount import number_of
from agentfield.cli.connecting import place
from agentfield.cli.diagnosing import CHECKS, Finding, findings
from agentfield.cli.ending import DONE, FAILED, one_line
from agentfield.cli.examining import Facts, examine
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.output import Output, size, visible
from agentfield.cli.waiting import wait
from agentfield.errors import AccessDeniedError, IncompatibleServerError, UnavailableError
from agentfield.local import TroubleError


@command("doctor")
def doctor_command(invocation: Invocation) -> int:
    """Look for what is wrong, and say what to do about it.

    Looks at the server, the room on its disk, the streams and their replicas, the log, the buckets, the handlers, dead
    letters, timers and the clock. Changes and starts nothing. Exits with 1 if it finds something.
    """
    output = invocation.output
    where = place(invocation)
    facts: Facts | None = None
    try:
        facts = wait(examine(where, connect_patience=invocation.connect_patience, patience=invocation.patience))
    except UnavailableError as error:
        fact, remedy = str(error), "see to it that it runs, and is reachable from here"
        if isinstance(error, TroubleError):
            fact, remedy = error.fact, error.remedy
        elif isinstance(error, IncompatibleServerError):
            by_version = error.needed[:1].isdigit()
            remedy = f"use a NATS server {'from version' if by_version else 'with'} {error.needed}{' on' * by_version}"
        found = [Finding("server", fact, remedy)]
    except AccessDeniedError as error:
        found = [Finding("server", str(error), "use credentials that may ask about streams and consumers")]
    else:
        found = findings(facts)
    if output.as_json:
        for finding in found:
            output.object(finding.fields())
    else:
        _print(facts, found, output)
    return FAILED if found else DONE


def _print(facts: Facts | None, found: list[Finding], output: Output) -> None:
    for check in CHECKS if facts is not None else ("server",):
        here = [finding for finding in found if finding.check == check]
        state = ("ok", "green") if not here else (number_of(len(here), "finding"), "bold red")
        about = [] if facts is None else [(text, "dim") for text in (_about(check, facts),) if text]
        output.line(check.ljust(12), state, *about)
        for finding in here:
            output.line("  -", one_line(visible(finding.what)))
            output.line("    →", one_line(visible(finding.remedy)))
    if facts is not None:
        for remark in _remarks(facts):
            output.line(("note:", "dim"), remark)


def _about(check: str, facts: Facts) -> str:
    """What was looked at, in a few words."""
    if check == "server":
        kind = ", embedded" if facts.embedded is not None else ", clustered" if facts.clustered else ""
        return f"{facts.url} (nats-server {facts.version}{kind})"
    if check == "disk" and facts.disk_free is not None:
        return f"{size(facts.disk_free)} free"
    if check == "log" and (info := facts.info(facts.topology.log)) is not None:
        return f"{int(info['state']['messages']):,} messages"
    if check == "handlers":
        return f"{len(facts.survey.handlers)} of them" if facts.survey.handlers else ""
    if check == "clock" and facts.skew is not None:
        return f"{abs(facts.skew.seconds) * 1000:.0f} ms apart" if abs(facts.skew.seconds) < 1 else ""
    return ""


def _remarks(facts: Facts) -> list[str]:
    """What is not wrong, but good to know."""
    remarks = []
    if not any(facts.streams.values()):
        remarks.append(f"namespace {facts.topology.namespace} has not been used yet on this server")
    elif not facts.survey.agents:
        remarks.append(f"no agent is running in namespace {facts.topology.namespace}")
    return remarks
