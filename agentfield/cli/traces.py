"""Where in a user's own code an error came from, in as few lines as will do."""

from __future__ import annotations

import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path

_FRAMES = 6


def describe(error: BaseException) -> str:
    """The error's type and message."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def users_frames(error: BaseException, *, or_last: bool = True) -> tuple[str, ...]:
    """A line for each step through the user's files, the last one nearest to the error; what libraries did is left out.

    If no step was in a file of the user's, the last step, unless ``or_last`` is False.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        _line(frame.filename, frame.lineno, frame.name, frame.line) for frame in frames if _is_users(frame.filename)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(_line(error.filename, error.lineno, "", error.text))
    if not lines and frames and or_last:
        last = frames[-1]
        lines.append(_line(last.filename, last.lineno, last.name, last.line))
    return tuple(lines[-_FRAMES:])


def shown_path(path: str | Path) -> str:
    """A path as people would write it here: relative if it lies below the working directory."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _line(filename: str, number: int | None, function: str, code: str | None) -> str:
    where = f" in {function}" if function and function != "<module>" else ""
    return f"  {shown_path(filename)}:{number}{where}" + (f": {code.strip()}" if code and code.strip() else "")


def _is_users(filename: str) -> bool:
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(place) for place in _libraries())


def _libraries() -> list[Path]:
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    specs = [spec for spec in map(find_spec, ("agentfield", "projections")) if spec is not None and spec.origin]
    return [*(Path(str(spec.origin)).parent for spec in specs), *(Path(path) for path in named if path)]
