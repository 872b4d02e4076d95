"""Crystals from CIF text."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any, Final

import numpy as np

from pyg_dim.data.elements import atomic_numbers
from pyg_dim.data.raw import Sites, UnusableCrystalError

MAX_IMAGES: Final = 4000
"""Sites of a file times its symmetry operations: beyond it, pymatgen would take many seconds to find equal ones."""

_MAX_QUOTED: Final = 10_000_000
"""Quotation marks of a line times its length, summed up: pymatgen's search for the closing mark is quadratic."""

_MAX_OPERATION: Final = 200
"""Characters of a symmetry operation: pymatgen's search for its numbers is quadratic too."""

_COINCIDE: Final = 1e-4
"""Fractional coordinates that differ by less are one site to pymatgen's parser (its ``site_tolerance``)."""

_MAX_FAST_SITES: Final = 500
"""Sites that are compared with one another in one array."""

_MIN_HEIGHT: Final = 0.1
"""angstrom; a flatter cell is left to pymatgen."""

_OPERATIONS: Final = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)

_GAP = r"[ \t]+"
_END = r"[ \t]*\n"
_NUMBER = r"(\d{1,4}\.\d+)"
_WORD = r"[A-Za-z0-9().+-]+"
_VALUE = rf"(?:{_WORD}|'[^'\"\n#;]*')"
_HEAD: Final = re.compile(
    rf"(?:[ \t]*(?:\#[^\n]*)?\n)*data_[^\s'\"]*{_END}"
    rf"_symmetry_space_group_name_H-M{_GAP}(?:'P 1'|P1|\"P 1\"){_END}"
    + "".join(rf"_cell_length_{name}{_GAP}{_NUMBER}{_END}" for name in "abc")
    + "".join(rf"_cell_angle_{name}{_GAP}{_NUMBER}{_END}" for name in ("alpha", "beta", "gamma"))
    + rf"_symmetry_Int_Tables_number{_GAP}1{_END}"
    + "".join(
        rf"(?:{name}{_GAP}{_VALUE}{_END})?"
        for name in ("_chemical_formula_structural", "_chemical_formula_sum", "_cell_volume", "_cell_formula_units_Z")
    )
    + rf"loop_{_END}[ \t]*_symmetry_equiv_pos_site_id{_END}[ \t]*_symmetry_equiv_pos_as_xyz{_END}"
    + rf"[ \t]*1{_GAP}(['\"])x,[ ]?y,[ ]?z\7{_END}"
    + rf"(?:loop_{_END}[ \t]*_atom_type_symbol{_END}[ \t]*_atom_type_oxidation_number{_END}"
    + rf"(?:[ \t]*[A-Z][a-z]?[0-9.]*[+-]?{_GAP}-?\d+(?:\.\d+)?{_END})+)?"
    + rf"loop_{_END}"
    + "".join(
        rf"[ \t]*_atom_site_{name}{_END}"
        for name in ("type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy")
    )
)
"""What pymatgen's CifWriter puts before the sites of a crystal without symmetry."""

_COORDINATE = rf"{_GAP}-?\d{{1,3}}\.\d{{6,15}}"
_SITES: Final = re.compile(
    # Symbol, perhaps with a charge; label; multiplicity; three coordinates; full occupancy.
    rf"(?:[ \t]*[A-Z][a-z]?(?:[0-9.]*[+-])?{_GAP}[A-Za-z][A-Za-z0-9+.-]*{_GAP}1{_COORDINATE * 3}"
    rf"{_GAP}1(?:\.0*)?[ \t]*(?:\n|\Z))+\s*"
)
_SYMBOL: Final = re.compile(r"[0-9.]*[+-]")
_COLUMNS: Final = 7


def parse_cif(text: str) -> tuple[Sites, str]:
    """The first structure of a CIF.

    Files as pymatgen's CifWriter writes them without symmetry, which is what exports of the Materials Project hold, are
    read here; all others by pymatgen's parser. Both choose the same cell vectors. The fast path keeps the order of the
    file, and takes coordinates as they are written: pymatgen's parser moves those within 1e-4 (relative) of 1/3 and 2/3
    onto them, for the sake of symmetry operations, of which there are none here.

    Args:
        text: contents of the file.

    Returns:
        The sites, in fractional coordinates of [0, 1) before they became Cartesian; and a remark, if there is one.

    Raises:
        UnusableCrystalError: no CIF, no structure in it, partial occupancy, an unknown element, or too many sites.
    """
    sites = fast_sites(text)
    return (sites, "") if sites is not None else _parse_with_pymatgen(text)


