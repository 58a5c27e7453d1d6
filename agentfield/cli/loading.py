"""From what the user names on the command line to the agents in it.

Owns: importing files and modules as ``python`` would, and finding the agents they define. Must not know: serving.
Invariant: an error in the user's code comes out as a sentence with the place in that code.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

from agentfield.agent import Agent
from agentfield.agent.collecting import collecting
from agentfield.cli.ending import WithDetails
from agentfield.cli.traces import describe, shown_path, users_frames
from agentfield.errors import InvalidInputError

_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_agents(targets: Sequence[str]) -> list[Agent]:
    """Imports every target and returns the agents they define, in the order in which they were made.

    Raises InvalidInputError if a target cannot be found or defines no agent, or if two agents have the same name; and
    :class:`WithDetails` for an error in the user's code.
    """
    origins: dict[int, str] = {}
    agents: list[Agent] = []
    for target in targets:
        with collecting() as made:
            module = import_target(target)
        found = list(_agents_of(module, made))
        if not found:
            raise InvalidInputError(
                f"{target} defines no agent: make one in it, such as app = Agent({_suggested_name(target)!r})"
            )
        for agent in found:
            if id(agent) not in origins:
                origins[id(agent)] = target
                agents.append(agent)
    _check_names(agents, origins)
    return agents


def import_target(target: str) -> ModuleType:
    """The module that a file's path or a module's name stands for, imported as ``python`` would.

    Raises InvalidInputError if there is none, :class:`WithDetails` for an error in the user's code.
    """
    path = Path(target)
    if path.is_dir():
        raise InvalidInputError(f"{target} is a directory: name the files in it, for example {target.rstrip('/')}/*.py")
    is_file = path.is_file()
    if not is_file and not _MODULE_NAME.fullmatch(target.removesuffix(".py")):
        raise InvalidInputError(f"there is no file {target}")
    if not is_file and target.endswith(".py"):
        raise InvalidInputError(f"there is no file {target} in {Path.cwd()}")
    try:
        return _import_file(path.resolve()) if is_file else _import_module(target)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises is theirs to see
        if isinstance(error, ModuleNotFoundError) and not is_file and _names(error.name, target):
            raise InvalidInputError(f"there is neither a file nor a module {target}") from None
        what = f"it ended the program (exit status {error.code})" if isinstance(error, SystemExit) else describe(error)
        raise WithDetails(f"{target} cannot be imported: {what}", users_frames(error)) from None


def _import_module(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """The module in a file: the same object that ``import`` gives to the files beside it, where the name allows."""
    _add_to_path(path.parent)
    name = path.stem
    present = sys.modules.get(name)
    if present is not None and getattr(present, "__file__", None) == str(path):
        return present
    if present is not None or name in sys.stdlib_module_names:
        name = f"agentfield file {path}"  # no import statement can ask for it, so nothing is shadowed
        if name in sys.modules:
            return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _names(missing: str | None, target: str) -> bool:
    """Whether the module that was not found is the target itself, or a package it is said to be in."""
    return missing is not None and (target == missing or target.startswith(f"{missing}."))


def _agents_of(module: ModuleType, made: Sequence[Agent]) -> Iterator[Agent]:
    """The agents that the module's names stand for, and those it made whose name now stands for another one.

    An agent that another module made, and that has no name here, is that module's business.
    """
    own = list(_named(module))
    elsewhere = [agent for other in list(sys.modules.values()) if other is not module for agent in _named(other)]
    for agent in made:
        if _holds(own, agent) or not _holds(elsewhere, agent):
            yield agent
    yield from (agent for agent in own if not _holds(made, agent))


def _named(module: ModuleType) -> Iterator[Agent]:
    # The type is asked, not the object: a lazy object of some library would load what it stands for.
    for value in list(getattr(module, "__dict__", {}).values()):
        if issubclass(type(value), Agent):
            yield value


def _holds(agents: Sequence[Agent], agent: Agent) -> bool:
    return any(other is agent for other in agents)


def _check_names(agents: Sequence[Agent], origins: dict[int, str]) -> None:
    seen: dict[tuple[str, str], Agent] = {}
    for agent in agents:
        other = seen.setdefault((agent.namespace, agent.name), agent)
        if other is not agent:
            files = sorted({shown_path(origins[id(other)]), shown_path(origins[id(agent)])})
            where = f"twice in {files[0]}" if len(files) == 1 else f"in {' and in '.join(files)}"
            raise InvalidInputError(
                f"agent {agent.name!r} is defined {where}: give one of them another name; to run several instances of "
                f"one agent, run its file in several processes"
            )


def _suggested_name(target: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", Path(target).stem).strip("-") or "my-agent"
