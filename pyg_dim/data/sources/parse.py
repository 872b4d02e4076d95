"""From an entry to the sites of a crystal."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyg_dim.data.cif import parse_cif
from pyg_dim.data.raw import Sites, UnusableCrystalError
from pyg_dim.data.sources.base import MAX_TEXT, Entry
from pyg_dim.data.structures import sites_of

_MAX_POSCAR_SITES: Final = 100_000


def parse(entry: Entry) -> tuple[Sites, str]:
    """Sites of a crystal.

    Args:
        entry: the crystal as its source found it.

    Returns:
        The sites, and a remark, if there is one.

    Raises:
        UnusableCrystalError: the crystal has to be left out.
    """
    content = entry.content
    if entry.kind == "fault":
        raise content
    if entry.kind == "structure":
        return (content, "") if isinstance(content, tuple) else (sites_of(content), "")
    text = _text(content)
    if entry.kind == "cif":
        return parse_cif(text)
    if entry.kind == "poscar":
        return _parse_poscar(text), ""
    return _parse_text(text)


def _text(content: Path | bytes | str) -> str:
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                content = file.read(MAX_TEXT + 1)
        except OSError as error:
            raise UnusableCrystalError("unreadable file", str(error.strerror)) from error
    if len(content) > MAX_TEXT:
        raise UnusableCrystalError("too large for one crystal", f"more than {MAX_TEXT} bytes")
    return content if isinstance(content, str) else content.decode("utf-8-sig", errors="replace")


def _parse_text(text: str) -> tuple[Sites, str]:
    if not text.lstrip().startswith("{"):
        return parse_cif(text)
    try:
        structure = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableCrystalError("unreadable structure", f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(structure, Mapping):
        raise UnusableCrystalError("unreadable structure", "no JSON object")
    return sites_of(structure), ""


def _parse_poscar(text: str) -> Sites:
    from pymatgen.io.vasp.inputs import Poscar

    lines = text.splitlines()
    symbols = lines[5].split() if len(lines) > 5 else []
    counts = lines[6].split() if len(lines) > 6 else []
    if not symbols or not all(symbol[:1].isalpha() for symbol in symbols):
        raise UnusableCrystalError("unreadable POSCAR", "line 6 must name the elements (VASP 5)")
    # Such a list is made before the sites are looked for.
    if not all(count.isdecimal() and len(count) < 9 for count in counts) or (
        sum(map(int, counts)) > min(len(lines), _MAX_POSCAR_SITES)
    ):
        raise UnusableCrystalError("unreadable POSCAR", "line 7 must count the sites of each element")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure: Any = Poscar.from_str(text, read_velocities=False).structure
    # A parser fed with a broken file raises whatever its code runs into; the file is reported, the others go on.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UnusableCrystalError("unreadable POSCAR", f"{type(error).__name__}: {text}") from error
    return sites_of(structure)
