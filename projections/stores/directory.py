"""A directory of views: which generations there are, which one is live, and how one takes the place of another.

Owns: names and places of files. ``<name>.<kind>`` is a symbolic link to the live generation, ``<name>/<n>.<kind>``;
replacing a link is atomic, and whoever has the old file open keeps it as it was. A file with a higher number than the
live one is a rebuild under way. Must not know: what is in a file. Invariant: a file under its own name is a whole,
prepared view; a half-made one has a name of nobody's.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from agentfield import InvalidInputError, ProjectionError
from projections.projection import check_name
from projections.stores.duckdb import DuckView
from projections.stores.sql import FileView, remove_file
from projections.stores.sqlite import SqliteView
from projections.view import Fold, Head

KINDS: Mapping[str, type[FileView]] = MappingProxyType({"sqlite": SqliteView, "duckdb": DuckView})
_GENERATION = re.compile(r"(\d+)\.(\w+)")
_IDENTITY = ".store"


def open_store(directory: str | os.PathLike[str], *, archive: Path | None = None) -> Directory:
    """The store in a directory, which is made if need be. Raises InvalidInputError if it cannot be one.

    ``archive``: the directory of the log's archive, if that is not below.
    """
    root = Path(directory).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return Directory(root, _identity(root / _IDENTITY), archive)
    except OSError as error:
        raise InvalidInputError(
            f"views cannot be kept in {root} ({error.strerror or error}): name a directory that can be written"
        ) from None


def _identity(path: Path) -> str:
    """What the store is called for ever; several processes may be the first."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        draft = path.with_name(f"{_IDENTITY}-{secrets.token_hex(4)}")
        draft.write_text(f"{secrets.token_hex(6)}\n")
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        return path.read_text().strip()


class Directory:
    """A store of views as files. Make one with :func:`open_store`."""

    def __init__(self, root: Path, identity: str, archive: Path | None = None) -> None:
        self.root = root
        self.archive = archive or root / "archive"
        """Where the archive is, if there is one."""
        self._identity = identity

    def identity(self, kind: str) -> str:
        """Tells this directory from every other, on whichever machine."""
        return self._identity

    async def names(self) -> list[str]:
        """The views that there are."""
        links = [path for path in self.root.iterdir() if path.suffix[1:] in KINDS and _leads_somewhere(path)]
        return sorted(path.stem for path in links)

    async def live(self, name: str) -> FileView | None:
        """The live generation of a view, or None."""
        link = self._link(check_name(name))
        return None if link is None else await self._open(link.parent / os.readlink(link))

    async def building(self, name: str) -> FileView | None:
        """The generation that a rebuild has begun, or None."""
        link = self._link(check_name(name))
        live = -1 if link is None else _number(Path(os.readlink(link)))
        found = [path for path in self._generations(name) if _number(path) > live]
        return await self._open(max(found, key=_number)) if found and link is not None else None

    async def create(self, kind: str, head: Head, prepare: Fold) -> FileView:
        """A new, empty generation: the first, which is live at once, or the one after the live one."""
        link = self._link(head.name)
        number = 1 + max(map(_number, self._generations(head.name)), default=0)
        path = self.root / head.name / f"{number}.{kind}"
        await self._make(path, replace(head, generation=number), prepare)
        if link is None:
            self._point(self.root / f"{head.name}.{kind}", path, first=True)
            live = await self.live(head.name)
            if live is not None:
                if live.path != path:  # somebody else's is the first
                    remove_file(path)
                return live
        return await self._open(path)

    async def scratch(self, kind: str, head: Head, prepare: Fold) -> FileView:
        """An empty view of nobody's, which is gone when it is closed."""
        path = self.root / head.name / f"scratch-{secrets.token_hex(4)}.{kind}"
        await self._make(path, head, prepare)
        view = await self._open(path)
        view.temporary = True
        return view

    async def switch(self, name: str, generation: int) -> None:
        """Make a generation the live one; the one before it is removed."""
        old = self._link(name)
        path = self._generation(name, generation)
        link = self.root / f"{name}{path.suffix}"
        self._point(link, path)
        if old is not None and old != link:
            old.unlink(missing_ok=True)
        for each in self._generations(name):
            if _number(each) < generation:
                remove_file(each)

    async def discard(self, name: str, generation: int) -> None:
        """Remove a generation that is not live."""
        remove_file(self._generation(name, generation))

    async def tidy(self, name: str) -> None:
        """Remove what somebody left behind who died at it: scratch views, and generations before the live one.

        Who is still at a scratch view keeps it open all the same.
        """
        for path in (self.root / check_name(name)).glob("scratch-*"):
            path.unlink(missing_ok=True)
        link = self._link(name)
        for path in self._generations(name) if link is not None else ():
            if link is not None and _number(path) < _number(Path(os.readlink(link))):
                remove_file(path)

    async def remove(self, name: str) -> bool:
        """Remove a view with all its generations; whether there was one."""
        link = self._link(check_name(name))
        if link is not None:
            link.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self.root / name, ignore_errors=True)
        return link is not None

    async def _make(self, path: Path, head: Head, prepare: Fold) -> None:
        """Prepare a view under a name of nobody's, then give it its own; whoever comes second finds it made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"draft-{secrets.token_hex(4)}{path.suffix}")
        view = KINDS[path.suffix[1:]](draft, _always)
        try:
            await view.found(head, prepare)
            await view.aclose()
            with suppress(FileExistsError):
                os.link(draft, path)
        except OSError as error:
            raise ProjectionError(f"the view {path}: {error.strerror or error}", projection=head.name) from None
        finally:
            await view.aclose()
            remove_file(draft)

    async def _open(self, path: Path) -> FileView:
        return KINDS[path.suffix[1:]](path, self._still_good(path))

    def _still_good(self, path: Path) -> Callable[[], bool]:
        """Whether a generation may be advanced: it is the live one, or one to come."""
        if _GENERATION.fullmatch(path.name) is None:
            return _always

        def good() -> bool:
            link = self._link(path.parent.name)
            return path.exists() and (link is None or _number(Path(os.readlink(link))) <= _number(path))

        return good

    def _link(self, name: str) -> Path | None:
        return next((link for kind in KINDS if _leads_somewhere(link := self.root / f"{name}.{kind}")), None)

    def _point(self, link: Path, path: Path, *, first: bool = False) -> None:
        """Let the link lead to a generation; if it is the first, somebody else's stays, unless it leads nowhere."""
        target = path.relative_to(self.root)
        if first:
            with suppress(FileExistsError):
                link.symlink_to(target)
            if _leads_somewhere(link):
                return
        draft = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
        draft.symlink_to(target)
        draft.replace(link)

    def _generation(self, name: str, number: int) -> Path:
        found = next((path for path in self._generations(name) if _number(path) == number), None)
        if found is None:
            raise ProjectionError(f"generation {number} of the view {name} is gone from {self.root}", projection=name)
        return found

    def _generations(self, name: str) -> list[Path]:
        try:
            found = list((self.root / name).iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if (match := _GENERATION.fullmatch(path.name)) and match[2] in KINDS]


def _leads_somewhere(link: Path) -> bool:
    """Whether it is a link to a view. One whose file somebody has removed by hand counts for nothing.

    A link always leads to a file that is there, also while another generation takes the place of this one.
    """
    return link.is_symlink() and link.exists()


def _always() -> bool:
    return True


def _number(path: Path) -> int:
    return int(path.stem)
