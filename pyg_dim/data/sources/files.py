"""Structure files: one, a folder of them, or a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from pyg_dim.data.report import printable
from pyg_dim.data.sources.base import Entry, Kind, Source
from pyg_dim.data.sources.labels import LABEL_FILE, LabelTable, read_id_prop, without_ending

_POSCAR = re.compile(r"(POSCAR|CONTCAR)([._-].*)?|.*\.(vasp|poscar)", re.I)


def kind_of(name: str) -> Kind | None:
    """What a structure file is, by its name.

    Args:
        name: name of the file, without folders.

    Returns:
        ``"cif"``, ``"poscar"``, or None for other files.
    """
    if name.lower().endswith(".cif"):
        return "cif"
    return "poscar" if _POSCAR.fullmatch(name) else None


def identifiers(paths: Sequence[PurePosixPath]) -> tuple[list[str], bool]:
    """An identifier for each of several structure files.

    Args:
        paths: their places below a common folder.

    Returns:
        The names of the files without ending; where two files have the same name, the places of all without ending
        (``"run1"`` for ``run1/POSCAR``). And whether that was so.
    """
    short = [without_ending(path.name) for path in paths]
    if len(set(short)) == len(short):
        return short, False
    long = []
    for path in paths:
        folder, name = path.parent.as_posix(), without_ending(path.name)
        if folder == ".":
            long.append(name)
        else:
            long.append(folder if path.name in ("POSCAR", "CONTCAR") else f"{folder}/{name}")
    return long, True


def structure_files(name: str, files: Sequence[Path], root: Path) -> Source:
    """Files that hold one structure each.

    Args:
        name: how the source is called.
        files: the files, in order.
        root: the folder that they lie in, at some depth.

    Returns:
        The source.
    """
    places = [PurePosixPath(file.relative_to(root).as_posix()) for file in files]
    ids, long = identifiers(places)

    def entries() -> Iterator[Entry]:
        for file, identifier in zip(files, ids, strict=True):
            yield Entry(identifier, kind_of(file.name) or "cif", file, {})

    notes = ["files of the same name: identifiers are places below the folder"] if long else []
    return Source(name, list(files), entries, len(files), notes=notes)


def open_file(path: Path) -> Source:
    """One CIF or POSCAR file.

    Args:
        path: file.

    Returns:
        The source.
    """
    return structure_files(str(path), [path], path.parent)


def open_folder(path: Path) -> Source:
    """The CIF and POSCAR files of a folder, not those of its subfolders, with labels from ``id_prop.csv``.

    Args:
        path: folder.

    Returns:
        The source.

    Raises:
        ValueError: no structure file in it, or an ``id_prop.csv`` that cannot be read.
    """
    files = sorted(file for file in path.iterdir() if kind_of(file.name) and file.is_file())
    if not files:
        raise ValueError(
            f"the folder {path} holds no CIF file (*.cif) and no POSCAR; for those in its subfolders give the pattern "
            f"'{path}/**/*.cif'"
        )
    source = structure_files(str(path), files, path)
    if (path / LABEL_FILE).exists():
        ids = [entry.id for entry in source.entries()]
        return join_labels(source, read_id_prop(path / LABEL_FILE, ids))
    return source


def open_pattern(pattern: str) -> Source:
    """The structure files that a pattern names, for example ``runs/**/CONTCAR``.

    Args:
        pattern: wildcards as in the shell, ``**`` for any depth.

    Returns:
        The source.

    Raises:
        FileNotFoundError: no structure file fits.
    """
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in found if kind_of(file.name) and file.is_file()]
    if not files:
        raise FileNotFoundError(f"no CIF or POSCAR file fits the pattern {pattern}")
    return structure_files(pattern, files, Path(os.path.commonpath([file.parent for file in files])))


def join_labels(
    source: Source, table: LabelTable, check: Callable[[Sequence[str], set[str]], None] | None = None
) -> Source:
    """Give the crystals of a source the labels of a table, by identifier.

    Args:
        source: the crystals.
        table: labels; where both have one, that of the table counts.
        check: is called after the last crystal with the identifiers of crystals without a line, and those with one; an
            error that it raises stops the reading.

    Returns:
        The source with labels.
    """
    notes: list[str] = []
    units: dict[str, str] = {}

    def entries() -> Iterator[Entry]:
        notes.clear()
        seen: set[str] = set()
        without: list[str] = []
        for entry in source.entries():
            labels = table.rows.get(entry.id)
            if labels is None:
                without.append(entry.id)
            else:
                seen.add(entry.id)
                entry = entry._replace(labels={**entry.labels, **labels})
            yield entry
        without = [printable(name) for name in without]
        if check is not None:
            check(without, seen)
        units.update(source.units | table.units)
        notes.extend(source.notes + table.notes(without, seen))

    return Source(source.name, [*source.files, table.path], entries, source.total, units, notes)
