"""Formulas of one data set: materials without a structure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

from pyg_dim.data import keys
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.formula import parse_formulas
from pyg_dim.data.parquet import DEPTHS, ID
from pyg_dim.data.raw import ALREADY_TAKEN
from pyg_dim.data.report import ImportReport, LeftOut, NotNumbers, printable
from pyg_dim.data.sources.labels import ask_for_separator, require_different, split_unit
from pyg_dim.data.sources.streams import DAMAGE, open_binary
from pyg_dim.data.sources.tables import id_column, structure_column

if TYPE_CHECKING:
    from typing import Self

    from pyg_dim.data.batch import Crystal

FORMULA_COLUMNS: Final = ("composition", "formula")
"""Columns of formulas, the first that a table has."""


class CompositionDataset(CrystalDataset):
    """n formulas with N elements in all, side by side in flat tensors; a data set of crystals without geometry.

    A "site" is one element of a formula, with its ``amount``; ``pos`` is [N, 0], ``cell`` [n, 0, 0]. Loaders, splits,
    labels and Magpie features take it as they take crystals; encoders that need a structure refuse it.

    Args:
        z: [N] int64, atomic numbers, each element of a formula once.
        amount: [N] float, amounts as in the formula, above zero.
        ptr: [n + 1] int64 on the host, first element of each formula, then N.
        labels: name -> [n] float64 in the unit of the source, NaN where missing.
        ids: [n] Arrow strings, all different.
        report: what was left out of the source, and why.
        units: name of a label -> its unit, where it is known.
    """

    amount: Tensor

    def __init__(
        self,
        z: Tensor,
        amount: Tensor,
        ptr: Tensor,
        labels: Mapping[str, Tensor],
        ids: pa.Array,
        report: ImportReport,
        units: Mapping[str, str] | None = None,
    ) -> None:
        n, sites = ptr.numel() - 1, z.numel()
        super().__init__(
            z, amount.new_zeros(sites, 0), ptr, amount.new_zeros(n, 0, 0), amount.new_zeros(sites), labels, ids, report,
            units,
        )  # fmt: skip
        self.amount = amount

    @classmethod
    def from_formulas(
        cls,
        formulas: Sequence[str],
        ids: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[float]] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Take formulas from memory.

        Args:
            formulas: n formulas, see :func:`pyg_dim.data.formula.parse_formulas`.
            ids: n different identifiers; default: "0", "1", ...
            labels: name -> n values, NaN where missing.
            dtype: floating-point type of the amounts.

        Returns:
            The data set; its report says what was left out.

        Raises:
            ValueError: ids or labels of another length, or no usable formula.
        """
        names = [str(row) for row in range(len(formulas))] if ids is None else [str(name) for name in ids]
        values = {name: np.asarray(column, dtype=np.float64) for name, column in (labels or {}).items()}
        for name, length in (("ids", len(names)), *((name, len(column)) for name, column in values.items())):
            if length != len(formulas):
                raise ValueError(f"{name} has {length} entries for {len(formulas)} formulas")
        return cls._from_columns(
            list(formulas), pa.array(names, pa.string()), values, ImportReport("formulas in memory"), dtype
        )

    @classmethod
    def from_csv(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read a CSV file, plain or compressed, with a column ``composition`` or ``formula``.

        Identifiers are in a column ``immutable_id``, ``material_id`` or ``id``; without one, rows are numbered from 0.
        All other columns with numbers are labels; a unit may follow the name, as in ``gap (eV)``.

        Args:
            path: file; UTF-8.
            dtype: floating-point type of the amounts.

        Returns:
            The data set; its report says what was left out.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no readable CSV, no such column, or no usable formula.
        """
        path = Path(path)
        names = _header(path)
        column = formula_column(names)
        if column is None:
            raise ValueError(
                f"{path} has no column {' or '.join(FORMULA_COLUMNS)}; its columns are {', '.join(map(repr, names))}"
                f"{ask_for_separator(names)}"
            )
        identifier = id_column(path, names, None)
        # A column without a name is the index that pandas writes.
        others = [name for name in names if name and name not in (column, identifier, ID, *DEPTHS)]
        labels = {name: split_unit(name) for name in others}
        require_different(path, [name for name, _ in labels.values()])
        report = ImportReport(str(path), what="formulas")
        table, rows = _read(path, names, column, identifier, report)
        formulas = table[column].to_pylist()
        ids = pa.array(map(str, rows), pa.string()) if identifier is None else table[identifier].combine_chunks()
        values = {}
        for name, (label, _) in labels.items():
            numbers = _numbers(table[name], label, ids, report)
            if numbers is None:
                report.notes.append(f"column {printable(name)!r} is not numeric and was not read")
            else:
                values[printable(label)] = numbers
        units = {label: unit for label, unit in labels.values() if unit and label in values}
        return cls._from_columns(formulas, ids, values, report, dtype, units, partial(_lines, path, rows))

    @classmethod
    def _from_columns(
        cls,
        texts: list[str],
        ids: pa.Array,
        labels: Mapping[str, np.ndarray],
        report: ImportReport,
        dtype: torch.dtype,
        units: Mapping[str, str] | None = None,
        lines: Callable[[], Mapping[int, int]] | None = None,
    ) -> Self:
        """Parse formulas, leave out what cannot be used, and log the report, with lines of a file by row if given."""
        report.what = "formulas"
        report.num_read += len(texts)
        found = parse_formulas(texts)
        faults = dict(found.faults)
        for name, values in labels.items():
            for row in np.flatnonzero(np.isinf(values)).tolist():
                faults.setdefault(row, ("non-finite label", f"{name} = {values[row]}"))
        sound = np.ones(len(texts), dtype=bool)
        sound[list(faults)] = False
        candidates = np.flatnonzero(sound)
        _, first = np.unique(np.asarray(ids.dictionary_encode().indices)[candidates], return_index=True)
        for row in np.setdiff1d(candidates, candidates[first]).tolist():
            faults[row] = (ALREADY_TAKEN, "")
        sound[list(faults)] = False
        line_of = lines() if lines is not None and faults else {}
        for row, (reason, detail) in sorted(faults.items()):
            report.left_out.append(LeftOut(ids[row].as_py(), reason, _at(line_of.get(row), printable(detail)[:80])))
        if not sound.any():
            raise ValueError(f"no usable formula\n{report}")
        kept = np.repeat(sound, found.counts)
        dataset = cls(
            z=torch.from_numpy(found.z[kept]),
            amount=torch.tensor(found.amount[kept], dtype=dtype),
            ptr=torch.from_numpy(np.concatenate([[0], np.cumsum(found.counts[sound])])),
            labels={name: torch.from_numpy(values[sound]) for name, values in labels.items()},
            ids=ids.filter(pa.array(sound)),
            report=report,
            units=units,
        )
        report.log()
        return dataset

    @classmethod
    def from_sound(cls, *_: Any) -> Self:
        """Refused: crystals are no formulas.

        Raises:
            ValueError: always.
        """
        raise ValueError("a CompositionDataset is made of formulas: use from_csv or from_formulas")

    def to_parquet(self, path: str | Path) -> None:
        """Refused: the file would need structures.

        Args:
            path: file.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{path}: Parquet files with OPTIMADE columns hold structures, which formulas have not")

    def __getitem__(self, row: int) -> Crystal:
        """One formula, for PyG's loaders and transforms; see :meth:`CrystalDataset.__getitem__`."""
        crystal = super().__getitem__(row)
        # PyG counts nodes by keys that formulas do not have.
        crystal.num_nodes = crystal.z.numel()
        return crystal

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} formulas, {self.z.numel()} elements, labels={list(self.labels)})"

    def _contents(self, index: Tensor, rows: Tensor) -> dict[str, Tensor]:
        return {keys.Z: self.z[index], keys.AMOUNT: self.amount[index]}


