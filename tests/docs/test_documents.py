"""Everything that README and docs tell a reader to type does what they say."""

import asyncio
import json
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import pytest

from agentfield import Agent
from agentfield.local import stop_server
from tests.docs.markdown import Block, anchors, blocks, links
from tests.docs.serving import PROJECT
from tests.docs.shell import Shell, user_environment
from tests.docs.snippets import run_snippet

DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_FILE = re.compile(r"# ([\w.-]+\.(?:py|conf))\n")


def name_of(document: object) -> str:
    return document.name if isinstance(document, Path) else str(document)


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    """Return the shell of a new user; the embedded server that it may start is stopped afterwards."""
    home, directory = tmp_path / "home", tmp_path / "work"
    directory.mkdir()
    monkeypatch.setenv("AGENTFIELD_HOME", str(home))
    monkeypatch.syspath_prepend(directory)
    shell = Shell(directory, user_environment(home))
    try:
        yield shell
        await asyncio.to_thread(shell.close)
    finally:
        shell.dispose()
        await stop_server(home)


@pytest.mark.timeout(300)  # some thirty processes one after the other, on a machine that may be busy
@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
async def test_a_document_can_be_followed_from_its_first_line_to_its_last(document: Path, shell: Shell) -> None:
    names: dict[str, Any] = {}
    try:
        for block in blocks(document):
            await follow(block, shell, names)
    finally:
        for value in list(names.values()):
            if isinstance(value, Agent):
                await value.aclose()


async def follow(block: Block, shell: Shell, names: dict[str, Any]) -> None:
    file = _FILE.match(block.text)
    if block.language in ("python", "conf") and file is not None:
        shell.write(file[1], block.text)
    elif block.language == "python":
        await run_snippet(block, names)
    elif block.language == "console":
        await asyncio.to_thread(shell.play, block)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "sh":
        check_installation(block)
    else:
        assert block.language == "text", f"{block.place}: nothing here runs a block of {block.language!r}"


def check_installation(block: Block) -> None:
    """Commands that would change the machine, or run these very tests: what they name must exist."""
    makefile = (PROJECT / "Makefile").read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for line in block.text.splitlines():
        command = line.partition("#")[0].strip()
        if (made := re.fullmatch(r"make ([\w-]+)", command)) is not None:
            assert re.search(rf"^{made[1]}:", makefile, re.MULTILINE), f"{block.place}: there is no {command}"
        elif (installed := re.fullmatch(r"(?:python -m )?pip install '?\.(?:\[([\w,]+)\])?'?", command)) is not None:
            extras = set((installed[1] or "").split(",")) - {""}
            assert extras <= set(project["optional-dependencies"]), f"{block.place}: {command}"
        else:
            raise AssertionError(f"{block.place}: {command!r} is not checked: make it a console block")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if link.startswith("https://"):
            continue
        path, anchor = urldefrag(link)
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document}: {link}"
        assert not anchor or anchor in anchors(target), f"{document}: {link}"


def test_an_expectation_that_does_not_hold_is_noticed(tmp_path: Path) -> None:
    """The checks themselves: each kind of wrong example is refused."""
    for text, said in {
        "1 + 1  # → 3": "2 instead of 3",
        "if True:\n    'a'.upper()  # → 'B'": "'A' instead of 'B'",
        "int('7')  # raises ValueError": "no exception",
        "x = 1  # → 1": "belong to no statement",
    }.items():
        with pytest.raises(AssertionError, match=said):
            asyncio.run(run_snippet(Block(Path("d.md"), 10, "python", text), {}))
    shell = Shell(tmp_path, user_environment(tmp_path))
    for text, said in {
        "$ echo one\ntwo\n": "printed\none\n",
        "$ echo one\n": "printed\none\n",
        "$ false\n": "exit status 1",
        "$ echo error: no\nerror: no\n": "exit status 0",
    }.items():
        with pytest.raises(AssertionError, match=said):
            shell.play(Block(Path("d.md"), 10, "console", text))
    shell.play(Block(Path("d.md"), 10, "console", "$ printf '12:00:01  a\\nb\\nc 7s d\\n'\n09:59:59 a\n…\nc 1s d\n"))
