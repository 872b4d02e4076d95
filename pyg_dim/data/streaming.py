"""Batches from Parquet files that are larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset, Oxidation
from pyg_dim.data.loader import PlannedLoader, fill
from pyg_dim.data.parquet import DEPTHS, ID, check_columns, decode, history, is_numeric, malformed_rows, readable
from pyg_dim.data.raw import ALREADY_TAKEN, RawCrystals, keep_sound
from pyg_dim.data.report import ImportReport, LeftOut
from pyg_dim.data.supercell import MAX_SITES


class _RowGroup(NamedTuple):
    file: Path
    number: int
    first: int
    """Number of its first row in the file."""


class _Planned(NamedTuple):
    window: tuple[int, ...]
    """Row groups, which are in memory together."""
    rows: Tensor
    """[B] int64, crystals of the window."""


class StreamingLoader(PlannedLoader[_Planned]):
    """Iterate over the crystals of Parquet files of which only some row groups are in memory at a time.

    The batches are like those of :class:`~pyg_dim.data.CrystalLoader`; without shuffling they are the same ones.
    Shuffling is by windows: the row groups are shuffled over the whole set, some of them (``window``) are read, and
    their crystals are shuffled among each other; the last batch of a window may be small. The more alike the neighbours
    in the files are, the larger the window should be. The files are read once at the start, row group by row group, to
    count sites and to leave out what cannot be used; 8 bytes a crystal and the identifiers are kept.

    ``batch.row`` numbers the crystals in the order of the files, as they are numbered in memory.

    Args:
        path: Parquet file with OPTIMADE columns, or a folder of them.
        graph: adds the edges to a batch, for example ``encoder.graph``.
        batch_sites: largest number of primitive sites of a batch; a crystal that has more makes a batch of its own.
        seed: seed of the order.
        shuffle: whether the order changes from epoch to epoch, or is that of the files.
        targets: labels that become ``y``.
        shard: whether processes share the batches; each of them reads all row groups.
        window: row groups in memory, and shuffled among each other; of a batch that lies in more of them, these.
        max_sites: crystals with more sites are left out.
        oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
        dtype: floating-point type of positions, cells and site features.
        device: where the crystals of a window are kept and batches are built.

    Attributes:
        report: what was left out, and why.
        ids: [n] Arrow strings, identifiers of the crystals.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no Parquet file, a column is missing, an unknown target, no usable crystal, or an argument out of
            range.
    """

    def __init__(
        self,
        path: str | Path,
        graph: Callable[[CrystalBatch], CrystalBatch],
        batch_sites: int = 1200,
        seed: int = 0,
        shuffle: bool = True,
        targets: Sequence[str] = (),
        shard: bool = True,
        window: int = 8,
        max_sites: int = MAX_SITES,
        oxidation: Oxidation = "zero",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("batch_sites", batch_sites), ("window", window), ("max_sites", max_sites)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.graph = graph
        self.batch_sites = batch_sites
        self.targets = tuple(targets)
        self.window = window
        self.max_sites = max_sites
        self.oxidation = oxidation
        self.dtype = dtype
        self.device = torch.device(device)
        self.report = ImportReport(str(path))
        self._groups: list[_RowGroup] = []
        self._num_sites: list[np.ndarray] = []
        self._repeated: list[np.ndarray] = []
        self._in_memory: tuple[tuple[int, ...], CrystalDataset, np.ndarray] | None = None
        self._scan(Path(path))
        self.report.log()
        super().__init__(sum(map(len, self._num_sites)), seed, shuffle, shard)

    def _settings(self) -> dict[str, int]:
        return super()._settings() | {"batch_sites": self.batch_sites, "window": self.window}

    def _scan(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}")
        files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
        if not files:
            raise ValueError(f"the folder {path} holds no Parquet file (*.parquet)")
        total = 0
        ids: list[pa.Array] = []
        for file in files:
            with readable(file), pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                sizes = [parquet.metadata.row_group(k).num_rows for k in range(parquet.metadata.num_row_groups)]
            check_columns(file, schema)
            self.report.notes += [note for note in history(schema) if note not in self.report.notes]
            labels = [f.name for f in schema if is_numeric(f.type) and f.name not in (ID, *DEPTHS)]
            for name in self.targets:
                if name not in labels:
                    known = f"its labels are {', '.join(map(repr, labels))}" if labels else "it has no labels"
                    raise ValueError(f"{file} has no target column {name!r}; {known}")
            for number, size in enumerate(sizes):
                self._groups.append(_RowGroup(file, number, total))
                sound = self._read(len(self._groups) - 1, self.report)
                ids.append(sound.ids)
                self._num_sites.append(sound.species_counts)
                total += size
        self.report.num_read = total
        if not any(map(len, self._num_sites)):
            raise ValueError(f"no usable crystal\n{self.report}")
        self._leave_out_repeated(ids)

    def _leave_out_repeated(self, ids: list[pa.Array]) -> None:
        """Keep the first crystal of each identifier; within a row group that has been done."""
        self.ids = pa.concat_arrays(ids)
        code = self.ids.dictionary_encode().indices.to_numpy()
        first = np.zeros(len(code), dtype=bool)
        first[np.unique(code, return_index=True)[1]] = True
        self.report.left_out += [LeftOut(name, ALREADY_TAKEN) for name in self.ids.filter(pa.array(~first)).to_pylist()]
        self.ids = self.ids.filter(pa.array(first))
        kept = np.split(first, np.cumsum([len(part) for part in ids])[:-1])
        self._repeated = [np.flatnonzero(~part) for part in kept]
        self._num_sites = [sites[part] for sites, part in zip(self._num_sites, kept, strict=True)]

    def _read(self, group: int, report: ImportReport) -> RawCrystals:
        """The sound crystals of one row group."""
        file, number, first = self._groups[group]
        with readable(file):
            with pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                # All labels: one that is infinite is a reason to leave a crystal out.
                wanted = [f.name for f in schema if f.name in (ID, *DEPTHS) or is_numeric(f.type)]
                table = parquet.read_row_group(number, columns=wanted).select(wanted)
            table.validate(full=True)
        if ID in wanted:
            ids = pc.fill_null(table[ID].cast(pa.string()), "null").combine_chunks()
        else:
            ids = pa.array([str(first + row) for row in range(table.num_rows)], pa.string())
        faults = malformed_rows(table)
        report.left_out += [LeftOut(ids[row].as_py(), reason) for row, reason in sorted(faults.items())]
        whole = np.ones(table.num_rows, dtype=bool)
        whole[list(faults)] = False
        return keep_sound(decode(table.filter(pa.array(whole)), ids.filter(pa.array(whole))), report, self.max_sites)

    def _without_repeated(self, group: int, sound: RawCrystals) -> RawCrystals:
        if not len(self._repeated[group]):
            return sound
        kept = np.ones(len(sound.ids), dtype=bool)
        # A file that was changed may have become shorter; that is looked at next.
        kept[self._repeated[group][self._repeated[group] < len(kept)]] = False
        return sound.select(kept)

    def _make_plan(self) -> list[_Planned]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if not self.shuffle:
            return self._plan_in_order()
        count = len(self._groups)
        order = generator.permutation(count)
        plan = []
        for start in range(0, count, self.window):
            window = tuple(order[start : start + self.window].tolist())
            num_sites = np.concatenate([self._num_sites[group] for group in window])
            rows = generator.permutation(len(num_sites))
            plan += [_Planned(window, batch) for batch in fill(rows, num_sites, self.batch_sites)]
        return plan

    def _plan_in_order(self) -> list[_Planned]:
        """The batches of the whole set; a batch that leaves the window behind begins the next one."""
        ends = np.cumsum([len(sites) for sites in self._num_sites])
        first = np.concatenate([[0], ends[:-1]])
        plan: list[_Planned] = []
        low, high = 0, 0
        for rows in fill(np.arange(ends[-1]), np.concatenate(self._num_sites), self.batch_sites):
            begin, end = np.searchsorted(ends, [int(rows[0]), int(rows[-1])], side="right").tolist()
            if end >= high:
                low, high = begin, min(max(begin + self.window, end + 1), len(ends))
            plan.append(_Planned(tuple(range(low, high)), rows - int(first[low])))
        return plan

    def _device(self) -> torch.device:
        return self.device

    def _build(self, planned: _Planned) -> CrystalBatch:
        held = self._in_memory
        if held is None or held[0] != planned.window:
            # Given up before the next one is read.
            held = self._in_memory = None
            held = self._in_memory = (planned.window, *self._load(planned.window))
        _, dataset, row = held
        batch = dataset.gather(planned.rows, self.targets)
        batch.row = torch.from_numpy(row[planned.rows.numpy()]).to(batch.pos.device)
        return self.graph(batch)

    def _count(self, planned: _Planned) -> int:
        return planned.rows.numel()

    def _load(self, window: tuple[int, ...]) -> tuple[CrystalDataset, np.ndarray]:
        """The crystals of a window, and the number of each in the whole set."""
        report = ImportReport(self.report.source)
        first = np.cumsum([0, *map(len, self._num_sites)])
        parts = [self._without_repeated(group, self._read(group, report)) for group in window]
        for group, part in zip(window, parts, strict=True):
            if not np.array_equal(part.species_counts, self._num_sites[group]) or not part.ids.equals(
                self.ids.slice(first[group], len(self._num_sites[group]))
            ):
                raise ValueError(f"{self._groups[group].file} was changed while it was read: start again")
        raw = RawCrystals(
            ids=pa.concat_arrays([part.ids for part in parts]),
            species_counts=np.concatenate([part.species_counts for part in parts]),
            position_counts=np.concatenate([part.position_counts for part in parts]),
            z=np.concatenate([part.z for part in parts]),
            pos=np.concatenate([part.pos for part in parts]),
            cell=np.concatenate([part.cell for part in parts]),
            labels={name: np.concatenate([part.labels[name] for part in parts]) for name in self.targets},
        )
        row = np.concatenate([np.arange(first[group], first[group + 1]) for group in window])
        return CrystalDataset.from_sound(raw, report, self.oxidation, self.dtype).to(self.device), row
