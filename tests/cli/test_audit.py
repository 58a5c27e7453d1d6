"""audit: keys, seals, verdicts and exports as people get them, and what every kind of tampering looks like to them."""

import json
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentfield import Memory
from tests.cli.command import Cli
from tests.cli.conftest import Remember


@pytest.fixture
def key(cli: Cli, tmp_path: Path) -> tuple[str, str]:
    """Return the path of a new key's file, and its public half."""
    path = tmp_path / "audit.key"
    return str(path), cli("audit", "keygen", str(path)).out.strip()


@pytest.fixture
def sealed(cli: Cli, remember: Remember, key: tuple[str, str]) -> Cli:
    """Return the command line on a log of twelve events, in three seals."""

    async def write(memory: Memory) -> None:
        for number in range(11):
            await memory.set(f"order_{number}", {"total": number, "name": "né"}, scope="global")
        await memory.delete("order_3", scope="global")

    remember(write)
    assert cli("audit", "seal", "--key", key[0], "--every", "5").code == 0
    return cli


def test_a_key_is_made_in_a_file_of_its_owners_own(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "key"
    done = cli("audit", "keygen", str(path))
    assert (done.code, done.err, len(done.out)) == (0, "", 57)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("SA")
    assert done.out.strip() not in path.read_text()
    before = path.read_text()
    again = cli("audit", "keygen", str(path))
    assert (again.code, "is there already" in again.error, path.read_text()) == (2, True, before)
    other = cli("audit", "keygen", str(tmp_path / "other"), "--json").object
    assert other["public_key"].startswith("A")


def test_a_key_that_others_can_read_does_not_sign(cli: Cli, key: tuple[str, str]) -> None:
    Path(key[0]).chmod(0o644)
    assert "can be read by others" in cli("audit", "seal", "--key", key[0]).error
    Path(key[0]).write_text("not a key")
    Path(key[0]).chmod(0o600)
    assert "holds no nkey seed" in cli("audit", "seal", "--key", key[0]).error


def test_sealing_says_what_it_sealed_and_goes_on_where_it_was(sealed: Cli, key: tuple[str, str]) -> None:
    sealed("set", "order_1", "1")
    done = sealed("audit", "seal", "--key", key[0])
    assert (done.code, done.out) == (0, "seal 4 revisions 13 to 13\n")
    assert done.err == f"sealed up to revision 13, signed by {key[1]}\n"
    nothing = sealed("audit", "seal", "--key", key[0], "--json")
    assert (nothing.code, nothing.out, "nothing to seal" in nothing.err) == (0, "", True)
    sealed("set", "order_1", "2")
    again = sealed("audit", "seal", "--key", key[0], "--json")
    assert again.object == {"seal": 5, "first": 14, "last": 14, "events": 1}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_sealing_can_follow_the_log_until_it_is_told_to_stop(
    cli: Cli, key: tuple[str, str], end: signal.Signals
) -> None:
    cli("set", "a", "1")
    following = cli.start("audit", "seal", "--key", key[0], "--follow", "--within", "0.2")
    following.wait_line("sealed up to revision 1")
    cli("set", "b", "1")
    following.wait_line("revisions 2 to 2")
    assert following.end(end).code == 0
    assert cli("audit", "verify", "--public-key", key[1]).code == 0


def test_an_intact_log_is_verified(sealed: Cli, key: tuple[str, str]) -> None:
    done = sealed("audit", "verify", "--public-key", key[1])
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith("verified revisions 1 to 12 (12 events, 3 seals), the last of 20")
    assert done.lines[1:] == [f"signed by {key[1]}"]
    sealed("set", "later", "1")
    verdict = sealed("audit", "verify", "--public-key", key[1], "--json").object
    assert (verdict["intact"], verdict["last"], verdict["unsealed"], verdict["finding"]) == (True, 12, 1, None)
    assert "unsealed 1 event after that, the oldest" in sealed("audit", "verify", "--public-key", key[1]).out


def test_without_a_key_it_says_what_that_does_not_prove(sealed: Cli) -> None:
    done = sealed("audit", "verify")
    assert (done.code, "note no --public-key was given" in done.out) == (0, True)


def test_a_key_that_signed_nothing_is_an_error(sealed: Cli, key: tuple[str, str], tmp_path: Path) -> None:
    other = sealed("audit", "keygen", str(tmp_path / "other")).out.strip()
    done = sealed("audit", "verify", "--public-key", other)
    assert (done.code, "none of the keys that are trusted" in done.err) == (1, True)
    assert sealed("audit", "verify", "--public-key", other, "--public-key", key[1]).code == 0
    assert sealed("audit", "verify", "--public-key", "nonsense").code == 2


def test_a_log_without_seals_is_not_verified(cli: Cli) -> None:
    cli("set", "a", "1")
    done = cli("audit", "verify")
    assert (done.code, "there are no seals" in done.err) == (1, True)
    assert cli("audit", "verify", "--json").objects[0]["intact"] is False


def test_a_range_is_verified_in_whole_seals(sealed: Cli, key: tuple[str, str]) -> None:
    def span(*args: str) -> tuple[int, int]:
        verdict = sealed("audit", "verify", "--public-key", key[1], "--json", *args).object
        return verdict["first"], verdict["last"]

    assert span("--from", "7") == (6, 12)
    assert span("--from", "7", "--to", "8") == (6, 10)
    assert span("--from", "1h", "--to", "3") == (1, 5)


def test_a_witness_notices_that_seals_it_has_seen_are_gone(sealed: Cli, key: tuple[str, str], tmp_path: Path) -> None:
    witness = tmp_path / "witness.json"
    verify = ("audit", "verify", "--public-key", key[1], "--witness", str(witness))
    assert sealed(*verify).code == 0
    (noted,) = json.loads(witness.read_text())["agentfield_witness"].values()
    assert noted["seal"] == 3
    assert sealed(*verify).code == 0
    noted["seal"] = 4
    witness.write_text(json.dumps({"agentfield_witness": {next(iter(_streams(witness))): noted}}))
    done = sealed(*verify)
    assert (done.code, "seal 4" in done.err) == (1, True)
    witness.write_text("[]")
    assert sealed(*verify).code == 2


def _streams(witness: Path) -> dict[str, Any]:
    streams: dict[str, Any] = json.loads(witness.read_text())["agentfield_witness"]
    return streams


# -- exports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(sealed: Cli, tmp_path: Path) -> Path:
    """Return an export of the log in JSON Lines."""
    path = tmp_path / "log.jsonl"
    done = sealed("audit", "export", str(path))
    assert (done.code, done.err) == (0, "")
    assert "12 events, 3 seals" in done.out
    return path


def test_an_export_is_verified_with_no_server(exported: Path, key: tuple[str, str]) -> None:
    alone = Cli({"AGENTFIELD_NATS_URL": "nats://127.0.0.1:1"})
    done = alone("audit", "verify", "--export", str(exported), "--public-key", key[1])
    assert (done.code, done.err) == (0, "")
    assert "verified revisions 1 to 12 (12 events, 3 seals)" in done.out


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _event(lines: list[bytes], revision: int) -> int:
    return next(at for at, line in enumerate(lines) if line.startswith(b'{"revision":%d,' % revision))


def _flip(lines: list[bytes]) -> None:
    at = _event(lines, 7)
    line = bytearray(lines[at])
    line[line.index(b'\\"total\\":6') + 10] ^= 1
    lines[at] = bytes(line)


def _remove(lines: list[bytes]) -> None:
    del lines[_event(lines, 7)]


def _insert(lines: list[bytes]) -> None:
    at = _event(lines, 7)
    lines.insert(at, lines[at].replace(b'\\"total\\":6', b'\\"total\\":1000'))


def _reorder(lines: list[bytes]) -> None:
    at = _event(lines, 7)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


@pytest.mark.parametrize(
    ("tamper", "kind", "said"),
    [
        (_flip, "changed", "was changed"),
        (_remove, "removed", "revision 7 is gone"),
        (_insert, "inserted", "was inserted"),
        (_reorder, "reordered", "is not in its place"),
    ],
)
@pytest.mark.parametrize("seals", [(), ("--live-seals",)], ids=["own seals", "live seals"])
def test_one_event_that_was_tampered_with_in_an_export_is_named(
    sealed: Cli,
    exported: Path,
    key: tuple[str, str],
    tamper: Callable[[list[bytes]], None],
    kind: str,
    said: str,
    seals: tuple[str, ...],
) -> None:
    lines = _lines(exported)
    tamper(lines)
    exported.write_bytes(b"".join(lines))
    done = sealed("audit", "verify", "--export", str(exported), "--public-key", key[1], *seals)
    assert done.code == 1
    assert "error: revision 7" in done.err
    assert said in done.err
    assert "verified up to revision 5" in done.err
    finding = sealed("audit", "verify", "--export", str(exported), "--json", *seals).objects[0]["finding"]
    assert (finding["kind"], finding["revision"]) == (kind, 7)
    assert (finding["subject"] is None) == (kind == "removed")


def test_a_line_that_cannot_be_read_is_named_by_its_place(sealed: Cli, exported: Path, key: tuple[str, str]) -> None:
    whole = exported.read_bytes()
    lines = _lines(exported)
    for damaged in (lines[7][:-9] + b"\n", lines[7].replace(b"Z", b"z"), lines[7].replace(b"{", b"{ ", 1), b"\n"):
        exported.write_bytes(b"".join([*lines[:7], damaged, *lines[8:]]))
        done = sealed("audit", "verify", "--export", str(exported), "--public-key", key[1])
        assert (done.code, "line 8 of" in done.err, "revision 7" in done.err) == (1, True, True)
    exported.write_bytes(whole[: len(whole) // 2])
    done = sealed("audit", "verify", "--export", str(exported))
    assert (done.code, "was cut off" in done.error) == (2, True)
    exported.write_bytes(b"something else\n")
    assert sealed("audit", "verify", "--export", str(exported)).code == 2


def test_a_selection_is_exported_and_said_to_be_one(sealed: Cli, key: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    done = sealed("audit", "export", str(path), "order_*", "--global", "--since", "3", "--until", "9", "--json")
    assert (done.object["events"], done.object["seals"]) == (7, 3)
    verify = ("audit", "verify", "--export", str(path), "--public-key", key[1])
    assert sealed(*verify).code == 0
    assert "selection" in sealed(*verify).out
    lines = _lines(path)
    lines[3] = lines[3].replace(b"total", b"Total")
    path.write_bytes(b"".join(lines))
    assert "revision 5" in sealed(*verify).err


def test_cloud_events_say_what_happened(sealed: Cli, tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "events.jsonl"
    sealed("set", "cart", "1", "--session", "a/b")
    done = sealed("audit", "export", str(path), "--format", "cloudevents")
    assert (done.code, "13 events" in done.out) == (0, True)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    first, deleted, last = events[0], events[11], events[12]
    assert {"specversion", "id", "source", "type"} <= first.keys()
    assert (first["specversion"], first["type"], first["subject"]) == ("1.0", "agentfield.memory.set", "order_0")
    assert (first["data"], first["datacontenttype"]) == ({"total": 0, "name": "né"}, "application/json")
    assert (deleted["type"], "data" in deleted) == ("agentfield.memory.delete", False)
    assert (last["source"], last["sequence"]) == (f"/agentfield/{namespace}/session/a%2Fb", "13")
    assert all(name.islower() and name.isalnum() for event in events for name in event)


def test_parquet_is_verified_like_any_export(sealed: Cli, key: tuple[str, str], tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "log.parquet"
    assert sealed("audit", "export", str(path), "--format", "parquet").code == 0
    verify = ("audit", "verify", "--export", str(path), "--public-key", key[1])
    done = sealed(*verify)
    assert (done.code, "verified revisions 1 to 12" in done.out, done.err) == (0, True, "")
    table = pyarrow.parquet.read_table(path)
    assert table.column("key").to_pylist()[:2] == ["order_0", "order_1"]
    assert table.column("operation").to_pylist()[-1] == "delete"
    metadata = pyarrow.parquet.read_metadata(path).metadata
    payloads = table.column("payload").to_pylist()
    payloads[6] = payloads[6].replace(b"6", b"7")
    changed = table.set_column(table.schema.names.index("payload"), "payload", pyarrow.array(payloads, "binary"))
    pyarrow.parquet.write_table(changed.replace_schema_metadata(metadata), path)
    done = sealed(*verify)
    assert (done.code, "revision 7" in done.err, "was changed" in done.err) == (1, True, True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert sealed(*verify).code == 2


def test_an_export_that_fails_leaves_what_was_there(sealed: Cli, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("before")
    assert sealed("audit", "export", str(path), "--url", "nats://127.0.0.1:1", "--timeout", "0.2").code == 1
    assert path.read_text() == "before"
    assert sealed("audit", "export", str(tmp_path / "no" / "where")).code == 1
    assert sealed("audit", "export", str(tmp_path)).code == 2
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []


def test_what_needs_a_package_that_is_missing_says_so(cli: Cli, tmp_path: Path) -> None:
    for name, args, extra in (
        ("cryptography", ("keygen", str(tmp_path / "key")), "audit"),
        ("pyarrow", ("export", str(tmp_path / "log.parquet"), "--format", "parquet"), "parquet"),
    ):
        hidden = tmp_path / name
        hidden.mkdir()
        (hidden / f"{name}.py").write_text("raise ImportError('hidden')\n")
        done = cli("audit", *args, env={"PYTHONPATH": str(hidden)})
        assert (done.code, f'pip install "agentfield[{extra}]"' in done.error) == (2, True)
