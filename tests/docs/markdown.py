"""The code blocks of a Markdown document."""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and the line on which the text begins."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, as editors and terminals understand it."""
        return f"{self.document}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """Return the blocks of a document in their order."""
    text = document.read_text()
    found = list(_FENCE.finditer(text))
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE)), (
        f"{document}: a fence is not closed, or is indented"
    )
    return [Block(document, text.count("\n", 0, each.start()) + 2, each[1], each[2]) for each in found]


def links(document: Path) -> list[str]:
    """Return the targets of the links in a document, without code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", document.read_text()))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
