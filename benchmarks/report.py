"""What a benchmark found, as a table for people and as an object for programs.

Owns: figures, the targets beside them, and how both are shown. A target that is missed is said, never raised: speed is
the machine's, too, and a benchmark that fails a build is soon one that nobody runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be, and what it is."""

    found: float
    sense: Literal["≤", "≥", "<"]
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the figure is where it should be."""
        if self.sense == "≥":
            return self.found >= self.limit
        return self.found < self.limit or (self.sense == "≤" and self.found == self.limit)

    @property
    def verdict(self) -> str:
        """The same for people, with the figure where it is missed."""
        return "[green]met[/]" if self.met else f"[red]not met[/] ({shown(self.found)})"

    def __str__(self) -> str:
        return f"{self.sense} {shown(self.limit)} {self.unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant: its figures, one a column, and what is asked of it."""

    name: str
    figures: Sequence[float | None]
    ratio: float | None = None
    """To the first row's main figure: times as multiples, rates as fractions."""
    targets: Sequence[Target] = ()


@dataclass(slots=True)
class Table:
    """What one benchmark found."""

    title: str
    columns: Sequence[str]
    """What the figures are, with their units."""
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What a reader must know to read the figures right; also what was left out, and why."""

    def add(
        self, name: str, *figures: float | None, ratio: float | None = None, targets: Sequence[Target] = ()
    ) -> None:
        """Add a contestant."""
        self.rows.append(Row(name, figures, ratio, targets))

    def show(self, console: Console) -> None:
        """Print it."""
        with_ratios = any(row.ratio is not None for row in self.rows)
        with_targets = any(row.targets for row in self.rows)
        table = RichTable(box=box.SIMPLE_HEAD)
        table.add_column("")
        for column in (*self.columns, *(["ratio"] if with_ratios else [])):
            table.add_column(column, justify="right")
        for column in ("target", "") if with_targets else ():
            table.add_column(column)
        for row in self.rows:
            cells = ["" if figure is None else shown(figure) for figure in row.figures]
            cells += [""] * (len(self.columns) - len(cells))
            if with_ratios:
                cells.append("" if row.ratio is None else f"{row.ratio:.2f}")
            if with_targets:
                cells.append("\n".join(str(target) for target in row.targets))
                cells.append("\n".join(target.verdict for target in row.targets))
            table.add_row(row.name, *cells)
        console.print(self.title, style="bold", highlight=False)
        console.print(table)
        for remark in self.remarks:
            console.print(f"  {remark}", style="dim", highlight=False)

    def as_object(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "title": self.title,
            "rows": [
                {
                    "name": row.name,
                    "figures": dict(zip(self.columns, row.figures, strict=False)),
                    "ratio": row.ratio,
                    "targets": [
                        {"target": str(target), "found": target.found, "met": target.met} for target in row.targets
                    ],
                }
                for row in self.rows
            ],
            "remarks": self.remarks,
        }


def shown(figure: float) -> str:
    """A figure with as many digits as mean something."""
    if figure == int(figure) or abs(figure) >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 100 else f"{figure:.2f}"
