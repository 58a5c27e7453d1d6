"""``archive``, and what reads on from it."""

import json
from pathlib import Path

import pytest

from agentfield import Memory
from tests.cli.conftest import Inside, Remember


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the directory that the environment names."""
    path = tmp_path / "kept"
    monkeypatch.setenv("AGENTFIELD_ARCHIVE", str(path))
    return path


async def written(memory: Memory) -> None:
    for number in range(5):
        await memory.set("order_1", number)
    await memory.set("quiet", "q")


def test_a_log_is_archived_verified_trimmed_and_read_on(inside: Inside, remember: Remember, archive: Path) -> None:
    remember(written)
    for command in (["show"], ["trim", "--dry-run"]):
        assert inside("archive", *command).code == 3
    assert inside("projections", "run", "--once", "archive").out == "archive is current up to event 6\n"
    assert inside("projections", "verify", "archive").out == "as of event 6, its rows (6) are what the log says\n"
    shown = json.loads(inside("archive", "show", "--json").out)
    assert (shown["archive"], shown["first"], shown["archived"], shown["files"]) == (str(archive), 1, 6, 1)
    assert inside("archive", "trim").code == 2
    assert "up to revision 6" in inside("archive", "trim", "--dry-run").out
    before = inside("history", "order_1").out
    done = json.loads(inside("archive", "trim", "--yes", "--json").out)
    assert (done["removed"], done["complete"], done["begins"]) == (4, 10, 9)
    assert inside("history", "order_1").out == before
    assert inside("get", "order_1").out == "4\n"
    assert inside("as-of", "3", "order_1").out == "2\n"
    assert "order_1 1 → 4" in inside("diff", "order_1", "2").out
    assert inside("revert", "order_1", "2", "--yes").code == 0
    assert inside("get", "order_1").out == "1\n"
    assert inside("why", "order_1", "--revision", "2").code == 0
    verified = inside("projections", "verify", "archive").out
    assert verified == "as of event 9, its rows (5 of 9: the others are no longer in the log) are what the log says\n"
    assert "log          ok" in inside("doctor").out
    assert "trimmed" not in inside("doctor").out


def test_an_archive_elsewhere_is_named(
    inside: Inside, remember: Remember, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(written)
    assert inside("projections", "run", "--once", "archive").code == 0
    assert inside("archive", "trim", "--yes").code == 0
    monkeypatch.delenv("AGENTFIELD_ARCHIVE")
    refused = inside("history", "order_1", "--since", "1")
    assert refused.code == 1
    assert "AGENTFIELD_ARCHIVE" in refused.err
    assert inside("history", "order_1", "--since", "1", "--archive", str(archive)).out.count("order_1") == 5
    assert inside("get", "order_1", "--archive", str(archive)).code == 2
    file = str(tmp_path / "log")
    done = inside("audit", "export", file, "order_1", "--json")
    assert (json.loads(done.out)["events"], "left out" in done.err) == (0, True)
    done = inside("audit", "export", file, "order_1", "--archive", str(archive), "--json")
    assert (json.loads(done.out)["events"], done.err) == (5, "")
    report = inside("audit", "report", "order_1", "--archive", str(archive), "--output", file)
    assert (report.code, report.err) == (0, f"{file}: 5 events\n")


def test_without_its_archive_history_does_not_say_that_nothing_happened(
    inside: Inside, remember: Remember, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(written)
    assert inside("projections", "run", "--once", "archive").code == 0
    assert inside("archive", "trim", "--yes").code == 0
    monkeypatch.delenv("AGENTFIELD_ARCHIVE")
    for asked in (["order_1"], ["order_*"], ["order_1", "--until", "3"], ["order_1", "--writer", "nobody"]):
        refused = inside("history", *asked)
        assert (refused.code, refused.out) == (1, "")
        assert "name the archive of what was before" in refused.err
    assert inside("set", "order_1", "5").code == 0
    left = inside("history", "order_1")
    assert left.out.count("order_1") == 1
    assert "--archive names where it is kept" in left.err
    assert inside("history", "order_1", "--reverse", "--limit", "1").err == ""


def test_what_the_disk_refuses_is_one_line(inside: Inside, remember: Remember, archive: Path) -> None:
    remember(written)
    (archive / ".lock").mkdir(parents=True)
    refused = inside("projections", "run", "--once", "archive")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "the log keeps the rest" in refused.err


def test_an_archive_is_audited(inside: Inside, remember: Remember, archive: Path, tmp_path: Path) -> None:
    remember(written)
    key = tmp_path / "audit.key"
    public = inside("audit", "keygen", str(key)).out.strip()
    assert inside("audit", "seal", "--key", str(key)).code == 0
    assert inside("projections", "run", "--once", "archive").code == 0
    verified = inside("audit", "verify", "--archive", str(archive), "--public-key", public)
    assert verified.out.startswith("verified revisions 1 to 6 (6 events, 1 seal)")
    assert inside("audit", "verify", "--archive", str(archive), "--export", str(key)).code == 2


def test_it_is_neither_removed_nor_rebuilt(inside: Inside, remember: Remember, archive: Path) -> None:
    remember(written)
    assert inside("projections", "run", "--once", "archive").code == 0
    for command in ("remove", "rebuild"):
        assert inside("projections", command, "archive").code in (1, 2)
    assert list(archive.rglob("*.parquet"))
