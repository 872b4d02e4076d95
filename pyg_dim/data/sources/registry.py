"""Open a source, whatever it is."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow.parquet as pq

from pyg_dim.data.parquet import DEPTHS, check_columns, readable
from pyg_dim.data.sources.archives import is_archive, open_archive
from pyg_dim.data.sources.ase_formats import is_ase_json, open_ase_db, open_extxyz
from pyg_dim.data.sources.base import Entry, Source
from pyg_dim.data.sources.files import kind_of, open_file, open_folder, open_pattern
from pyg_dim.data.sources.labels import LABEL_FILE
from pyg_dim.data.sources.matbench import is_task, open_task
from pyg_dim.data.sources.optimade import open_optimade
from pyg_dim.data.sources.split_json import open_split_json
from pyg_dim.data.sources.tables import open_csv, open_parquet_table, structure_column

FORMATS: Final = (
    ".cif, POSCAR and CONTCAR (also .vasp, .poscar), a folder of these, a quoted pattern ('runs/**/*.cif'), .zip and "
    ".tar(.gz) archives, .json(.gz) of Matbench, .csv(.gz), .parquet, .extxyz and .xyz, .db and .json of ASE, "
    "matbench_... by name"
)
"""What can be read, for messages."""


def open_source(source: str | Path, id_column: str | None = None) -> Source:
    """Open a source of crystals.

    Args:
        source: a file, a folder, a pattern or the name of a Matbench task; see FORMATS.
        id_column: column of identifiers, for formats that have columns or keys.

    Returns:
        The source.

    Raises:
        FileNotFoundError: there is no such thing.
        ValueError: unknown format, or a file that is damaged as a whole.
    """
    path = Path(source)
    if not path.exists():
        if is_task(str(source)):
            return open_task(str(source))
        if any(character in str(source) for character in "*?["):
            return open_pattern(str(source))
        if str(source) == "prototypes":
            raise ValueError("prototypes are made up on the spot; they need no import: say --data prototypes")
        raise FileNotFoundError(f"no such file or folder: {path} (for the embedded data set say 'prototypes')")
    if path.is_dir():
        tables = sorted(path.glob("*.parquet"))
        if not tables:
            return open_folder(path)
        others = sorted(file.name for file in path.iterdir() if kind_of(file.name) and file.is_file())
        if others:
            raise ValueError(
                f"the folder {path} holds Parquet files ({tables[0].name}) and {len(others)} CIFs or POSCARs "
                f"({others[0]}); give them apart, '{path}/*.cif' and '{path}/{tables[0].name}', or move one kind away"
            )
        return together([_open_parquet(table, id_column) for table in tables], str(path))
    name = path.name.lower()
    if kind_of(path.name):
        return open_file(path)
    if is_archive(name):
        archived = open_archive(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                labels = [name for name in archive.namelist() if PurePosixPath(name).name == LABEL_FILE]
            archived.notes += [f"{name} in the archive was not read: unpack it for its labels" for name in labels]
        return archived
    if name.endswith(".parquet"):
        return _open_parquet(path, id_column)
    if name.endswith((".csv", ".csv.gz")):
        return open_csv(path, id_column)
    if name.endswith((".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")):
        return open_extxyz(path, id_column)
    if name.endswith(".db") or (name.endswith(".json") and is_ase_json(path)):
        return open_ase_db(path, id_column)
    if name.endswith((".json", ".json.gz")):
        return open_split_json(path)
    raise ValueError(f"{path}: unknown format; known are {FORMATS}")


def _open_parquet(path: Path, id_column: str | None) -> Source:
    with readable(path), pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
    column = structure_column(schema.names)
    if column is None or set(DEPTHS) <= set(schema.names):
        check_columns(path, schema)
        return open_optimade(path, id_column)
    return open_parquet_table(path, column, id_column)


def together(sources: Sequence[Source], name: str | None = None) -> Source:
    """Several sources as one.

    Where several of them begin with the identifier 0, as those whose rows are only numbered do, theirs are made to
    differ by the name of the file: ``train/0`` for the first crystal of ``train.csv``.

    Args:
        sources: the sources, in order.
        name: how they are called together.

    Returns:
        One source with all of their crystals. Reading it raises a ValueError where they give one label in two units.
    """
    if len(sources) == 1 and name is None:
        return sources[0]
    totals = [source.total for source in sources]
    units: dict[str, str] = {}
    notes: list[str] = []

    def entries() -> Iterator[Entry]:
        notes.clear()
        prefixes = _prefixes(sources)
        for k, source in enumerate(sources):
            if k in prefixes:
                yield from (entry._replace(id=f"{prefixes[k]}/{entry.id}") for entry in source.entries())
            else:
                yield from source.entries()
        if prefixes:
            some = next(iter(prefixes.values()))
            notes.append(f"{len(prefixes)} sources number their crystals from 0: identifiers are {some}/0 and so on")
        for source in sources:
            for label, unit in source.units.items():
                if units.setdefault(label, unit) != unit:
                    raise ValueError(
                        f"{source.name} gives the label {label} in {unit}, another source in {units[label]}: import "
                        "them one by one"
                    )
            notes.extend(f"{source.name}: {note}" for note in source.notes)

    return Source(
        name or ", ".join(source.name for source in sources),
        [file for source in sources for file in source.files],
        entries,
        None if None in totals else sum(total or 0 for total in totals),
        units,
        notes,
    )


def _prefixes(sources: Sequence[Source]) -> dict[int, str]:
    """What tells the identifiers of sources apart that number their crystals; empty where fewer than two do."""
    if len(sources) < 2:
        return {}
    first = (next(source.entries(), None) for source in sources)
    numbered = [k for k, entry in enumerate(first) if entry is not None and entry.id == "0"]
    if len({sources[k].name for k in numbered}) < 2:
        return {}
    stems = [Path(sources[k].name).name.partition(".")[0] for k in numbered]
    if len(set(stems)) < len(stems):
        stems = [sources[k].name for k in numbered]
    return dict(zip(numbered, stems, strict=True))
