"""One Parquet file, hidden until it is complete."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Final

from tidemill import files
from tidemill.schema import Kind
from tidemill.sinks.row_group import RowGroup, arrow_type
from tidemill.sinks.text import clean_text

__all__ = ["ParquetFile"]

COMPRESSION_LEVEL: Final = 1
BUFFER_BYTES: Final = 1 << 20


class ParquetFile:
    """Written beside its place under a hidden name; `publish` renames it there."""

    def __init__(self, place: Path, kinds: dict[str, Kind | None]) -> None:
        self.place = place
        self.rows = 0
        self._hidden = place.with_name(f".{place.name}.tmp")
        self._begin(kinds)

    def _begin(self, kinds: dict[str, Kind | None]) -> None:
        from pyarrow import parquet

        self._schema = _arrow_schema(kinds)
        self._handle = io.BufferedWriter(files.open_write(self._hidden), BUFFER_BYTES)
        self._writer = parquet.ParquetWriter(
            self._handle,
            self._schema,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            # Only texts repeat: trying a dictionary on numbers halves the rate.
            use_dictionary=[clean_text(name) for name, kind in kinds.items() if kind is Kind.TEXT],
            store_schema=False,  # readers get plain strings, not Arrow's dictionaries
        )

    def size(self) -> int:
        """Bytes written so far."""
        return self._handle.tell()

    def write(self, group: RowGroup, kinds: dict[str, Kind | None]) -> None:
        import pyarrow as pa

        table = pa.Table.from_arrays(group.arrays(kinds), schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, group.rows))
        self.rows += group.rows

    def take(self, table: Any) -> None:
        """A row group whose columns have the order and the types of the file's."""
        import pyarrow as pa

        whole = table.unify_dictionaries().combine_chunks()
        self._writer.write_table(
            pa.Table.from_arrays(whole.columns, schema=self._schema), row_group_size=max(1, len(table))
        )
        self.rows += len(table)

    def widen(self, kinds: dict[str, Kind | None]) -> None:
        """Write the file anew with more columns, null in the rows there are."""
        import pyarrow as pa
        from pyarrow import parquet

        self._close()
        narrow = self._hidden.with_name(self._hidden.name + ".narrow")
        self._hidden.rename(narrow)
        try:
            self._begin(kinds)
            with parquet.ParquetFile(narrow) as old:
                for number in range(old.num_row_groups):
                    table = old.read_row_group(number)
                    arrays = [
                        _as(table.column(field.name), field.type)
                        if field.name in table.column_names
                        else pa.nulls(len(table), field.type)
                        for field in self._schema
                    ]
                    self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        finally:
            narrow.unlink()

    def publish(self) -> int:
        """Complete the file and give it its name; its size in bytes."""
        self._writer.close()
        size = self._handle.tell()
        files.sync(self._handle)
        self._handle.close()
        files.publish(self._hidden, self.place)
        return size

    def discard(self) -> None:
        """Forget the file."""
        with contextlib.suppress(Exception):  # the writer may fail again at what made it fail
            self._close()
        with contextlib.suppress(OSError):
            self._handle.close()
        self._hidden.unlink(missing_ok=True)

    def _close(self) -> None:
        self._writer.close()
        self._handle.close()


def _as(column: Any, wanted: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(wanted) and pa.types.is_string(column.type):
        return column.dictionary_encode()
    return column.cast(wanted)


def _arrow_schema(kinds: dict[str, Kind | None]) -> Any:
    import pyarrow as pa

    return pa.schema([(clean_text(name), arrow_type(kind)) for name, kind in kinds.items()])
