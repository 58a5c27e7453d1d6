"""audit: keys, seals, verdicts and exports as people get them, and what every kind of tampering looks like to them."""

import asyncio
import json
import re
import signal
import stat
from pathlib import Path

import pytest

import agentfield
from agentfield.audit.keyfile import make_key, read_key
from agentfield.fabric.fabric import Fabric
from tests.cli.command import Cli
from tests.support import NatsServer, wait_until
from tests.support.sealing import seal_all


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, str]:
    """Return the path of a new key's file, and its public half."""
    path = tmp_path / "audit.key"
    return str(path), make_key(path).public


@pytest.fixture
def sealed(cli: Cli, server: NatsServer, namespace: str, key: tuple[str, str]) -> Cli:
    """Return the command line on a log of twelve events, in three seals."""

    async def write() -> None:
        async with agentfield.connect(server.url, namespace=namespace) as memory:
            for number in range(11):
                await memory.set(f"order_{number}", {"total": number, "name": "né"}, scope="global")
            await memory.delete("order_3", scope="global")
        fabric = await Fabric.open(server.url, namespace=namespace, name="sealer")
        try:
            seals = await seal_all(fabric, read_key(Path(key[0])), every=5)
            assert [seal.last for seal in seals] == [5, 10, 12]
        finally:
            await fabric.aclose()

    asyncio.run(write())
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


def test_sealing_can_follow_the_log_until_it_is_told_to_stop(cli: Cli, key: tuple[str, str]) -> None:
    cli("set", "a", "1")
    following = cli.start("audit", "seal", "--key", key[0], "--follow", "--within", "0.2")
    following.wait_line("sealed up to revision 1")
    # What is sealed with it, and in which seal, is a matter of when it comes: the log holds more than values.
    revision = cli("set", "b", "1", "--json").object["revision"]
    sealed = re.compile(r"seal \d+ revisions \d+ to (\d+)\n")
    wait_until(
        lambda: any((found := sealed.match(line)) and int(found[1]) >= revision for line in following.out),
        within=30,
        what=f"a seal up to revision {revision}",
    )
    assert following.end(signal.SIGTERM).code == 0
    assert cli("audit", "verify", "--public-key", key[1]).code == 0


def test_an_intact_log_is_verified(sealed: Cli, key: tuple[str, str]) -> None:
    done = sealed("audit", "verify", "--public-key", key[1])
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith("verified revisions 1 to 12 (12 events, 3 seals), the last of 20")
    assert done.lines[1:] == ["whole every event that a seal covers is among them", f"signed by {key[1]}"]
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


def test_a_range_that_holds_nothing_is_refused_and_not_called_verified(sealed: Cli, tmp_path: Path) -> None:
    path = str(tmp_path / "log.jsonl")
    assert sealed("audit", "export", path).code == 0
    for place in ((), ("--export", path), ("--export", path, "--live-seals")):
        inverted = sealed("audit", "verify", *place, "--from", "9", "--to", "3")
        assert (inverted.code, "--from 9 lies after --to 3" in inverted.error) == (2, True)
        beyond = sealed("audit", "verify", *place, "--from", "13")
        assert (beyond.code, "nothing to verify from revision 13 on" in beyond.error) == (2, True)
    later = sealed("audit", "verify", "--from", "2999-01-01T00:00:00Z")
    assert (later.code, "nothing to verify" in later.error) == (2, True)
    dates = sealed("audit", "verify", "--from", "2020-01-02T00:00:00Z", "--to", "2020-01-01T00:00:00Z")
    assert (dates.code, dates.out) == (2, "")


def test_a_witness_notices_that_seals_it_has_seen_are_gone(
    sealed: Cli, key: tuple[str, str], tmp_path: Path, namespace: str
) -> None:
    witness = tmp_path / "witness.json"
    verify = ("audit", "verify", "--public-key", key[1], "--witness", str(witness))
    assert sealed(*verify).code == 0
    (noted,) = json.loads(witness.read_text())["agentfield_witness"].values()
    assert noted["seal"] == 3
    noted["seal"] = 4
    witness.write_text(json.dumps({"agentfield_witness": {f"{namespace.upper()}_MEMORY": noted}}))
    done = sealed(*verify)
    assert (done.code, "seal 4" in done.err) == (1, True)
    witness.write_text("[]")
    assert sealed(*verify).code == 2


