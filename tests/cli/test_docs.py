"""docs/cli.md says all there is and nothing else; ``tests/docs`` runs its examples."""

import re
from pathlib import Path

import click
import pytest

from agentfield.cli.invocation import SHARED
from agentfield.cli.root import COMMANDS, root

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
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
    parameters = [parameter for each in (command(name), *commands(name).values()) for parameter in each.params]
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


def test_every_section_but_two_has_an_example() -> None:
    without = [name for name, text in SECTIONS.items() if name in COMMANDS and "\n```" not in text]
    assert without == ["up", "down"]  # the one begins the page, the other ends what the rest needs
