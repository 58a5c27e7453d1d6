"""docs/cli.md says all there is and nothing else, and its examples run as they are printed there."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentfield.cli.invocation import SHARED
from agentfield.cli.root import COMMANDS, root
from tests.cli.command import SCRIPT, Cli, Running
from tests.support.waiting import wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SHOWING = re.compile(r"agentfield (deadletters|handlers) list")
COMMON = {*(f"--{name}" for name in SHARED), "--help", "--version"}


def command(name: str) -> click.Command:
    found = root.get_command(click.Context(root), name)
    assert found is not None
    return found


def commands(name: str) -> dict[str, click.Command]:
    """Return the command under its name, or those that it consists of under theirs."""
    found = command(name)
    if isinstance(found, click.Group):
        return {f"{name} {part}": each for part, each in found.commands.items()}
    return {name: found}


def options(name: str) -> set[str]:
    parameters = [parameter for each in commands(name).values() for parameter in each.params]
    found = [each for each in parameters if isinstance(each, click.Option) and each.expose_value]
    return {option for each in found for option in each.opts}


def prose(section: str) -> str:
    return re.sub(r"^```.*?^```", "", section, flags=re.MULTILINE | re.DOTALL)


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert list(SECTIONS) == ["What all commands have in common", *COMMANDS]
    for name in COMMANDS:
        assert f"[`{name}`](#{name})" in PAGE


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_names_every_option_of_its_command_and_no_other(name: str) -> None:
    named = set(OPTION.findall(prose(SECTIONS[name])))
    assert options(name) <= named
    assert named <= options(name) | COMMON


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_begins_with_the_usage(name: str) -> None:
    found = command(name)
    _, *arguments = found.collect_usage_pieces(click.Context(found))
    lines = SECTIONS[name].strip().splitlines()
    assert lines[0] == f"`{' '.join(['agentfield', name, *arguments])}`"
    for part, each in commands(name).items() if isinstance(found, click.Group) else ():
        _, *arguments = each.collect_usage_pieces(click.Context(each))
        assert any(line.startswith(f"| `{' '.join([part, *arguments])}` |") for line in lines), part


def test_the_common_options_are_described_once_for_all() -> None:
    assert set(OPTION.findall(prose(SECTIONS["What all commands have in common"]))) >= COMMON


class Example:
    """A command of the page, and what the page says it prints."""

    def __init__(self, text: str) -> None:
        first, *rest = text.strip("\n").split("\n")
        self.command = first.removesuffix(" &")
        self.background = first.endswith(" &")
        self.printed = "\n".join(rest)

    def check(self, printed: str) -> None:
        """Compare what it printed with what the page says, where `…` stands for anything."""
        pattern = "".join(".*" if part == "…" else re.escape(part) for part in re.split("(…)", self.printed))
        assert re.fullmatch(pattern, printed.strip("\n"), re.DOTALL), f"{self.command} printed:\n{printed}"


def examples() -> Iterator[Example | tuple[str, str]]:
    """Yield the page's examples and, by name, its files, in their order."""
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        if language == "python":
            yield block.split("\n", 1)[0].removeprefix("# "), block
        else:
            yield from (Example(text) for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])


def test_every_section_but_two_has_an_example() -> None:
    without = [name for name, text in SECTIONS.items() if name in COMMANDS and "\n```" not in text]
    assert without == ["up", "down"]  # the one begins the page, the other ends what the rest needs


def test_the_examples_print_what_the_page_says(local_cli: Cli, tmp_path: Path) -> None:
    env = {**local_cli.env, "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"}
    background: list[Running] = []
    for example in examples():
        if isinstance(example, tuple):
            name, text = example
            (tmp_path / name).write_text(text)
        elif example.background:
            background.append(local_cli.start(*shlex.split(example.command)[1:], cwd=tmp_path))
            example.check(background[-1].wait_line(example.printed.replace("… ", "")))
        else:
            eventually_prints(example, env, tmp_path)


def eventually_prints(example: Example, env: dict[str, str], directory: Path) -> None:
    """Run an example and compare; again, for a while, where it shows what agents may still be working on."""

    def checked() -> bool:
        done = subprocess.run(
            ["bash", "-c", example.command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=directory,
            timeout=30,
            check=False,
        )
        example.check(done.stdout)
        return True

    wait_until(checked, within=10 if SHOWING.search(example.command) else 0, what=example.command)
