"""``audit``: seals over the log, and everything that rests on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from agentfield.amount import number_of
from agentfield.archive.reading import Archive
from agentfield.audit.checking import Checked, check_archive, check_export, check_live, open_export
from agentfield.audit.exporting import FORMATS, Selection, export, require_packages
from agentfield.audit.keyfile import make_key, read_key, read_witness, write_witness
from agentfield.audit.nkey import check_public_key, require_cryptography
from agentfield.audit.replacing import replacing
from agentfield.audit.reporting import Question, Report, collect, page
from agentfield.audit.seal import MAX_EVENTS, Seal
from agentfield.cli.connecting import connected, without_beginning
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command, group
from agentfield.cli.kinds import DURATION, POINT, Count, Point
from agentfield.cli.logs import warn_on_stderr
from agentfield.cli.output import Output, size
from agentfield.cli.projecting import source_of
from agentfield.cli.running_projections import check_not_paused, run_all
from agentfield.cli.scopes import EVERYWHERE, scope_options, to_read
from agentfield.cli.verdicts import entitle, failure, show
from agentfield.cli.waiting import wait
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import bounds, extent
from agentfield.pattern import Pattern
from projections.seals import EVERY, WITHIN, Sealer, Seals

_PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

public_keys_option = click.option(
    "--public-key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Believe seals that this key has signed; may be given several times.",
)


@command("keygen", takes=("json",))
@click.argument("path", metavar="FILE", type=_PATH)
def keygen_command(invocation: Invocation, path: Path) -> None:
    """Make a key that signs seals, in a new file, and print its public half.

    Whoever has the file can make seals: keep it where those who keep the log cannot read it. The public key is what
    verifying takes; write it down elsewhere.
    """
    require_cryptography()
    public = make_key(path).public
    if invocation.json:
        invocation.output.object({"public_key": public, "file": str(path)})
    else:
        invocation.output.text(public)


@command("seal")
@click.option("--key", "key_file", type=FILE, required=True, metavar="FILE", help="The key's file, from keygen.")
@click.option("--follow", is_flag=True, help="Go on sealing what comes, until Ctrl-C or SIGTERM.")
@click.option(
    "--every",
    type=Count(1, MAX_EVENTS),
    default=EVERY,
    metavar="N",
    show_default=True,
    help="Make a seal of at most so many events.",
)
@click.option(
    "--within",
    type=DURATION,
    default=WITHIN,
    metavar="TIME",
    show_default=True,
    help="With --follow: let no event wait longer.",
)
def seal_command(invocation: Invocation, key_file: Path, follow: bool, every: int, within: float) -> None:
    """Seal what the log holds and no seal covers yet.

    Any number of processes may seal one log; one of them does the work, the others stand by. After any interruption,
    the next one goes on where the last seal ends. With --follow, this is `agentfield projections run seals`.
    """
    signer = read_key(key_file)
    output = invocation.output
    warn_on_stderr()

    async def seal() -> int:
        count = 0

        def made(each: Seal) -> None:
            nonlocal count
            count += 1
            _print_seal(each, output)

        async with source_of(invocation, founds=follow) as source:
            sealer = Sealer(source, Seals(signer, every=every, within=within, made=made))
            last = await sealer.catch_up()
            await check_not_paused(sealer, last)
            output.note(f"sealed up to revision {last}, signed by {signer.public}")
            if follow:
                await run_all([sealer])
            return count

    if wait(seal()) == 0 and not follow:
        output.note("there was nothing to seal")


def _print_seal(seal: Seal, output: Output) -> None:
    if output.as_json:
        fields = {"seal": seal.number, "first": seal.first, "last": seal.last, "events": seal.count}
        output.object(fields, flush=True)
    else:
        output.line(("seal", "dim"), str(seal.number), f"revisions {seal.first} to {seal.last}", flush=True)


@command("verify")
@click.option("--from", "start", type=POINT, metavar="POINT", help="Verify from here on, in whole seals.")
@click.option("--to", "stop", type=POINT, metavar="POINT", help="Verify up to here, in whole seals.")
@click.option("--export", "path", type=FILE, metavar="FILE", help="Verify this export, by the seals in it.")
@click.option(
    "--archive",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIRECTORY",
    help="Verify this archive, by the seals on the server.",
)
@click.option("--live-seals", is_flag=True, help="With --export: by the seals on the server.")
@click.option(
    "--whole",
    is_flag=True,
    help="Fail unless every event that a seal covers is there: of a log, with what its archive holds.",
)
@public_keys_option
@click.option(
    "--witness",
    "witness_file",
    type=_PATH,
    metavar="FILE",
    help="A file that this keeps: the newest seal it has verified, so that it notices if that is gone.",
)
def verify_command(
    invocation: Invocation,
    start: Point | None,
    stop: Point | None,
    path: Path | None,
    directory: Path | None,
    live_seals: bool,
    whole: bool,
    keys: Sequence[str],
    witness_file: Path | None,
) -> None:
    """Verify that the log is what was sealed, or name the first event that is not.

    Everything is computed again from what is stored, and compared with the seals and their signatures.
    """
    verify_seals(
        invocation,
        start,
        stop,
        path,
        directory=directory,
        live_seals=live_seals,
        whole=whole,
        keys=keys,
        witness_file=witness_file,
    )


def verify_seals(
    invocation: Invocation,
    start: Point | None = None,
    stop: Point | None = None,
    path: Path | None = None,
    *,
    directory: Path | None = None,
    live_seals: bool = False,
    whole: bool = False,
    keys: Sequence[str],
    witness_file: Path | None = None,
) -> None:
    """Verify, and say what was found: an export, the archive in a directory, or else the live log.

    ``whole``: fail unless every event that a seal covers was there, and take log and archive as one.
    """
    require_cryptography()
    trusted = [check_public_key(key) for key in keys]
    if live_seals and path is None:
        raise click.UsageError("--live-seals means nothing without --export", click.get_current_context())
    if directory is not None and path is not None:
        raise click.UsageError("--archive and --export exclude one another", click.get_current_context())
    if isinstance(start, int) and isinstance(stop, int) and start > stop:
        raise click.UsageError(f"--from {start} lies after --to {stop}", click.get_current_context())
    if whole and (start, stop) != (None, None):
        raise click.UsageError("--whole means everything: leave out --from and --to", click.get_current_context())
    checked, stream, now = wait(
        _check(invocation, start, stop, path, directory, live_seals, whole, trusted, witness_file)
    )
    what = "log" if path is None else "export"
    show(checked.verdict, invocation.output, what=what if directory is None or whole else "archive", now=now)
    fault = failure(checked.verdict, whole=whole)
    if fault is not None:
        raise fault
    if witness_file is not None and checked.verdict.witness is not None:
        write_witness(witness_file, stream, checked.verdict.witness)


async def _check(
    invocation: Invocation,
    start: Point | None,
    stop: Point | None,
    path: Path | None,
    directory: Path | None,
    live_seals: bool,
    whole: bool,
    trusted: Sequence[str],
    witness_file: Path | None,
) -> tuple[Checked, str, int]:
    """The verdict, the log's stream, and the time."""
    if path is not None and not live_seals:
        if not all(isinstance(point, int | None) for point in (start, stop)):
            raise click.UsageError("of an export, a range is given by revisions", click.get_current_context())
        exported = open_export(path).header.extent
        stream = exported.stream
        witness = None if witness_file is None else read_witness(witness_file, stream)
        begin = start if isinstance(start, int) else 1
        end = stop if isinstance(stop, int) else None
        _refuse_nothing(begin, end, exported.last, "export")
        checked = await check_export(path, trusted=trusted, witness=witness, start=begin, stop=end)
        return checked, stream, int(datetime.now(UTC).timestamp() * 1e9)
    async with connected(invocation) as fabric:
        stream = fabric.log.stream
        witness = None if witness_file is None else read_witness(witness_file, stream)
        first, end = await _range(fabric, start, stop)
        begin = first or 1
        if directory is not None and whole:
            fabric.log.earlier = Archive(directory)
        if directory is not None and not whole:
            _refuse_nothing(begin, end, int((await fabric.log.state())["last_seq"]), "log")
            checked = await check_archive(directory, by=fabric, trusted=trusted, witness=witness, start=begin, stop=end)
        elif path is None:
            _refuse_nothing(begin, end, int((await fabric.log.state())["last_seq"]), "log")
            checked = await check_live(fabric, whole=whole, trusted=trusted, witness=witness, start=begin, stop=end)
        else:
            _refuse_nothing(begin, end, open_export(path).header.extent.last, "export")
            checked = await check_export(path, by=fabric, trusted=trusted, witness=witness, start=begin, stop=end)
        return checked, stream, fabric.log.now()


