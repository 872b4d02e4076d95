from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from pyg_dim.data.elements import symbols
from pyg_dim.data.formula import (
    EMPTY,
    ISOTOPE,
    MALFORMED,
    NEGATIVE,
    NOT_FINITE,
    OUT_OF_RANGE,
    UNKNOWN,
    ZERO,
    formula_text,
    parse_formulas,
)


def amounts(text: str) -> dict[str, float]:
    found = parse_formulas([text])
    assert not found.faults
    return {symbols()[z]: amount for z, amount in zip(found.z.tolist(), found.amount.tolist(), strict=True)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fe", {"Fe": 1}),
        ("Fe2O3", {"O": 3, "Fe": 2}),
        ("NaN", {"N": 1, "Na": 1}),
        ("Co", {"Co": 1}),
        ("CO", {"C": 1, "O": 1}),
        ("Hg0.7Cd0.3Te", {"Cd": 0.3, "Te": 1, "Hg": 0.7}),
        ("Fe.5Ni0.5", {"Fe": 0.5, "Ni": 0.5}),
        ("Hg0.7 Cd0.3 Te1", {"Cd": 0.3, "Te": 1, "Hg": 0.7}),
        ("CH3CH2OH", {"H": 6, "C": 2, "O": 1}),
        ("Ca3(PO4)2", {"O": 8, "P": 2, "Ca": 3}),
        ("Ca(Ti0.5(Zr2O)0.25)2O3", {"O": 3.5, "Ca": 1, "Ti": 1, "Zr": 1}),
        ("K4[Fe(CN)6]", {"C": 6, "N": 6, "K": 4, "Fe": 1}),
        ("{AgO}2(S)", {"O": 2, "S": 1, "Ag": 2}),
        ("Fe1.0C5e-3", {"C": 0.005, "Fe": 1}),
        ("Lr", {"Lr": 1}),
    ],
)
def test_amounts(text, expected):
    assert amounts(text) == pytest.approx(expected)
    assert list(amounts(text)) == list(expected), "by atomic number, each once"


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("", EMPTY, ""),
        ("  ", EMPTY, ""),
        (None, EMPTY, ""),
        ("Xx2O", UNKNOWN, "Xx in Xx2O"),
        ("RfO2", UNKNOWN, "Rf in RfO2"),
        ("D2O", ISOTOPE, "D in D2O"),
        ("T2O", ISOTOPE, "T in T2O"),
        ("Fe0O3", ZERO, "Fe in Fe0O3"),
        ("Fe(OH)0", ZERO, "O in Fe(OH)0"),
        ("Fe-2O3", NEGATIVE, "Fe-2O3"),
        ("Ca(OH)-2", NEGATIVE, "Ca(OH)-2"),
        ("Fe1e400", NOT_FINITE, "Fe in Fe1e400"),
        ("Feinf", MALFORMED, "'Feinf'"),
        ("Fe nan", MALFORMED, "'Fe nan'"),
        ("Fe2000000O", OUT_OF_RANGE, "Fe in Fe2000000O"),
        ("Fe1e-12O", OUT_OF_RANGE, "Fe in Fe1e-12O"),
        ("fe2o3", MALFORMED, "'fe2o3'"),
        ("2Fe", MALFORMED, "'2Fe'"),
        ("Fe2O3)", MALFORMED, "'Fe2O3)'"),
        ("(Fe2O3", MALFORMED, "'(Fe2O3'"),
        ("Fe()2", MALFORMED, "'Fe()2'"),
        ("Fe1.2.3", MALFORMED, "'Fe1.2.3'"),
        ("Fe+3", MALFORMED, "'Fe+3'"),
        ("CuSO4·5H2O", MALFORMED, "'CuSO4·5H2O'"),
        ("Fe₂O₃", MALFORMED, "'Fe₂O₃'"),
        ("FeXyz", MALFORMED, "'FeXyz'"),
    ],
)
def test_faults(text, kind, detail):
    found = parse_formulas(["NaCl", text, "Fe"])
    assert found.faults == {1: (kind, detail)}
    assert found.counts.tolist() == [2, 0, 1]
    assert found.z.tolist() == [11, 17, 26]


def test_nothing():
    found = parse_formulas([])
    assert (len(found.z), len(found.counts), found.faults) == (0, 0, {})


def test_text_of_a_formula_is_read_back():
    assert formula_text({"Hg": 0.7, "Te": 1.0, "O": 12.0}) == "Hg0.7TeO12"
    assert formula_text({"Hg": float(np.float32(0.7)), "O": 1234567.0}) == "Hg0.7O1234567"
    assert amounts(formula_text({"Hg": 0.7, "Te": 1.0})) == {"Hg": 0.7, "Te": 1}


def test_a_row_does_not_depend_on_its_neighbours():
    texts = ["Ca(Ti0.5(Zr2O)0.25)2O3", "CH3CH2OH", "D2O", "Fe", "LiFePO4"]
    together = parse_formulas(texts)
    alone = [parse_formulas([text]) for text in texts]
    assert together.counts.tolist() == [int(one.counts[0]) for one in alone]
    assert together.z.tolist() == [z for one in alone for z in one.z.tolist()]
    assert together.amount.tolist() == [amount for one in alone for amount in one.amount.tolist()]


def test_real_formulas_are_read_as_pymatgen_reads_them(shared):
    """Every formula of every file: the same elements, amounts within rounding."""
    core = pytest.importorskip("pymatgen.core")
    texts: set[str] = set()
    for file in sorted(shared("data/compositions").iterdir()):
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", newline="") as stream:
            rows = csv.DictReader(stream)
            column = "composition" if "composition" in (rows.fieldnames or ()) else "formula"
            texts |= {row[column] for row in rows}
    known = sorted(texts)
    found = parse_formulas(known)
    assert found.faults == {}
    assert len(known) > 400_000
    # All that have brackets or fractions, and one of fifty of the others: pymatgen takes a while.
    end = np.cumsum(found.counts)
    hard = [k for k, text in enumerate(known) if k % 50 == 0 or any(mark in text for mark in ".[{")]
    hard += [k for k, text in enumerate(known) if "(" in text][::10]
    for k in hard:
        expected = core.Composition(known[k])
        entries = slice(end[k] - found.counts[k], end[k])
        mine = dict(zip(found.z[entries].tolist(), found.amount[entries].tolist(), strict=True))
        assert mine == pytest.approx({element.Z: amount for element, amount in expected.items()}, rel=1e-12), known[k]
