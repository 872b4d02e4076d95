"""Structure files in archives, read member by member; nothing is written to disk."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import MAX_TEXT, Entry, Source
from pyg_dim.data.sources.files import identifiers, kind_of
from pyg_dim.data.sources.streams import DAMAGE, MAX_RATIO, limit, open_binary

_ENCRYPTED: Final = 1
_UNSAFE: Final = "unsafe path in an archive"


def is_archive(name: str) -> bool:
    """Whether a file is an archive, by its name.

    Args:
        name: name of the file.

    Returns:
        True for ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2`` and ``.tar.xz``.
    """
    return name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def open_archive(path: Path) -> Source:
    """The CIF and POSCAR files in an archive, in its order.

    Links, devices, encrypted members, those whose path leads out of the archive, and those longer than a crystal are
    entered as faults. So is the rest of an archive that is damaged or expands without reason.

    Args:
        path: a zip or tar archive.

    Returns:
        The source.

    Raises:
        ValueError: no such archive, or no structure file in it.
    """
    read = _zip_members if zipfile.is_zipfile(path) else _tar_members
    names = [name for name, _ in read(path, contents=False) if name]
    if not names:
        raise ValueError(f"the archive {path} holds no CIF or POSCAR file")
    ids, long = identifiers([PurePosixPath(name) for name in names])

    def entries() -> Iterator[Entry]:
        rest = iter(ids)
        for name, content in read(path, contents=True):
            if isinstance(content, bytes):
                yield Entry(next(rest), kind_of(_base(name)) or "cif", content, {})
            elif content is not None:
                yield Entry(next(rest) if name else str(path), "fault", content, {})

    notes = ["files of the same name: identifiers are places in the archive"] if long else []
    return Source(str(path), [path], entries, len(names), notes=notes)


Member = tuple[str, bytes | UnusableCrystalError | None]
"""Path of a structure file, and its contents or why there are none; an empty path: a fault of the archive itself."""


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _is_wanted(name: str) -> bool:
    # The Finder of macOS puts such a twin beside every file.
    return kind_of(_base(name)) is not None and not _base(name).startswith("._")


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _zip_members(path: Path, contents: bool) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            total, most = 0, limit(path)
            for info in archive.infolist():
                if info.filename.endswith("/") or not _is_wanted(info.filename):
                    continue
                if not contents:
                    yield info.filename, None
                    continue
                fault = _zip_fault(info)
                if fault is None and total + info.file_size > most:
                    fault = UnusableCrystalError("archive expands without reason", f"more than {MAX_RATIO} times")
                if fault is not None:
                    yield info.filename, fault
                    continue
                content = _unzip(archive, info)
                total += len(content) if isinstance(content, bytes) else 0
                yield info.filename, content
    except (zipfile.BadZipFile, *DAMAGE, ValueError) as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}; if it is damaged, fetch it anew") from error


def _zip_fault(info: zipfile.ZipInfo) -> UnusableCrystalError | None:
    mode = info.external_attr >> 16
    if _leads_out(info.filename):
        return UnusableCrystalError(_UNSAFE, info.filename)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return UnusableCrystalError("link or device in an archive", info.filename)
    if info.flag_bits & _ENCRYPTED:
        return UnusableCrystalError("encrypted member of an archive", info.filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods are unpacked without a limit, whatever size a member declares.
        return UnusableCrystalError("unusual compression in an archive", "only stored and deflated members are read")
    if info.file_size > MAX_TEXT:
        return UnusableCrystalError("too large for one crystal", f"{info.file_size} bytes")
    return None


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | UnusableCrystalError:
    try:
        with archive.open(info) as member:
            return member.read(MAX_TEXT + 1)
    # What zipfile raises for a wrong checksum, a header that does not fit, a method it does not know.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, zlib.error, *DAMAGE) as error:
        return UnusableCrystalError("damaged member of an archive", f"{error}"[:200])


def _tar_members(path: Path, contents: bool) -> Iterator[Member]:
    try:
        with open_binary(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            first = archive.next()
    except (tarfile.TarError, *DAMAGE, ValueError) as error:
        raise ValueError(f"{path} is not a readable archive: {error}; if it is damaged, fetch it anew") from error
    if first is None:
        return
    place = first.name
    try:
        with open_binary(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                if info.isdir() or not _is_wanted(info.name):
                    continue
                place = info.name
                if not contents:
                    yield info.name, None
                elif _leads_out(info.name):
                    yield info.name, UnusableCrystalError(_UNSAFE, info.name)
                elif not info.isfile() or info.issparse():
                    yield info.name, UnusableCrystalError("link or device in an archive", info.name)
                elif info.size > MAX_TEXT:
                    yield info.name, UnusableCrystalError("too large for one crystal", f"{info.size} bytes")
                else:
                    member = archive.extractfile(info)
                    data = b"" if member is None else member.read()
                    if len(data) < info.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield info.name, data
    except (tarfile.TarError, *DAMAGE, ValueError, OverflowError, MemoryError) as error:
        if contents:
            yield "", UnusableCrystalError("archive damaged from here on", f"at {place}: {error}"[:200])