def _refuse_nothing(begin: int, end: int | None, last: int, what: str) -> None:
    """Raises InvalidInputError for a range in which no event can be: to verify none would look like success."""
    if begin > (last if end is None else min(last, end)):
        asked = f"from revision {begin} on" if end is None else f"in revisions {begin} to {end}"
        there = f"ends at {last}" if last else "is empty"
        raise InvalidInputError(f"there is nothing to verify {asked}: the {what} {there}")


@command("export", takes=LOOKING_BACK)
@click.argument("path", metavar="FILE", type=_PATH)
@click.argument("pattern", metavar="[KEY_OR_PATTERN]", default="*")
@click.option(
    "--format",
    "format",
    type=click.Choice(FORMATS),
    default="jsonl",
    show_default=True,
    metavar="FORMAT",
    help=f"One of {', '.join(FORMATS)}.",
)
@click.option("--since", type=POINT, metavar="POINT", help="From this time (RFC 3339), age (15m, 2h) or revision on.")
@click.option("--until", type=POINT, metavar="POINT", help="Up to before this time or age, or up to this revision.")
@scope_options
def export_command(
    invocation: Invocation,
    path: Path,
    pattern: str,
    format: str,
    since: Point | None,
    until: Point | None,
    scope: AnyScope | None,
) -> None:
    """Write the log, or some of it, to a file, exactly as it is stored.

    With its seals, so that the file can be verified anywhere. What was trimmed off the log comes from its archive. The
    file is there when all of it is written, and replaces one of that name.
    """
    parsed = Pattern.parse(pattern)
    require_packages(format)
    output = invocation.output

    async def write() -> None:
        async with connected(invocation) as fabric:
            first, last = await _part(fabric, since, until)
            scopes = EVERYWHERE if scope is None else to_read(scope)
            done = await export(fabric, path, format, Selection(parsed, scopes, first, last))
        written = await asyncio.to_thread(lambda: path.stat().st_size)
        if since is None and done.first > 1:
            output.note(without_beginning(done.first))
        if output.as_json:
            counts = {"events": done.events, "seals": done.seals, "left_out": done.left_out}
            span = {"first": done.first, "last": done.last}
            output.object({"file": str(path), "format": format, "bytes": written, **span, **counts})
            return
        seals = [] if format == "cloudevents" else [number_of(done.seals, "seal")]
        output.line((str(path), "bold"), ", ".join([number_of(done.events, "event"), *seals, size(written)]))
        if done.left_out:
            left_out = number_of(done.left_out, "message that is no event", "messages that are no events")
            output.note(f"left out: {left_out} of keys, such as those of locks")

    wait(write())