# -- exports --------------------------------------------------------------------------------------------------------


def test_an_export_is_verified_with_no_server_and_what_was_changed_is_named(
    sealed: Cli, key: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    done = sealed("audit", "export", str(path))
    assert (done.code, done.err, "12 events, 3 seals" in done.out) == (0, "", True)
    verify = ("audit", "verify", "--export", str(path), "--public-key", key[1])
    nowhere = {"AGENTFIELD_NATS_URL": "nats://127.0.0.1:1"}
    done = sealed(*verify, env=nowhere)
    assert (done.code, done.err) == (0, "")
    assert "verified revisions 1 to 12 (12 events, 3 seals)" in done.out
    path.write_text(path.read_text().replace('total\\":6', 'total\\":7'))
    done = sealed(*verify, env=nowhere)
    assert (done.code, done.err.startswith("error: revision 7 (")) == (1, True)
    assert "was changed" in done.err
    assert "verified up to revision 5" in done.err
    finding = sealed(*verify, "--live-seals", "--json").objects[0]["finding"]
    assert (finding["kind"], finding["revision"]) == ("changed", 7)
    assert finding["subject"].endswith(".memory.global.global.order.6")


def test_a_selection_is_exported_and_said_to_be_one(sealed: Cli, key: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    done = sealed("audit", "export", str(path), "order_*", "--global", "--since", "3", "--until", "9", "--json")
    assert (done.object["events"], done.object["seals"]) == (7, 3)
    done = sealed("audit", "verify", "--export", str(path))
    assert (done.code, "note this is a selection" in done.out, "whole" in done.out) == (0, True, False)
    done = sealed("audit", "verify", "--export", str(path), "--whole")
    assert (done.code, "not whole: the seals cover 12 events, of which 7 were" in done.err) == (1, True)
    sealed("audit", "export", str(path), "nothing_of_that_name")
    done = sealed("audit", "verify", "--export", str(path))
    assert (done.code, done.err.split(":")[1]) == (1, " nothing was verified")


def test_what_cannot_be_written_is_one_line(sealed: Cli, tmp_path: Path) -> None:
    path = str(tmp_path / "no" / "where")
    for arguments in (("export", path), ("export", path, "--format", "parquet"), ("report", "--output", path)):
        done = sealed("audit", *arguments)
        assert (done.code, done.error) == (1, f"{path}: No such file or directory")
    assert sealed("audit", "export", str(tmp_path)).code == 2
    done = sealed("audit", "verify", "--witness", path)
    assert (done.code, done.err.splitlines()[-1]) == (1, f"error: {path}: No such file or directory")


def test_a_report_is_one_page_and_says_when_something_is_wrong(
    sealed: Cli, key: tuple[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "report.html"
    report = ("audit", "report", "order_3", "--global", "--output", str(path))
    done = sealed(*report, "--public-key", key[1])
    assert (done.code, done.out, done.err) == (0, "", f"{path}: 2 events\n")
    assert "Every event here is as it was sealed" in path.read_text()
    assert "order_3 · global" in sealed("audit", "report", "order_3", "--global").out
    other = make_key(tmp_path_factory.mktemp("key") / "other").public
    done = sealed(*report, "--public-key", other)
    assert (done.code, "none of the keys that are trusted" in done.err) == (1, True)
    assert "Not as it was sealed" in path.read_text()


@pytest.mark.usefixtures("used")
def test_what_needs_a_package_that_is_missing_says_so(cli: Cli, tmp_path: Path) -> None:
    for name, args, extra in (
        ("cryptography", ("keygen", str(tmp_path / "key")), "audit"),
        ("jinja2", ("report",), "audit"),
        ("pyarrow", ("export", str(tmp_path / "log.parquet"), "--format", "parquet"), "parquet"),
    ):
        hidden = tmp_path / name
        hidden.mkdir()
        (hidden / f"{name}.py").write_text("raise ImportError('hidden')\n")
        done = cli("audit", *args, env={"PYTHONPATH": str(hidden)})
        assert (done.code, f'pip install "agentfield[{extra}]"' in done.error) == (2, True)
