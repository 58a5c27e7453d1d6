"""What the demo shows: a line for each event and note, and commands with what they print. In colour on a terminal."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from examples.support.processes import COMMAND

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "red")
_SHORTEST, _LONGEST = 24, 60
"""Characters of a value that are shown: at least, whatever the terminal's width, and at most."""
_INDENT = 12


class Screen:
    """Prints, and remembers which event has which revision."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._colours: dict[str, str] = {}
        self._revisions: dict[str, int] = {}

    def say(self, text: str = "", style: str = "") -> None:
        """Print text as it is."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Print what comes next."""
        self.say(f"\n{text}\n", "bold")

    def event(self, event: Mapping[str, Any]) -> None:
        """Print the revision, the revision of the event that led to it, who wrote where, the key and the value."""
        self._revisions[event["id"]] = event["revision"]
        cause = self._revisions.get(event["writer"]["cause"])
        line = Text(f"{event['revision']:>4}")
        line.append("".ljust(_INDENT - 4) if cause is None else f" ← {cause}".ljust(_INDENT - 4), style="dim")
        line.append(self._agent(event["writer"]["agent"] or "-"))
        scope = "global" if event["scope"] == "global" else f"{event['scope']} {event['scope_id']}"
        line.append(f"{scope:<23} ", style="dim")
        line.append(event["key"], style="bold")
        if event["operation"] == "set":
            line.append(f" = {_short(event['data'], self._room_after(line))}")
        else:
            line.append(" deleted")
        self._console.print(line, soft_wrap=True)

    def note(self, note: Mapping[str, Any]) -> None:
        """Print what an agent noted."""
        line = Text("".ljust(_INDENT))
        line.append(self._agent(note["agent"]))
        line.append(f"{'note':<23} ", style="dim")
        line.append(f"“{note['note']}”", style="italic")
        self._console.print(line, soft_wrap=True)

    def command(self, *arguments: str, environment: Mapping[str, str]) -> None:
        """Run an ``agentfield`` command and show it with what it prints."""
        self.say(f"$ agentfield {shlex.join(arguments)}", "bold")
        if subprocess.run([*COMMAND, *arguments], env=environment).returncode:
            raise RuntimeError(f"agentfield {arguments[0]} failed")
        self.say()

    def _room_after(self, line: Text) -> int:
        """How many characters of a value end the line at the edge of a terminal, within reason."""
        room = self._console.width - line.cell_len - len(" = ") if self._console.is_terminal else _LONGEST
        return min(max(room, _SHORTEST), _LONGEST)

    def _agent(self, name: str) -> Text:
        style = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        return Text(f"{name:<20} ", style=style)


def _short(value: Any, room: int) -> str:
    """A value as JSON on one line, cut where it gets long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= room else f"{text[: room - 1]}…"