def fast_sites(text: str) -> Sites | None:
    """Sites of a CIF of full occupancy and without symmetry, in the layout of pymatgen's CifWriter.

    Args:
        text: contents of the file.

    Returns:
        The sites; None for whatever is not certain to be such a file, and where pymatgen would merge sites.
    """
    text = text.replace("\r\n", "\n")
    head = _HEAD.match(text)
    if head is None or _SITES.fullmatch(text, head.end()) is None:
        return None
    fields = text[head.end() :].split()
    known = atomic_numbers()
    symbols = fields[::_COLUMNS]
    numbers = [known.get(symbol, 0) for symbol in symbols]
    if not all(numbers):
        numbers = [known.get(_SYMBOL.sub("", symbol), 0) for symbol in symbols]
    if not all(numbers) or len(numbers) > _MAX_FAST_SITES:
        return None
    cell = _cell_of(*(float(head[k]) for k in range(1, 7)))
    if cell is None:
        return None
    fractional = np.array([fields[k::_COLUMNS] for k in (3, 4, 5)], dtype=np.float64).T
    fractional -= np.floor(fractional)
    difference = fractional[:, None] - fractional
    difference -= np.rint(difference)
    same = (np.abs(difference) < _COINCIDE).all(axis=2)
    if np.count_nonzero(same) > len(numbers):
        return None
    return np.array(numbers, dtype=np.int64), fractional @ cell, cell


def _cell_of(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> np.ndarray | None:
    """Vectors in pymatgen's setting, c along z and a in the xz plane; None for a cell that is hardly one."""
    if not all(0 < angle < 180 for angle in (alpha, beta, gamma)):
        return None
    cos_alpha, cos_beta, cos_gamma = (math.cos(math.radians(angle)) for angle in (alpha, beta, gamma))
    sin_alpha, sin_beta = math.sin(math.radians(alpha)), math.sin(math.radians(beta))
    cosine = (cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)
    if abs(cosine) >= 1:
        return None
    gamma_star = math.acos(cosine)
    volume = a * sin_beta * b * sin_alpha * math.sin(gamma_star) * c
    if not volume > _MIN_HEIGHT * max(a * b, b * c, c * a):
        return None
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [-b * sin_alpha * math.cos(gamma_star), b * sin_alpha * math.sin(gamma_star), b * cos_alpha],
            [0.0, 0.0, c],
        ]
    )


def _parse_with_pymatgen(text: str) -> tuple[Sites, str]:
    from pymatgen.io.cif import CifParser

    from pyg_dim.data.structures import sites_of

    # Its search for blocks takes the square of the number of empty lines that follow one another.
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    if sum(len(line) * (line.count("'") + line.count('"')) for line in lines) > _MAX_QUOTED:
        raise UnusableCrystalError("unreadable CIF", "lines with thousands of quotation marks")
    try:
        with warnings.catch_warnings():
            # pymatgen warns of every rounded coordinate; what makes a file unusable is an error or found later.
            warnings.simplefilter("ignore")
            parser: Any = CifParser.from_str("\n".join(lines))
            # Journals put a block without sites first.
            blocks = list(parser.as_dict().values())
            for block in blocks:
                _refuse_hours_of_work(parser, block)
            blocks = [block for block in blocks if "_atom_site_label" in block]
            structures = _structures(parser) if blocks else []
            if len(structures) < len(blocks):
                raise ValueError(" ".join(parser.warnings[-1:]))
    except UnusableCrystalError:
        raise
    # A parser fed with a broken file raises whatever its code runs into; the file is reported, the others go on.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UnusableCrystalError("unreadable CIF", f"{type(error).__name__}: {text}") from error
    if not structures:
        raise UnusableCrystalError("unreadable CIF", "no structure in it")
    more = "" if len(structures) == 1 else "more than one structure in the file, the first was read"
    return sites_of(structures[0]), more


def _structures(parser: Any) -> list[Any]:
    try:
        return parser.parse_structures(primitive=False, on_error="ignore")
    except ValueError:
        # There is none; why lies among the parser's warnings.
        return []


def _refuse_hours_of_work(parser: Any, block: dict[str, Any]) -> None:
    from pymatgen.io.cif import CifBlock

    written = {name: value for name, value in block.items() if "xyz" in name}
    longest = max((len(text) for value in written.values() for text in _as_list(value)), default=0)
    if longest > _MAX_OPERATION:
        raise UnusableCrystalError("unreadable CIF", f"a symmetry operation of {longest} characters")
    if "_atom_site_label" not in block:
        return
    given = next((written[name] for name in _OPERATIONS if written.get(name)), None)
    number = len(_as_list(parser.get_symops(CifBlock(block, [], "")) if given is None else given))
    # Magnetic operations are combined with every centring.
    magnetic = math.prod(len(_as_list(value)) for name, value in written.items() if "magn" in name)
    images = len(block["_atom_site_label"]) * max(number, magnetic)
    if images > MAX_IMAGES:
        raise UnusableCrystalError("too many sites times symmetry operations", f"{images}, at most {MAX_IMAGES}")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
