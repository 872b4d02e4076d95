"""Crystals of one data set in flat tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pyg_dim.data import keys
from pyg_dim.data.batch import Crystal, CrystalBatch
from pyg_dim.data.collect import ImportOptions, collect
from pyg_dim.data.composition import reduced_formula
from pyg_dim.data.elements import site_features
from pyg_dim.data.oxidation import guess_oxidation_states
from pyg_dim.data.parquet import read_parquet, write_parquet
from pyg_dim.data.raw import RawCrystals, keep_sound
from pyg_dim.data.report import ImportReport
from pyg_dim.data.sources.base import Entry
from pyg_dim.data.supercell import MAX_SITES

if TYPE_CHECKING:
    from typing import Self

Oxidation = Literal["zero", "guess"]


class CrystalDataset:
    """n crystals with N sites in all, side by side in flat tensors; there is no Python object per crystal.

    Args:
        z: [N] int64, atomic numbers.
        pos: [N, 3] float, Cartesian positions in angstrom.
        ptr: [n + 1] int64 on the host, first site of each crystal, then N.
        cell: [n, 3, 3] float, lattice vectors as rows, in angstrom.
        oxidation: [N] float, oxidation states in elementary charges, zero where unknown.
        labels: name -> [n] float64 in the unit of the source, NaN where missing.
        ids: [n] Arrow strings, all different.
        report: what was left out of the source, and why.
        units: name of a label -> its unit, where it is known.
        fingerprint: [n, F] in the dtype of ``pos``, what is computed from the crystals themselves; see
            :func:`pyg_dim.data.fingerprints.fingerprint_table`.
        embedding: [n, F] in the dtype of ``pos``, what a teacher makes of the crystals, NaN where it has none.

    Attributes:
        amount: None; of formulas, which have no positions, see :class:`~pyg_dim.data.CompositionDataset`.
    """

    amount: Tensor | None = None

    def __init__(
        self,
        z: Tensor,
        pos: Tensor,
        ptr: Tensor,
        cell: Tensor,
        oxidation: Tensor,
        labels: Mapping[str, Tensor],
        ids: pa.Array,
        report: ImportReport,
        units: Mapping[str, str] | None = None,
        fingerprint: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> None:
        self.z = z
        self.pos = pos
        self.ptr = ptr
        self.cell = cell
        self.oxidation = oxidation
        self.labels = dict(labels)
        self.ids = ids
        self.report = report
        self.units = dict(units or {})
        self.fingerprint = fingerprint
        self.embedding = embedding

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        max_sites: int = MAX_SITES,
        oxidation: Oxidation = "zero",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Read a Parquet file, or a folder of them, with OPTIMADE column names.

        Args:
            path: file or folder; see :func:`pyg_dim.data.parquet.read_parquet` for the columns.
            max_sites: crystals with more sites are left out.
            oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
            dtype: floating-point type of positions, cells and site features.

        Returns:
            The data set; its report says what was left out.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no Parquet file, a column is missing, or no usable crystal is left.
        """
        raw, report = read_parquet(path)
        return cls.from_raw(raw, report, max_sites, oxidation, dtype)

    @classmethod
    def from_structures(
        cls,
        structures: Sequence[Any],
        ids: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[float]] | None = None,
        max_sites: int = MAX_SITES,
        oxidation: Oxidation = "zero",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Take crystals from memory; cells that repeat themselves are reduced to the primitive cell.

        Args:
            structures: n pymatgen Structures, their dictionaries, or ASE Atoms.
            ids: n different identifiers; default: "0", "1", ...
            labels: name -> n values, NaN where missing.
            max_sites: crystals with more primitive sites are left out.
            oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
            dtype: floating-point type of positions, cells and site features.

        Returns:
            The data set; its report says what was left out.

        Raises:
            ValueError: ids or labels of another length, or no usable crystal.
        """
        names = [str(row) for row in range(len(structures))] if ids is None else [str(name) for name in ids]
        labels = labels or {}
        for name, values in (("ids", names), *labels.items()):
            if len(values) != len(structures):
                raise ValueError(f"{name} has {len(values)} entries for {len(structures)} structures")
        report = ImportReport("structures in memory")
        entries = (
            Entry(names[row], "structure", structure, {label: values[row] for label, values in labels.items()})
            for row, structure in enumerate(structures)
        )
        raw = collect(entries, ImportOptions(max_sites), report)
        return cls.from_raw(raw, report, max_sites, oxidation, dtype)

    @classmethod
    def from_raw(
        cls,
        raw: RawCrystals,
        report: ImportReport,
        max_sites: int = MAX_SITES,
        oxidation: Oxidation = "zero",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Check crystals that a reader has laid side by side and make them a data set.

        Args:
            raw: crystals as read.
            report: the reader's report, which is completed here and logged.
            max_sites: crystals with more sites are left out.
            oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
            dtype: floating-point type of positions, cells and site features.

        Returns:
            The data set of the sound crystals.

        Raises:
            ValueError: no usable crystal is left, or an unknown ``oxidation``.
        """
        if oxidation not in ("zero", "guess"):
            raise ValueError(f"oxidation must be 'zero' or 'guess', not {oxidation!r}")
        raw = keep_sound(raw, report, max_sites)
        if not len(raw.ids):
            raise ValueError(f"no usable crystal\n{report}")
        dataset = cls.from_sound(raw, report, oxidation, dtype)
        report.log()
        return dataset

    @classmethod
    def from_sound(cls, raw: RawCrystals, report: ImportReport, oxidation: Oxidation, dtype: torch.dtype) -> Self:
        """Make a data set of crystals that have passed all checks.

        Args:
            raw: at least one crystal.
            report: how they were found; a note on the oxidation states is added.
            oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
            dtype: floating-point type of positions, cells and site features.

        Returns:
            The data set.
        """
        dataset = cls(
            z=torch.from_numpy(np.ascontiguousarray(raw.z)),
            pos=torch.tensor(raw.pos, dtype=dtype),
            ptr=torch.from_numpy(np.concatenate([[0], np.cumsum(raw.species_counts)])),
            cell=torch.tensor(raw.cell, dtype=dtype),
            oxidation=torch.zeros(len(raw.z), dtype=dtype),
            labels={name: torch.tensor(values, dtype=torch.float64) for name, values in raw.labels.items()},
            ids=raw.ids,
            report=report,
            units=raw.units,
        )
        if oxidation == "guess":
            dataset.oxidation, note = guess_oxidation_states(dataset)
        else:
            note = "oxidation states: zero for all sites"
        report.notes.append(note)
        return dataset

    def to_parquet(self, path: str | Path) -> None:
        """Write the data set as Parquet with OPTIMADE column names; see :func:`pyg_dim.data.parquet.write_parquet`.

        Args:
            path: file to write or replace.
        """
        write_parquet(self.to("cpu"), path)

    def __len__(self) -> int:
        return self.cell.shape[0]

    def __getitem__(self, row: int) -> Crystal:
        """One crystal, for PyG's loaders and transforms.

        Args:
            row: row in the data set; negative ones count from the end.

        Returns:
            A crystal with z, x, oxidation, pos, cell [1, 3, 3], row [1], id, y [1, T] with all T labels of the data
            set in their order, if it has any, and fingerprint and embedding [1, F] if it has them.

        Raises:
            IndexError: no such row.
            TypeError: the row is no whole number.
        """
        if not isinstance(row, int | np.integer):
            raise TypeError(f"a data set is indexed by one row, not a {type(row).__name__}; for more take subset(rows)")
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a data set of {len(self)} crystals")
        row %= len(self)
        batch = self.gather(torch.tensor([row]), list(self.labels))
        fields = {
            key: value for key, value in batch.to_dict().items() if key not in (keys.BATCH, keys.PTR, keys.MAX_SITES)
        }
        return Crystal(**fields, id=self.ids[row].as_py())

    @property
    def num_bytes(self) -> int:
        """Memory that :meth:`to` takes on another device."""
        tensors = [self.z, self.pos, self.cell, self.oxidation, *self.labels.values()]
        tensors += [values for values in (self.amount, self.fingerprint, self.embedding) if values is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def to(self, device: torch.device | str) -> CrystalDataset:
        """The data set with all that batches are made of on a device.

        Batches are then gathered, and their graphs built, on that device. What only says which entries make up a batch
        (``ptr``, ``ids``) stays on the host, so that planning a batch asks nothing of the device.

        Args:
            device: for example ``"cuda"``.

        Returns:
            A new data set; the tensors are shared where they lie there already.
        """
        moved = copy(self)
        for name in ("z", "pos", "cell", "oxidation", keys.AMOUNT, keys.FINGERPRINT, keys.EMBEDDING):
            if (values := getattr(self, name)) is not None:
                setattr(moved, name, values.to(device))
        return moved.with_labels({name: label.to(device) for name, label in self.labels.items()})

    def with_labels(self, labels: Mapping[str, Tensor]) -> CrystalDataset:
        """The same crystals with more or other labels.

        Args:
            labels: name -> [n] float64, NaN where missing; they replace those of the same name.

        Returns:
            A new data set that shares everything else with this one.

        Raises:
            ValueError: labels of another length.
        """
        for name, values in labels.items():
            if values.shape != (len(self),):
                raise ValueError(f"label {name!r} has shape {list(values.shape)} for {len(self)} crystals")
        changed = copy(self)
        changed.labels = self.labels | dict(labels)
        return changed

    def with_fingerprint(self, values: Tensor) -> CrystalDataset:
        """The same crystals with a fingerprint each, which becomes part of every batch.

        Args:
            values: [n, F], as :func:`~pyg_dim.data.fingerprints.fingerprint_table` computes them; they replace those
                there are.

        Returns:
            A new data set that shares everything else with this one; it is not written to Parquet with the rest.

        Raises:
            ValueError: values of another shape.
        """
        if values.dim() != 2 or len(values) != len(self):
            raise ValueError(f"fingerprint has shape {list(values.shape)} for {len(self)} crystals; it must be [n, F]")
        changed = copy(self)
        changed.fingerprint = values.to(self.pos)
        return changed

    def with_embedding(self, values: Tensor) -> CrystalDataset:
        """The same crystals with the embedding that a teacher has of each, which becomes part of every batch.

        Args:
            values: [n, F], NaN for crystals without one; they replace those there are.

        Returns:
            A new data set that shares everything else with this one; it is not written to Parquet with the rest.

        Raises:
            ValueError: values of another shape.
        """
        if values.dim() != 2 or len(values) != len(self):
            raise ValueError(f"embedding has shape {list(values.shape)} for {len(self)} crystals; it must be [n, F]")
        changed = copy(self)
        changed.embedding = values.to(self.pos)
        return changed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} crystals, {self.z.numel()} sites, labels={list(self.labels)})"

    @property
    def num_sites(self) -> Tensor:
        """[n] int64: sites of each crystal."""
        return self.ptr.diff()

    def target(self, name: str) -> Tensor:
        """One label of all crystals.

        Args:
            name: column.

        Returns:
            [n] float64, NaN where missing.

        Raises:
            ValueError: no such column; the message lists those there are.
        """
        if name not in self.labels:
            known = f"its labels are {', '.join(map(repr, self.labels))}" if self.labels else "it has no labels"
            raise ValueError(f"{self.report.source} has no target column {name!r}; {known}")
        return self.labels[name]

    def formula(self, row: int) -> str:
        """Reduced formula of one crystal, elements by increasing electronegativity.

        Args:
            row: row in the data set.

        Returns:
            The formula, for example ``"SrTiO3"``.
        """
        sites = slice(int(self.ptr[row]), int(self.ptr[row + 1]))
        return reduced_formula(self.z[sites], None if self.amount is None else self.amount[sites])

    def sites(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the sites of some crystals lie in the flat tensors.

        Args:
            rows: [B] int64, rows of the data set.

        Returns:
            [S] int64, entries of ``z`` and ``pos`` crystal by crystal, and [B + 1] int64, the first site of each
            crystal, then S; both on the host.
        """
        start = self.ptr[rows]
        counts = self.ptr[rows + 1] - start
        ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        index = torch.repeat_interleave(start - ptr[:-1], counts)
        return index + torch.arange(index.numel(), device=index.device), ptr

    def subset(self, rows: Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> CrystalDataset:
        """The data set of some crystals.

        Args:
            rows: [m] whole numbers, rows to keep, in the order wanted; or [n] bool. A tensor on the host, an array or a
                list.

        Returns:
            A new data set with the report of this one.

        Raises:
            TypeError: rows are neither whole numbers nor bool.
            IndexError: no such row, or a mask of another length.
        """
        rows = self._rows(rows)
        index, ptr = self.sites(rows)
        part = copy(self)
        part.ptr, part.ids = ptr, self.ids.take(pa.array(rows.numpy()))
        index, rows = index.to(self.pos.device), rows.to(self.pos.device)
        of_sites, of_crystals = ("z", "pos", "oxidation", keys.AMOUNT), ("cell", keys.FINGERPRINT, keys.EMBEDDING)
        for names, chosen in ((of_sites, index), (of_crystals, rows)):
            for name in names:
                if (values := getattr(self, name)) is not None:
                    setattr(part, name, values[chosen])
        part.labels = {name: values[rows] for name, values in self.labels.items()}
        return part

    def _rows(self, rows: Any) -> Tensor:
        """Rows of whatever kind as numbers."""
        if not isinstance(rows, Tensor):
            if isinstance(rows, str) or not hasattr(rows, "__len__"):
                raise TypeError(f"rows are a list of row numbers, not a {type(rows).__name__}")
            # An empty list has no type.
            given = np.asarray(rows) if len(rows) else np.zeros(0, dtype=np.int64)
            if given.dtype.kind not in "iub":
                raise TypeError(f"rows are whole numbers or True and False, not {given.dtype}: {str(rows)[:60]}")
            rows = torch.from_numpy(given if given.dtype == bool else given.astype(np.int64))
        if rows.dim() != 1 or rows.is_floating_point():
            raise TypeError(f"rows are one list of whole numbers, not {list(rows.shape)} of {rows.dtype}")
        n = len(self)
        if rows.dtype == torch.bool:
            if rows.numel() != n:
                raise IndexError(f"a mask of {rows.numel()} for a data set of {n} crystals")
            return rows.nonzero()[:, 0]
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < n:
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a data set of {n} crystals: from 0 on")
        return rows

    def gather(self, rows: Tensor, targets: Sequence[str] = ()) -> CrystalBatch:
        """Put some crystals into a batch, without edges.

        Args:
            rows: [B] int64 on the host, rows of the data set, at least one.
            targets: T labels that become ``y``.

        Returns:
            A batch with z, x, oxidation, pos, cell, batch, ptr, max_sites, row, y [B, T] if targets are given, and
            fingerprint and embedding [B, F] if the data set has them, on the device of the data set.

        Raises:
            ValueError: no such target.
        """
        device = self.pos.device
        index, ptr = self.sites(rows)
        counts = ptr.diff()
        batch = torch.repeat_interleave(counts)
        max_sites = int(counts.max())
        # Known on the host; the device is not asked for anything.
        index, ptr, batch, rows = (part.to(device) for part in (index, ptr, batch, rows))
        fields: dict[str, Any] = {
            **self._contents(index, rows),
            keys.BATCH: batch,
            keys.PTR: ptr,
            keys.MAX_SITES: max_sites,
            keys.ROW: rows,
        }
        if targets:
            fields[keys.Y] = torch.stack([self.target(name)[rows] for name in targets], dim=1).to(self.pos.dtype)
        if self.fingerprint is not None:
            fields[keys.FINGERPRINT] = self.fingerprint[rows]
        if self.embedding is not None:
            fields[keys.EMBEDDING] = self.embedding[rows]
        return CrystalBatch(**fields)

    def _contents(self, index: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """What a batch holds of some sites, and of the crystals that they make up."""
        z, oxidation = self.z[index], self.oxidation[index]
        return {
            keys.Z: z,
            keys.X: site_features(z, oxidation, self.pos.dtype),
            keys.OXIDATION: oxidation,
            keys.POS: self.pos[index],
            keys.CELL: self.cell[rows],
        }
