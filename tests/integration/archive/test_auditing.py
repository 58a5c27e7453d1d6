"""Exports and reports of a log that was trimmed are those of the whole log: they read on from its archive."""

from pathlib import Path
from typing import NamedTuple

import pytest

from agentfield import HistoryTruncatedError, InvalidInputError, Memory
from agentfield.archive.reading import Archive
from agentfield.audit.checking import check_export
from agentfield.audit.exporting import Selection, export
from agentfield.audit.nkey import Signer
from agentfield.audit.reporting import Question, collect
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION
from tests.support.archiving import archive, rewritten, trim, write
from tests.support.sealing import seal_all

SIGNER = Signer.generate()
EVERYWHERE: tuple[AnyScope, ...] = tuple((kind, None) for kind in RESOLUTION)
FORMATS = ("jsonl", "cloudevents", "parquet")


def selection(pattern: str = "*", first: int | None = None, last: int | None = None) -> Selection:
    return Selection(Pattern.parse(pattern), EVERYWHERE, first, last)


async def lines(fabric: Fabric, path: Path, format: str, some: Selection) -> list[bytes]:
    """The events that are exported, each as its line."""
    await export(fabric, path, format, some)
    content = path.read_bytes()  # noqa: ASYNC240
    return [line for line in content.splitlines() if line.startswith((b'{"revision":', b'{"specversion":'))]


class Before(NamedTuple):
    """What was exported when the log held everything; the log is trimmed now."""

    exported: dict[tuple[str, str], list[bytes]]
    archive: Path


@pytest.fixture
async def before(fabric: Fabric, memory: Memory, tmp_path: Path) -> Before:
    await write(memory, 5)
    await seal_all(fabric, SIGNER, every=40)
    exported = {
        (format, pattern): await lines(fabric, tmp_path / "log", format, selection(pattern))
        for format in ("jsonl", "cloudevents")
        for pattern in ("*", "order_5")
    }
    path = await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path) > 20
    fabric.log.earlier = Archive(path)
    return Before(exported, path)


async def test_an_export_is_what_it_was_before_the_log_was_trimmed(
    fabric: Fabric, before: Before, tmp_path: Path
) -> None:
    for (format, pattern), exported in before.exported.items():
        now = await lines(fabric, tmp_path / "now", format, selection(pattern))
        assert now[: len(exported)] == exported  # behind them comes what trimming has left
    for format in ("jsonl", "parquet"):
        await export(fabric, tmp_path / "now", format, selection())
        found = (await check_export(tmp_path / "now", trusted=[SIGNER.public])).verdict
        assert (found.intact, found.first, found.begins_at) == (True, 1, 0)
        assert found.events == len(before.exported["jsonl", "*"])


async def test_without_the_archive_an_export_begins_with_the_log_or_is_refused(
    fabric: Fabric, before: Before, tmp_path: Path
) -> None:
    fabric.log.earlier = None
    path = tmp_path / "log"
    path.unlink()
    for format in FORMATS:
        with pytest.raises(HistoryTruncatedError):
            await export(fabric, path, format, selection(first=2))
    with pytest.raises(HistoryTruncatedError):
        await collect(fabric, Question(Pattern.parse("*"), EVERYWHERE, None, 2, None), trusted=[SIGNER.public])
    assert not path.exists()
    assert (await export(fabric, path, "jsonl", selection())).first == fabric.log.held.complete


async def test_an_erasure_says_from_where_on_the_log_was_looked_at(fabric: Fabric, tmp_path: Path) -> None:
    async def source() -> Fabric:
        return fabric

    memory = Memory(source)
    user = memory.session("user-1")
    for _ in range(3):
        await user.set("email", "written in plain")
    await memory.set_personal(["session"])
    await user.set("email", "ada@example.org")
    path = await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path)
    receipt = await memory.erase(scope="session", scope_id="user-1")
    assert (receipt.looked_from, receipt.left, receipt.complete) == (fabric.log.held.complete, [], False)
    fabric.log.earlier = Archive(path)
    receipt = await memory.erase(scope="session", scope_id="user-1")
    assert (receipt.looked_from, [(left.fate, left.events) for left in receipt.left]) == (1, [("not personal", 3)])
    fabric.log.earlier = Archive(tmp_path / "nothing")
    await user.set("email", "ada@example.org")
    with pytest.raises(InvalidInputError, match="no archive in"):
        await memory.erase(scope="session", scope_id="user-1")
    assert await user.get("email") == "ada@example.org"


async def test_a_report_tells_and_verifies_what_is_in_the_archive(fabric: Fabric, before: Before) -> None:
    question = Question(Pattern.parse("order_5"), EVERYWHERE, None, None, None)
    report = await collect(fabric, question, trusted=[SIGNER.public])
    assert len(report.rows) == len(before.exported["jsonl", "order_5"])
    assert {row.state for row in report.rows} == {"verified"}
    assert report.rows[0].revision < fabric.log.held.complete
    assert "before" in {line.kind for line in report.rows[1].change}
    async with rewritten(before.archive) as messages:
        at = report.rows[1].revision - 1
        messages[at] = messages[at]._replace(payload=b'"forged"')
    report = await collect(fabric, question, trusted=[SIGNER.public])
    assert report.checked.verdict.finding is not None
    assert [row.revision for row in report.rows if row.state == "tampered"] == [at + 1]