def formula_column(names: Sequence[str]) -> str | None:
    """The column of formulas.

    Args:
        names: columns of a table.

    Returns:
        Its name; None where there is none, or where there is a column of structures.
    """
    if structure_column(names) is not None:
        return None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in FORMULA_COLUMNS if name in lower), None)


def holds_formulas(path: Path) -> bool:
    """Whether a file is a CSV table with a column of formulas and none of structures.

    Args:
        path: file or folder; it may be missing.

    Returns:
        Whether :meth:`CompositionDataset.from_csv` reads it.
    """
    return (
        path.is_file() and path.name.lower().endswith((".csv", ".csv.gz")) and formula_column(_header(path)) is not None
    )


def _header(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with open_binary(path) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
            return [name.strip() for name in next(csv.reader(text), [])]
    except (csv.Error, ValueError, *DAMAGE) as error:
        raise ValueError(f"{path} is no readable CSV file: {error}") from error


def _read(
    path: Path, names: list[str], column: str, identifier: str | None, report: ImportReport
) -> tuple[pa.Table, list[int]]:
    """The table, and the number of each row; rows that do not fit the columns are left out."""
    skipped: dict[int, str] = {}

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        # The header is its row 1; empty lines are none.
        skipped[row.number - 2] = f"{row.actual_columns} values for {row.expected_columns} columns"
        return "skip"

    # Columns without a name, or of no interest, get one that no other has.
    unique = [name if names.count(name) == 1 and name else f"{name}\n{k}" for k, name in enumerate(names)]
    texts = {name: pa.string() for name in (column, identifier) if name is not None}
    try:
        with open_binary(path) as stream:
            table = pyarrow.csv.read_csv(
                stream,
                # One thread, which knows the number of a row.
                read_options=pyarrow.csv.ReadOptions(column_names=unique, skip_rows=1, use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
                # Sodium nitride is NaN: no formula stands for a missing value.
                convert_options=pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=False),
            )
    except (pa.ArrowInvalid, UnicodeError, ValueError, *DAMAGE) as error:
        raise ValueError(f"{path} is no readable CSV file: {error}") from error
    report.num_read += len(skipped)
    if skipped:
        line_of = _lines(path)
        report.left_out += [
            LeftOut(str(row), "row does not fit the columns", _at(line_of.get(row), detail))
            for row, detail in skipped.items()
        ]
    return table, [row for row in range(table.num_rows + len(skipped)) if row not in skipped]


def _at(line: int | None, detail: str) -> str:
    return ": ".join(filter(None, [f"line {line}" if line else "", detail]))


def _lines(path: Path, rows: Sequence[int] | None = None) -> dict[int, int]:
    """Rows of a CSV file -> the line of the file that each begins in, the header being line 1.

    With ``rows``, numbers of rows in the file, its places are mapped instead. Empty lines count, but are no rows.
    """
    with open_binary(path) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=""))
        starts, end = [], 0
        # A field beyond the limit of the csv module: what comes from there on is told without a line.
        with suppress(csv.Error):
            for cells in reader:
                if cells:
                    starts.append(end + 1)
                end = reader.line_num
    lines = dict(enumerate(starts[1:]))
    return lines if rows is None else {place: lines[row] for place, row in enumerate(rows) if row in lines}


def _numbers(column: pa.ChunkedArray, label: str, ids: pa.Array, report: ImportReport) -> np.ndarray | None:
    """A label as numbers, NaN where it is missing; None where the column has none."""
    given = column.to_pandas()
    numbers = pd.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    missing = given.isna() | (given == "")
    texts = np.flatnonzero(np.isnan(numbers) & ~missing.to_numpy())
    if len(texts) and len(texts) == len(numbers) - int(missing.sum()):
        return None
    if len(texts):
        examples = [f"{ids[k].as_py()}: {printable(str(given[k]))[:40]}" for k in islice(texts.tolist(), 3)]
        report.not_numbers.setdefault(label, NotNumbers()).add(len(texts), examples)
    return numbers
