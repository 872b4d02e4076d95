import numpy as np
import pyarrow as pa
import pytest

from pyg_dim.data.raw import keep_sound, ragged_index
from pyg_dim.data.report import ImportReport

GOOD = ([11, 17], [[0.0, 0, 0], [2, 2, 2]], 4 * np.eye(3))


def check(lay_out, crystals, max_sites=50, change=None, labels=None):
    raw = lay_out(crystals, labels)
    if change is not None:
        change(raw)
    report = ImportReport("test", len(crystals))
    return keep_sound(raw, report, max_sites), report


def test_ragged_index():
    assert ragged_index(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ragged_index(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (([0, 17], GOOD[1], GOOD[2]), "unknown or unsupported element"),
        ((GOOD[0], [[0, 0, np.nan], [2, 2, 2]], GOOD[2]), "a position is not finite"),
        ((GOOD[0], GOOD[1], np.full((3, 3), np.inf)), "the cell is not finite"),
        ((GOOD[0], GOOD[1], np.ones((3, 3))), "the cell has less than 0.1 cubic angstrom a site"),
        (([3] * 5, np.zeros((5, 3)), 9 * np.eye(3)), "more than 4 sites"),
        (([], np.zeros((0, 3)), GOOD[2]), "no sites"),
    ],
)
def test_a_bad_crystal_is_left_out_and_the_others_stay_whole(lay_out, bad, reason):
    other = ([8], [[1.0, 1, 1]], 3 * np.eye(3))
    kept, report = check(lay_out, [GOOD, bad, other], max_sites=4)
    assert report.counts() == {reason: 1}
    assert [item.id for item in report.left_out] == ["c1"]
    assert kept.ids.to_pylist() == ["c0", "c2"]
    assert kept.z.tolist() == [11, 17, 8]
    assert kept.pos.tolist() == [[0, 0, 0], [2, 2, 2], [1, 1, 1]]
    assert kept.cell[1].tolist() == (3 * np.eye(3)).tolist()


def test_detail_names_the_unknown_element(lay_out):
    def name(raw):
        raw.z[2] = 0
        raw.foreign_symbols = {2: "Xx"}

    _, report = check(lay_out, [GOOD, GOOD], change=name)
    assert str(report.left_out[0]) == "c1 (Xx)"


def test_species_and_positions_of_different_number(lay_out):
    def lose_a_position(raw):
        raw.pos = np.delete(raw.pos, 2, axis=0)
        raw.position_counts[1] = 1

    kept, report = check(lay_out, [GOOD, GOOD, GOOD], change=lose_a_position)
    assert report.counts() == {"number of species differs from number of positions": 1}
    assert kept.ids.to_pylist() == ["c0", "c2"]
    assert kept.pos.tolist() == [[0, 0, 0], [2, 2, 2]] * 2


def test_first_sound_crystal_keeps_a_repeated_identifier(lay_out):
    broken = (GOOD[0], GOOD[1], np.zeros((3, 3)))

    def rename(raw):
        raw.ids = pa.array(["a", "a", "b", "a"])

    kept, report = check(lay_out, [broken, GOOD, GOOD, GOOD], change=rename)
    assert kept.ids.to_pylist() == ["a", "b"]
    assert report.counts() == {"the cell has less than 0.1 cubic angstrom a site": 1, "identifier already taken": 1}


def test_infinite_labels_are_damage_and_missing_ones_are_not(lay_out):
    kept, report = check(lay_out, [GOOD] * 4, labels={"gap": np.array([1.0, np.inf, np.nan, -np.inf])})
    np.testing.assert_array_equal(kept.labels["gap"], [1.0, np.nan])
    assert [(item.reason, str(item)) for item in report.left_out] == [
        ("non-finite label", "c1 (gap = inf)"),
        ("non-finite label", "c3 (gap = -inf)"),
    ]


def test_nothing_may_be_left(lay_out):
    kept, report = check(lay_out, [GOOD, GOOD], max_sites=1)
    assert len(kept.ids) == len(kept.z) == len(kept.cell) == 0
    assert report.counts() == {"more than 1 sites": 2}
