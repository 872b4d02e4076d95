import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions, collect
from pyg_dim.data.parquet import table_of
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.report import ImportReport
from pyg_dim.data.sources.base import Entry

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def run(crystals, options=None, labels=None):
    labels = labels or [{}] * len(crystals)
    entries = [
        Entry(name, "fault" if isinstance(content, UnusableCrystalError) else "structure", content, row)
        for (name, content), row in zip(crystals, labels, strict=True)
    ]
    report = ImportReport("test")
    return collect(entries, options or ImportOptions(50), report), report


def test_collect_leaves_out_sites_that_coincide():
    crystals = [
        ("same", Structure(Lattice.cubic(4), ["Na", "Cl"], [[0.1, 0, 0], [1.1, 0, 0]])),
        ("across", Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 0.9]])),
        ("atoms", Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 0.3]], cell=[4, 4, 4], pbc=True)),
        ("salt", SALT),
        # A cell too small for any element, but with its atoms apart: for the checks that follow.
        ("dense", Structure(Lattice.cubic(0.9), ["Na"], [[0, 0, 0]])),
    ]
    raw, report = run(crystals)
    assert raw.ids.to_pylist() == ["salt", "dense"]
    assert report.counts() == {"sites nearer than 0.5 Å": 3}
    assert [str(item) for item in report.left_out] == ["same (0.000 Å)", "across (0.400 Å)", "atoms (0.300 Å)"]


def test_collect_keeps_labels_with_their_crystals():
    crystals = [("a", SALT), ("b", "broken"), ("c", UnusableCrystalError("unreadable", "why")), ("d", SALT)]
    raw, report = run(crystals, labels=[{"gap": value} for value in (1.0, 2.0, 3.0, 4.0)])
    assert raw.ids.to_pylist() == ["a", "d"]
    assert raw.labels["gap"].tolist() == [1.0, 4.0]
    assert report.num_read == 4
    assert [str(item) for item in report.left_out] == ["b (str)", "c (why)"]
    nothing, report = run(crystals[2:3])
    assert len(nothing.ids) == len(nothing.z) == 0
    assert report.counts() == {"unreadable": 1}


def test_labels_are_taken_as_they_are_found():
    found = [1, "2.5", True, None, "", "nan", "wide", [1], {"a": 1}, "-inf", 10**400]
    raw, report = run(
        [(f"c{k}", SALT) for k in range(len(found))],
        labels=[{"gap": value} for value in found[:-1]] + [{"energy": found[-1]}],
    )
    np.testing.assert_array_equal(raw.labels["gap"], [1, 2.5, 1] + [np.nan] * 6)
    assert report.not_numbers["gap"].count == 3
    assert report.not_numbers["gap"].examples == ["c6: wide", "c7: [1]", "c8: {'a': 1}"]
    assert [str(item) for item in report.left_out] == ["c9 (gap = -inf)", "c10 (energy = inf)"]
    assert report.counts() == {"non-finite label": 2}


def test_cells_are_reduced_before_they_are_counted():
    crystals = [("salt", SALT), ("doubled", SALT * [2, 1, 1]), ("primitive", SALT.get_primitive_structure())]
    raw, report = run(crystals, ImportOptions(2))
    assert raw.species_counts.tolist() == [2, 2, 2]
    assert report.num_reduced == 2
    kept, report = run(crystals, ImportOptions(8, primitive=False))
    assert kept.species_counts.tolist() == [8, 2]
    assert report.num_reduced == 0
    assert report.counts() == {"more than 8 sites": 1}
    np.testing.assert_allclose(kept.pos[:8], SALT.cart_coords, atol=1e-12)


def test_labels_stay_with_reduced_cells_and_those_left_out_do_not_shift_them():
    crystals = [("a", SALT), ("b", "broken"), ("c", SALT.get_primitive_structure()), ("d", SALT)]
    raw, _ = run(crystals, labels=[{"gap": float(k)} for k in range(4)])
    assert dict(zip(raw.ids.to_pylist(), raw.labels["gap"], strict=True)) == {"a": 0, "c": 2, "d": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sites": 0}, "max_sites must be at least 1"),
        ({"max_sites": 9, "symprec": 1.0}, "symprec must lie between"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ImportOptions(**options)


def test_names_that_are_no_utf8_are_escaped_and_stay_apart():
    crystals = [("caf\udce9", SALT), ("caf\udce8", SALT), ("bad\ud800", UnusableCrystalError("unreadable", "\udce9"))]
    raw, report = run(crystals, labels=[{"gap\ud800": 1.0}, {"gap\ud800": "\udce9"}, {}])
    assert raw.ids.to_pylist() == ["caf\\udce9", "caf\\udce8"]
    np.testing.assert_array_equal(raw.labels["gap\\ud800"], [1, np.nan])
    assert [str(item) for item in report.left_out] == ["bad\\ud800 (\\udce9)"]
    str(report).encode("utf-8")


def test_labels_called_like_a_required_column_are_not_read():
    raw, report = run([("a", SALT)], labels=[{"immutable_id": 1.0, "lattice_vectors": 2.0, "gap": 3.0}])
    assert list(raw.labels) == ["gap"]
    assert table_of(raw)["immutable_id"].to_pylist() == ["a"]
    assert [note.split(" was ")[0] for note in report.notes] == ["column 'immutable_id'", "column 'lattice_vectors'"]
    whole = ImportReport("test")
    for _ in range(2):
        whole.add(report)
    assert whole.notes == report.notes
    raw.labels["species_at_sites"] = np.zeros(1)
    with pytest.raises(ValueError, match="labels cannot be called species_at_sites"):
        table_of(raw)


def test_only_crystals_that_are_kept_count_as_reduced():
    near = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.05]])
    crystals = [("salt", SALT), ("salt", SALT), ("near", near * [2, 1, 1]), ("large", SALT * [2, 1, 1])]
    labels = [{}, {}, {}, {"gap": "inf"}]
    raw, report = run(crystals, labels=labels)
    assert raw.ids.to_pylist() == ["salt"]
    assert report.num_reduced == 1
