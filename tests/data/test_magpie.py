from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_dim.data import magpie
from pyg_dim.data.elements import MAX_Z, atomic_numbers, symbols
from pyg_dim.data.magpie import MAGPIE_NAMES, MAGPIE_PROPERTIES, _table, magpie_features, write_magpie_table


def sites(formula):
    """Atomic numbers of one formula unit."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    return [atomic_numbers()[symbol] for symbol, count in parts for _ in range(int(count or 1))]


def features(*formulas):
    cells = [sites(formula) for formula in formulas]
    ptr = torch.tensor([0, *(len(cell) for cell in cells)]).cumsum(0)
    return magpie_features(torch.tensor([z for cell in cells for z in cell]), ptr)


def value(row, name):
    return row[MAGPIE_NAMES.index(name)].item()


def test_rock_salt_by_hand():
    (row,) = features("NaCl")
    for p in (2, 3, 5, 7, 10):
        assert value(row, f"{p}-norm") == pytest.approx((2 * 0.5**p) ** (1 / p), abs=1e-14)
    assert value(row, "0-norm") == 2
    # Sodium: number 11, Mendeleev number 2, melts at 370.87 K, electronegativity 0.93. Chlorine: 17, 94, 171.6, 3.16.
    for name, sodium, chlorine in (
        ("Number", 11, 17),
        ("MendeleevNumber", 2, 94),
        ("AtomicWeight", 22.98976928, 35.453),
        ("MeltingT", 370.87, 171.6),
        ("Column", 1, 17),
        ("Row", 3, 3),
        ("CovalentRadius", 166, 102),
        ("Electronegativity", 0.93, 3.16),
    ):
        low, high = min(sodium, chlorine), max(sodium, chlorine)
        expected = [low, high, high - low, (low + high) / 2, (high - low) / 2, low]
        statistics = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")
        assert [value(row, f"MagpieData {s} {name}") for s in statistics] == pytest.approx(expected, abs=1e-12)
    # 3s1, and 3s2 3p5.
    assert [value(row, f"avg {orbital} valence electrons") for orbital in "spdf"] == [1.5, 2.5, 0, 0]
    character = 1 - np.exp(-((3.16 - 0.93) ** 2) / 4)
    assert value(row, "compound possible") == 1
    assert value(row, "max ionic char") == pytest.approx(character, abs=1e-14)
    assert value(row, "avg ionic char") == pytest.approx(character / 4, abs=1e-14)


def test_the_mode_is_the_smallest_of_the_most_frequent():
    rows = features("SrTiO3", "LiFePO4", "Na2Cl2O")
    assert [value(row, "MagpieData mode Number") for row in rows] == [8, 8, 11]
    assert value(rows[2], "MagpieData mode MeltingT") == 171.6


def test_charges_balance_with_one_state_an_element():
    names = ["NaCl", "Fe2O3", "Fe3O4", "CrMnFeCoNi", "NaCl2", "Fe", "He", "HeO", "XeF2", "C6H6", "LiFePO4"]
    possible = features(*names)[:, MAGPIE_NAMES.index("compound possible")].bool().tolist()
    # Iron has 2 and 3, in magnetite both at once; helium has no state at all; chlorine in NaCl2 would need -1/2.
    assert dict(zip(names, possible, strict=True)) == {
        "NaCl": True, "Fe2O3": True, "Fe3O4": False, "CrMnFeCoNi": False, "NaCl2": False, "Fe": True, "He": True,
        "HeO": False, "XeF2": True, "C6H6": True, "LiFePO4": True,
    }  # fmt: skip


def test_an_element_has_neither_ionic_character_nor_spread():
    (row,) = features("Fe")
    assert value(row, "max ionic char") == value(row, "avg ionic char") == 0
    for name in MAGPIE_PROPERTIES:
        assert value(row, f"MagpieData range {name}") == 0
        assert value(row, f"MagpieData avg_dev {name}") == pytest.approx(0, abs=1e-12)


def test_neither_the_cell_nor_the_order_of_sites_nor_the_batch_matters():
    cells = [sites("LiFePO4"), sites("SrTiO3"), sites("Fe")]
    one = features("LiFePO4", "SrTiO3", "Fe")
    twice = [(cell * 2)[::-1] for cell in cells]
    ptr = torch.tensor([0, *(len(cell) for cell in twice)]).cumsum(0)
    torch.testing.assert_close(
        magpie_features(torch.tensor([z for cell in twice for z in cell]), ptr), one, rtol=0, atol=1e-10
    )
    torch.testing.assert_close(torch.cat([features(f) for f in ("LiFePO4", "SrTiO3", "Fe")]), one, rtol=0, atol=0)
    assert one.dtype == torch.float64
    assert one.shape == (3, 145) == (3, len(MAGPIE_NAMES))
    assert len(set(MAGPIE_NAMES)) == 145


def test_agrees_with_the_numbers_of_matminer(shared):
    fixture = np.load(shared("fixtures/magpie_features.npz"))
    assert fixture["feature_names"].tolist() == list(MAGPIE_NAMES)
    whole = [k for k, formula in enumerate(fixture["formula"]) if "." not in formula]
    assert len(whole) == 8
    expected = torch.from_numpy(fixture["features_fast_true"][whole])
    torch.testing.assert_close(features(*fixture["formula"][whole]), expected, rtol=0, atol=1e-10)


def test_table_agrees_with_the_numbers_of_matminer(shared):
    fixture = np.load(shared("fixtures/magpie_features.npz"))
    table = _table()
    assert fixture["element_symbol"].tolist() == list(symbols()[1:])
    assert fixture["element_props"].tolist() == list(MAGPIE_PROPERTIES)
    for ours, theirs in (
        (table.properties, "element_table_imputed"),
        (table.electronegativity, "pymatgen_X_imputed"),
    ):
        torch.testing.assert_close(ours[1:], torch.from_numpy(fixture[theirs]), rtol=1e-12, atol=0)
    states = json.loads(str(fixture["common_oxidation_states_json"]))
    for z, symbol in enumerate(symbols()[1:], 1):
        first, end = table.states_ptr[z], table.states_ptr[z + 1]
        assert table.states[first:end].tolist() == states[symbol]


def test_table_is_what_the_command_writes(tmp_path):
    pytest.importorskip("matminer", reason="needs matminer: pip install -e '.[baselines]'")
    written = tmp_path / "magpie.csv"
    write_magpie_table(written)
    theirs, ours = (
        [line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for path in (written, Path(magpie.__file__).with_name("magpie.csv"))
    )
    assert len(ours) == MAX_Z + 1
    numbers = slice(1, len(MAGPIE_PROPERTIES) + 2)
    for one, other in zip(ours, theirs, strict=True):
        if one[0] == "symbol":
            assert one == other
            continue
        # The last digit of a mean over the elements depends on the order of adding.
        assert [float(v) for v in one[numbers]] == pytest.approx([float(v) for v in other[numbers]], rel=1e-12)
        assert (one[0], one[-2:]) == (other[0], other[-2:])
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_matminer():
    pytest.importorskip("matminer", reason="needs matminer: pip install -e '.[baselines]'")
    from matminer.featurizers.base import MultipleFeaturizer
    from matminer.featurizers.composition import ElementProperty, IonProperty, Stoichiometry, ValenceOrbital
    from pymatgen.core import Composition

    reference = MultipleFeaturizer(
        [
            Stoichiometry(),
            ElementProperty.from_preset("magpie", impute_nan=True),
            ValenceOrbital(props=["avg"], impute_nan=True),
            IonProperty(fast=True, impute_nan=True),
        ]
    )
    assert reference.feature_labels() == list(MAGPIE_NAMES)
    formulas = ["Ca10P6O26H2", "KAl3Si3O12H2", "Yb14MnSb11", "U3Si2", "He2O5", "AtLr", "K3Fe5C6N6", "Xe"]
    expected = torch.tensor([reference.featurize(Composition(f)) for f in formulas], dtype=torch.float64)
    torch.testing.assert_close(features(*formulas), expected, rtol=0, atol=1e-10)
