"""Formulas as text: what elements, and how much of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pyg_dim.data.elements import MAX_Z, symbols

_NUMBER: Final = r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_PART: Final = re.compile(rf"([A-Z][a-z]?)({_NUMBER})?")
_PLAIN: Final = re.compile(rf"(?:[A-Z][a-z]?(?:{_NUMBER})?)+")
_GROUP: Final = re.compile(rf"\(([^()]+)\)({_NUMBER})?")
_BRACKETS: Final = str.maketrans("[]{}", "()()")
_ISOTOPES: Final = ("D", "T")

EMPTY: Final = "empty formula"
MALFORMED: Final = "not a formula"
UNKNOWN: Final = "unknown or unsupported element"
ISOTOPE: Final = "isotope of hydrogen, write H"
NEGATIVE: Final = "negative amount"
ZERO: Final = "amount of zero"
NOT_FINITE: Final = "amount that is not finite"
OUT_OF_RANGE: Final = "amount below 1e-8 or above 1e6"
"""Such amounts are slips of the pen, and their shares are lost in single precision."""


@dataclass(frozen=True)
class Formulas:
    """Elements of n formulas, formula by formula; each element of a formula once, by increasing atomic number.

    Attributes:
        z: [N] int64, atomic numbers.
        amount: [N] float64, amounts as written, above zero.
        counts: [n] int64, elements of each formula; 0 where it has a fault.
        faults: row -> kind of fault, and what is particular to it.
    """

    z: np.ndarray
    amount: np.ndarray
    counts: np.ndarray
    faults: dict[int, tuple[str, str]]


def parse_formulas(texts: Sequence[str | None]) -> Formulas:
    """Read formulas: symbols of elements with amounts, which may be fractions, and nested brackets with a factor.

    ``Fe2O3``, ``Hg0.7Cd0.3Te``, ``Ca(Ti0.5(Zr)0.5)O3``; blanks count for nothing, an element may come several times.

    Args:
        texts: n formulas.

    Returns:
        Their elements. Formulas that cannot be used have none, but a fault.
    """
    found: list[tuple[str, str]] = []
    counts = np.zeros(len(texts), dtype=np.int64)
    faults: dict[int, tuple[str, str]] = {}
    whole, parts = _PLAIN.fullmatch, _PART.findall
    for row, given in enumerate(texts):
        text = given or ""
        if not whole(text):
            text = _without_groups("".join(text.split()).translate(_BRACKETS))
            if not whole(text):
                faults[row] = _fault(given)
                continue
        here = parts(text)
        counts[row] = len(here)
        found += here
    numbers = {symbol: z for z, symbol in enumerate(symbols()) if z}
    z = np.fromiter((numbers.get(symbol, 0) for symbol, _ in found), np.int64, len(found))
    amount = np.fromiter((float(text) if text else 1.0 for _, text in found), np.float64, len(found))
    formula = np.repeat(np.arange(len(texts)), counts)
    for bad, reason in (
        (z == 0, UNKNOWN),
        (amount == 0, ZERO),
        (~np.isfinite(amount), NOT_FINITE),
        ((amount < 1e-8) | (amount > 1e6), OUT_OF_RANGE),
    ):
        for k in np.flatnonzero(bad).tolist():
            kind = ISOTOPE if reason == UNKNOWN and found[k][0] in _ISOTOPES else reason
            faults.setdefault(int(formula[k]), (kind, f"{found[k][0]} in {texts[formula[k]]}"))
    sound = np.ones(len(texts), dtype=bool)
    sound[list(faults)] = False
    kept = sound[formula]
    entry, place = np.unique(formula[kept] * (MAX_Z + 1) + z[kept], return_inverse=True)
    return Formulas(
        z=entry % (MAX_Z + 1),
        amount=np.bincount(place, weights=amount[kept], minlength=len(entry)),
        counts=np.bincount(entry // (MAX_Z + 1), minlength=len(texts)),
        faults=dict(sorted(faults.items())),
    )


def _without_groups(text: str) -> str:
    """The formula with its brackets multiplied out, from the inside; what is no bracket of elements is left."""
    while (flat := _GROUP.sub(_multiplied, text)) != text:
        text = flat
    return text


def _multiplied(group: re.Match[str]) -> str:
    inside, factor = group.groups()
    if not _PLAIN.fullmatch(inside):
        return group[0]
    if not factor:
        return inside
    return "".join(f"{symbol}{float(amount or 1) * float(factor)!r}" for symbol, amount in _PART.findall(inside))


def _fault(given: str | None) -> tuple[str, str]:
    """Kind and detail of what is wrong with the shape of a formula."""
    text = "".join((given or "").split())
    if not text:
        return EMPTY, ""
    if re.search(r"[A-Za-z)\]}]-\.?\d", text):
        return NEGATIVE, str(given)
    return MALFORMED, repr(given)


def formula_text(amounts: Mapping[str, float]) -> str:
    """A formula as text.

    Args:
        amounts: symbol -> amount, in the order wanted.

    Returns:
        The text; amounts of one are not written, those that are not whole with six digits (single precision has seven).
    """
    return "".join(
        symbol + ("" if amount == 1 else f"{amount:.0f}" if amount == round(amount) else f"{amount:.6g}")
        for symbol, amount in amounts.items()
    )
