"""Columns as arrays for training. Nothing is rounded and no null becomes a number in silence."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from polder._errors import Invalid

if TYPE_CHECKING:
    import numpy as np


def arrays(table: pa.Table) -> "dict[str, np.ndarray[Any, Any]]":
    """One writable array a column. Raises `Invalid`, naming every column that cannot be one."""
    wrong = [text for field in table.schema if (text := _why_not(field, table[field.name]))]
    if wrong:
        raise Invalid(f"{'; '.join(wrong)}: select() others, or convert to_arrow() yourself")
    return {name: _array(table[name]) for name in table.column_names}


def _why_not(field: pa.Field, column: pa.ChunkedArray) -> str | None:
    kind = field.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return f"column {field.name} is {kind}, no number"
    if column.null_count and not pa.types.is_floating(kind):
        return f"column {field.name} has {column.null_count} nulls, for which {kind} has no value"
    return None


def _array(column: pa.ChunkedArray) -> "np.ndarray[Any, Any]":
    import numpy

    if column.null_count:
        column = column.fill_null(float("nan"))
    # A copy, as Arrow's memory is read-only and shared, and tensors are written to.
    return numpy.array(column.to_numpy())
