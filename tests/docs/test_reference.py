"""What exists is documented, with the facts that the code has."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentfield
from agentfield import errors
from agentfield.agent import agent, notes, presence, reasoner
from agentfield.cli.root import COMMANDS
from agentfield.fabric import batch, jetstream
from agentfield.fabric.calling import protocol, service
from agentfield.fabric.consumers import consumer, progress
from agentfield.fabric.personal import keys, policies
from agentfield.fabric.topology import DUPLICATE_WINDOW, NOTES_KEPT, Topology
from agentfield.key import MAX_KEY_BYTES, MAX_TOKENS
from agentfield.local.config import CLIENT_PORT
from agentfield.memory.personal import erasing
from agentfield.memory.time_travel import revert
from agentfield.pattern import MAX_FILTERS
from agentfield.reference import LARGE, LARGEST
from agentfield.scope import MAX_SCOPE_ID_BYTES, RESOLUTION
from agentfield.server_version import MINIMUM_SERVER
from agentfield.settings import VARIABLES
from agentfield.subject import Subjects
from tests.docs.markdown import anchors, blocks
from tests.docs.serving import PROJECT

DOCS = PROJECT / "docs"
README = PROJECT / "README.md"
PUBLIC_ERRORS = [name for name, kind in vars(errors).items() if isinstance(kind, type) and name in agentfield.__all__]


def rows(document: Path) -> Iterator[list[str]]:
    """The cells of every table row of a document, without the marks of code."""
    for line in document.read_text().splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def row(document: Path, first: str) -> str:
    """What the one row that begins with these words says."""
    (found,) = (cells[1] for cells in rows(document) if cells[0].startswith(first))
    return found


def prose(document: Path) -> str:
    """A document without its line breaks."""
    return " ".join(document.read_text().split())


@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_is_documented(name: str) -> None:
    assert row(DOCS / "configuration.md", name)


def test_no_setting_is_documented_that_nobody_reads() -> None:
    documented = set(re.findall(r"\b(?:AGENTFIELD_[A-Z_]+|NATS_URL)\b", (DOCS / "configuration.md").read_text()))
    streams = {stream.name for stream in Topology("agentfield").streams}
    assert documented - streams == set(VARIABLES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert name in anchors(DOCS / "cli.md")


@pytest.mark.parametrize("configured", ["Agent", "connect", "AIConfig"])
def test_every_argument_of_what_is_configured_is_documented(configured: str) -> None:
    text = (DOCS / "configuration.md").read_text()
    for name in inspect.signature(getattr(agentfield, configured)).parameters:
        if name not in ("name", "model"):  # given by position
            assert re.search(rf"\b{name}=|`{name}`", text), name


@pytest.mark.parametrize("name", PUBLIC_ERRORS)
def test_every_error_is_documented(name: str) -> None:
    assert name in (DOCS / "errors.md").read_text()


def test_the_tree_of_errors_is_the_one_of_the_code() -> None:
    def indented(text: str) -> str:
        return re.sub(r"^ +", "", text, flags=re.MULTILINE)

    assert errors.__doc__ is not None
    (tree,) = (block.text for block in blocks(DOCS / "errors.md") if block.language == "text")
    assert indented(tree) in indented(errors.__doc__)


@pytest.mark.parametrize("name", PUBLIC_ERRORS)
def test_the_attributes_of_an_error_are_documented(name: str) -> None:
    text = (DOCS / "errors.md").read_text()
    for attribute in inspect.signature(getattr(errors, name)).parameters:
        if attribute not in ("message", "args", "kwargs"):
            assert f"`{attribute}`" in text, attribute


def test_the_limits_are_those_of_the_code() -> None:
    guarantees = DOCS / "guarantees.md"
    assert f"{MAX_KEY_BYTES} bytes" in row(guarantees, "key")
    assert row(guarantees, "tokens of a key").startswith(f"{MAX_TOKENS};")
    assert f"{MAX_SCOPE_ID_BYTES} bytes" in row(guarantees, "scope id")
    assert f"up to {MAX_FILTERS} filters" in row(guarantees, "pattern")
    assert f"({LARGEST:,} bytes); above {LARGE // 1024} kB ({LARGE:,} bytes)" in row(guarantees, "value")
    assert f"{reasoner.MAX_NAME} characters" in row(guarantees, "agent, reasoner and handler names")
    assert f"{jetstream.PATIENCE:.0f} seconds" in row(guarantees, "time for a write or read")
    assert f"{DUPLICATE_WINDOW.seconds // 60} minutes" in row(guarantees, "time in which a repeated write")
    assert row(guarantees, "calls that one instance").startswith(f"{service.CONCURRENT_CALLS:,};")
    assert row(guarantees, "events that one handler") == f"{progress.WINDOW:,}"
    assert row(guarantees, "events of a revert") == f"{batch.MAX_BATCH:,}, and {revert.BATCH_BYTES >> 20} MiB of values"
    assert row(guarantees, "notes waiting") == f"{notes.CAPACITY:,}"


def test_the_numbers_in_the_guarantees_are_those_of_the_code() -> None:
    text = prose(DOCS / "guarantees.md")
    retries = inspect.signature(agentfield.Memory.on_change).parameters["retries"].default
    for fact in (
        f"for {jetstream.PATIENCE:.0f} seconds, and the server stores an id once",
        f"tried {retries} more times",
        f"if it dies, within about {consumer.PIN_TIMEOUT:.0f} seconds",
        f"finished yet: {progress.WINDOW:,} at most",
        f"After {protocol.SILENCE:.0f} seconds without one",
        f"({agent.CALL_TIMEOUT:.0f} seconds by default)",
        f"for up to {presence.GRACE:.0f} seconds",
        f"Up to {notes.CAPACITY:,} wait",
        f"kept for {NOTES_KEPT.days} days",
        f"at the latest within {policies.INTERVAL:.0f} seconds",
        f"at the latest within {keys.KEY_LIFETIME:.0f} seconds",
    ):
        assert fact in text, fact
    text = prose(DOCS / "privacy.md")
    assert f"forgets it within {keys.KEY_LIFETIME:.0f} seconds" in text
    assert f"once in {keys.KEY_LIFETIME:.0f} seconds" in text
    assert f"as far as {erasing.MAX_RANGES} ranges go" in text


@pytest.mark.parametrize("document", [README, DOCS / "configuration.md"], ids=lambda document: document.name)
def test_the_version_of_nats_that_is_needed_is_named(document: Path) -> None:
    assert f"from version {MINIMUM_SERVER} on" in prose(document)


def test_the_port_of_the_embedded_server_is_named() -> None:
    assert f"at port {CLIENT_PORT} or the next one that is free" in prose(DOCS / "configuration.md")


def test_every_stream_is_documented_with_its_purpose() -> None:
    documented = {cells[0]: cells[1] for cells in rows(DOCS / "architecture.md")}
    for stream in Topology("agentfield").streams:
        kind = stream.name.removeprefix("KV_agentfield-")
        same = f"the same for the {kind} scope"
        assert documented.get(stream.name) in (stream.purpose, same), stream


def test_the_commands_for_stock_tools_name_what_there_is() -> None:
    """The program ``nats`` is not ours, so it is not run; but what its arguments name must be ours."""
    (commands,) = (
        block.text.splitlines() for block in blocks(DOCS / "architecture.md") if block.text.startswith("nats ")
    )
    streams = {stream.name for stream in Topology("agentfield").streams}
    subjects = Subjects("agentfield")
    for command in commands:
        _, area, *rest = command.split()
        if area == "kv":
            assert f"KV_{rest[1]}" in streams, command
            kind = rest[1].removeprefix("agentfield-")
            for key in rest[2:]:
                scope, _ = subjects.parse(f"agentfield.memory.{kind}.{'global.' if kind == 'global' else ''}{key}")
                assert scope.kind == kind
        elif area in ("stream", "consumer"):
            assert rest[1] in streams, command
        elif area in ("sub", "request"):
            assert rest[0].split(".")[:2] in (["agentfield", "notes"], ["agentfield", "call"]), command
        else:
            assert command == "nats micro ls", command


def test_the_words_for_scopes_are_those_of_the_code() -> None:
    kinds = re.findall(r"`(\w+)`", row_of_words("scope"))
    assert tuple(kinds) == RESOLUTION


def row_of_words(word: str) -> str:
    (found,) = re.findall(rf"^\| \*\*{word}\*\* \| (.+) \|$", (DOCS / "words.md").read_text(), re.MULTILINE)
    return str(found)


def test_no_word_is_explained_twice() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "words.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words))