@command("report", takes=("url", "namespace", "archive", "timeout"))
@click.argument("pattern", metavar="[KEY_OR_PATTERN]", default="*")
@click.option("--writer", metavar="NAME", help="Only what this agent, execution, workflow or session wrote.")
@click.option("--since", type=POINT, metavar="POINT", help="From this time (RFC 3339), age (15m, 2h) or revision on.")
@click.option("--until", type=POINT, metavar="POINT", help="Up to before this time or age, or up to this revision.")
@click.option("--output", "path", type=_PATH, metavar="FILE", help="Where to write the page.  [default: stdout]")
@public_keys_option
@scope_options
def report_command(
    invocation: Invocation,
    pattern: str,
    writer: str | None,
    since: Point | None,
    until: Point | None,
    path: Path | None,
    keys: Sequence[str],
    scope: AnyScope | None,
) -> None:
    """Tell what happened, with the evidence, as one HTML page.

    Of a key or a pattern, a scope, or a writer: who wrote what and when, the value before and after, because of which
    event, and what the seals say of it. The page needs nothing else and can be printed. It is made whatever is found;
    the command fails if something is not as it was sealed.
    """
    require_cryptography()
    trusted = [check_public_key(key) for key in keys]
    parsed = Pattern.parse(pattern)

    async def collected() -> Report:
        async with connected(invocation) as fabric:
            first, last = await _part(fabric, since, until)
            question = Question(parsed, to_read(scope), writer, first, last)
            return await collect(fabric, question, trusted=trusted)

    report = wait(collected())
    if since is None and report.begins > 1:
        invocation.output.note(without_beginning(report.begins))
    entitle(report, pattern=pattern, scope=scope, writer=writer, since=since, until=until)
    text = page(report)
    if path is None:
        invocation.output.text(text)
    else:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        invocation.output.note(f"{path}: {number_of(len(report.rows), 'event')}")
    if not report.checked.verdict.intact and (fault := failure(report.checked.verdict)) is not None:
        raise fault


async def _part(fabric: Fabric, since: Point | None, until: Point | None) -> tuple[int | None, int | None]:
    """The same as :func:`_range`, of a past that is to be read: HistoryTruncatedError if its beginning is gone."""
    first, last = await extent(fabric, *(_moment(point, fabric) for point in (since, until)))
    return (None if since is None else first), (None if until is None else last)


async def _range(fabric: Fabric, since: Point | None, until: Point | None) -> tuple[int | None, int | None]:
    """The revisions between two points, None for an end that was not named."""
    points = [_moment(point, fabric) for point in (since, until)]
    first, last = await bounds(fabric, *points)
    return (None if since is None else first), (None if until is None else last)


def _moment(point: Point | None, fabric: Fabric) -> datetime | int | None:
    """The point, an age counted back from now by the server's clock."""
    if not isinstance(point, timedelta):
        return point
    try:
        return datetime.fromtimestamp(fabric.log.now() / 1e9, UTC) - point
    except OverflowError:
        raise InvalidInputError(f"{point} ago is before time began: give a shorter age, or leave it out") from None


audit_command = group(
    "audit",
    keygen_command,
    seal_command,
    verify_command,
    export_command,
    report_command,
    help="""Seal the log, verify it, export it, and report from it.

    Seals are signed statements of what the log holds. With them, anybody can prove later that it still holds just that,
    and if not, which event is the first that was changed, removed or inserted.""",
)
