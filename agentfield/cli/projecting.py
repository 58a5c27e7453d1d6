"""From what the user names to a projection, and to the place where its view lives.

Owns: the names of projections that ship, the ones in a user's file or module, and ``--store``. Must not know: what is
then done with them.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from agentfield.audit.keyfile import read_key
from agentfield.cli.connecting import connected, place
from agentfield.cli.invocation import Invocation
from agentfield.cli.loading import import_target
from agentfield.errors import InvalidInputError
from agentfield.settings import Settings
from projections import state
from projections.archive import Archive, Archiver
from projections.projection import Projection, check
from projections.runner import Runner
from projections.seals import Sealer, Seals
from projections.shipped import SHIPPED, shipped
from projections.source import Source
from projections.stores import Directory, Stores, open_store


def store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command ``--store``; its function gets the directory as ``store``, or None."""

    @click.option(
        "--store",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIRECTORY",
        help="Where views live.  [default: projections/NAMESPACE in $AGENTFIELD_HOME]",
    )
    @functools.wraps(function)
    def with_store(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return with_store


def chosen_store(invocation: Invocation, directory: Path | None) -> Directory:
    """The store in that directory, or else the namespace's own under agentfield's home."""
    settings = Settings.load()
    if directory is not None:
        return open_store(directory)
    return open_store(settings.views(place(invocation).namespace), archive=settings.archive)


@asynccontextmanager
async def source_of(invocation: Invocation, *, founds: bool = False) -> AsyncIterator[Source]:
    """The log that a command means. Raises what connecting raises; ``founds`` as for :func:`connected`."""
    async with connected(invocation, founds=founds) as fabric:
        yield Source(fabric)


def is_state(target: str) -> bool:
    """Whether a target names buckets: ``state``, or ``state:SCOPE``."""
    return target.partition(":")[0] == state.NAME


def is_seals(target: str) -> bool:
    """Whether a target names the seals, which are verified by their signatures and never made anew."""
    return target == Seals.name


def runner_of(source: Source, projection: Projection, directory: Directory) -> Runner:
    """What runs a projection, with its view in a directory or on the server."""
    if isinstance(projection, Seals):
        return Sealer(source, projection)
    if isinstance(projection, Archive):
        return Archiver(source, projection, directory.archive)
    return Runner(source, projection, Stores(source, directory))


def with_key(projections: Sequence[Projection], key_file: Path | None) -> list[Projection]:
    """The same, seals with the key of a file. Raises InvalidInputError where one is missing, or nobody asks for one."""
    seals = any(isinstance(projection, Seals) for projection in projections)
    if seals and key_file is None:
        raise InvalidInputError("seals are signed: give --key FILE; `agentfield audit keygen FILE` makes one")
    if key_file is None:
        return list(projections)
    if not seals:
        raise InvalidInputError("--key is for seals alone, and they are not among these projections: leave it out")
    signed = Seals(read_key(key_file))
    return [signed if isinstance(projection, Seals) else projection for projection in projections]


def load_projections(targets: Sequence[str]) -> list[Projection]:
    """The projections that these targets name: shipped ones, or FILE_OR_MODULE[:NAME].

    Raises InvalidInputError if one cannot be found, or two have the same name; and as importing raises.
    """
    found: dict[str, Projection] = {}
    for target in targets:
        for projection in _load(target):
            if projection.name in found:
                raise InvalidInputError(f"two projections are called {projection.name!r}: name one of them anew")
            found[projection.name] = projection
    return list(found.values())


def load_projection(target: str) -> Projection:
    """The one projection that a target names. Raises as :func:`load_projections`, and if it names several."""
    found = load_projections([target])
    if len(found) > 1:
        names = ", ".join(f"{target}:{projection.name}" for projection in found)
        raise InvalidInputError(f"{target} defines several projections: choose one of {names}")
    return found[0]


def _load(target: str) -> list[Projection]:
    if is_state(target):
        raise InvalidInputError("the server itself keeps the state: verify it, or rebuild it")
    built_in = shipped(target)
    if built_in is not None:
        return [built_in]
    module_name, colon, wanted = target.rpartition(":")
    if not colon:
        module_name, wanted = target, ""
    try:
        module = import_target(module_name)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}; projections that ship: {', '.join([*SHIPPED, state.NAME])}") from None
    found = _defined(vars(module), module.__name__, wanted)
    if not found:
        others = sorted({projection.name for projection in _defined(vars(module), module.__name__)}) if wanted else ()
        if others:
            raise InvalidInputError(f"{module_name} defines no projection called {wanted!r}, but {', '.join(others)}")
        named = f" called {wanted!r}" if wanted else ""
        for kind in _unfinished(vars(module), module.__name__):
            if wanted in ("", getattr(kind, "name", "")):
                raise InvalidInputError(
                    f"{kind.__name__} in {module_name} has no apply(): write `def apply(self, event, view)`, which "
                    "says what an event does to the view"
                )
        raise InvalidInputError(f"{module_name} defines no projection{named}: subclass projections.Projection in it")
    return found


def _defined(names: dict[str, Any], module: str, wanted: str = "") -> list[Projection]:
    """The projections a module makes, and those of its classes that need nothing to be made; of this name, or any."""
    there = [value for value in names.values() if isinstance(value, Projection)]
    kinds = {type(projection) for projection in there}
    made = [check(projection) for projection in there if wanted in ("", getattr(projection, "name", ""))]
    for kind in _own(names, module):
        if wanted not in ("", getattr(kind, "name", "")):
            continue
        if kind not in kinds and not kind.__abstractmethods__:
            try:
                made.append(check(kind()))
            except TypeError as error:
                raise InvalidInputError(
                    f"{kind.__name__} cannot be made without arguments ({error}): make one in the file"
                ) from None
    return made


def _unfinished(names: dict[str, Any], module: str) -> list[type[Projection]]:
    """Classes of a module that lack ``apply``, and that nothing in it completes."""
    own = list(_own(names, module))
    bases = {base for kind in own for base in kind.__mro__[1:]}
    return [kind for kind in own if kind.__abstractmethods__ and kind not in bases]


def _own(names: dict[str, Any], module: str) -> Iterator[type[Projection]]:
    """The projection classes that a module defines."""
    for value in names.values():
        if isinstance(value, type) and issubclass(value, Projection) and value.__module__ == module:
            yield value
