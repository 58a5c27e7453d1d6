"""What the footer of a Parquet file says of its columns, and whether that is so.

Who queries a file goes by its footer: rows are skipped by the least and the greatest value of a column that it names.
Nothing in the file proves these. Owns: comparing them with the rows. Must not know: which columns there are.
"""

from __future__ import annotations

from typing import Any

from agentfield.archive.columns import pyarrow


def check_types(metadata: Any) -> None:
    """Raises ValueError for a footer of which pyarrow cannot be asked more: the process would die over it."""
    types = [metadata.schema.column(at).physical_type for at in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if [group.column(at).physical_type for at in range(group.num_columns)] != types:
            raise ValueError("its columns are not what they are said to be")


def misdescribed(table: Any, footer: Any) -> str | None:
    """The first column of which a footer says something else than is so; a query skips rows by what it says."""
    arrow = pyarrow()
    for number, name in enumerate(table.column_names):
        found, column = footer.column(number).statistics, table.column(name)
        if footer.num_rows != table.num_rows or footer.column(number).num_values != table.num_rows:
            return str(name)
        if found is None:
            continue
        if found.has_null_count and found.null_count != column.null_count:
            return str(name)
        if found.has_min_max:
            plain = _binary(column) if _is_text(column.type) else column.cast(arrow.int64())
            ends = arrow.compute.min_max(plain).as_py()
            if [ends["min"], ends["max"]] != [found.min_raw, found.max_raw]:
                return str(name)
    return None


def _binary(column: Any) -> Any:
    """A column of texts or bytes, as bytes: those that occur in it, each at least once."""
    arrow = pyarrow()
    if arrow.types.is_dictionary(column.type):
        column = column.combine_chunks()
        column = column.dictionary.take(arrow.compute.unique(column.indices).drop_null())
    return column.cast(arrow.binary())


def _is_text(kind: Any) -> bool:
    """Whether values of this type are texts or bytes, and not numbers."""
    types = pyarrow().types
    return any(is_it(kind) for is_it in (types.is_dictionary, types.is_string, types.is_binary))
