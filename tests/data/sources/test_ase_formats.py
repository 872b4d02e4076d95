import json
import sqlite3

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

SALT = bulk("NaCl", "rocksalt", a=5.64)
WATER = Atoms("OH2", positions=[[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])


def read(path, **options):
    return read_crystals(open_sources([path], **options), ImportOptions(50))


@pytest.fixture
def frames(tmp_path):
    first, second = SALT.copy(), bulk("MgO", "rocksalt", a=4.21, cubic=True)
    first.info |= {"gap": 5.0, "material_id": "mp-22862", "comment": "halite", "metal": False}
    second.info |= {"gap": 4.5, "name": "periclase"}
    second.calc = SinglePointCalculator(second, energy=-12.0)
    ase.io.write(tmp_path / "set.extxyz", [first, second, WATER], format="extxyz")
    return tmp_path / "set.extxyz"


def test_frames_of_extended_xyz(frames):
    raw, report = read(frames)
    assert raw.ids.to_pylist() == ["mp-22862", "set-1"]
    assert raw.species_counts.tolist() == [2, 2]
    np.testing.assert_array_equal(raw.labels["gap"], [5, 4.5])
    np.testing.assert_array_equal(raw.labels["energy"], [np.nan, -12])
    np.testing.assert_array_equal(raw.labels["metal"], [0, np.nan])
    assert report.counts() == {"not periodic in three directions": 1}
    np.testing.assert_allclose(raw.cell[0], SALT.cell, atol=1e-7)
    assert read(frames, id_column="name")[0].ids.to_pylist() == ["set-0", "periclase"]


def test_damage_to_extended_xyz(frames):
    text = frames.read_text()
    frames.write_text(text.replace("Lattice=", "Lettice=", 1).replace("Mg ", "Xx ", 1))
    raw, report = read(frames)
    assert len(raw.ids) == 0
    assert [item.id for item in report.left_out] == ["mp-22862", "set-1", "set-2"]
    for content, kept in (
        (text[: len(text) // 2], 1),
        ("99999999999\n" + text, 0),
        (text + "-5\n\n", 2),
        (text + "3\nunfinished", 2),
        ("", 0),
        ("\x00\xff", 0),
    ):
        frames.write_text(content, encoding="latin-1")
        raw, report = read(frames)
        assert len(raw.ids) == kept
        faults = report.counts().get("file damaged from here on", 0)
        assert faults == (1 if content else 0)


@pytest.mark.parametrize("ending", ["db", "json"])
def test_data_base_of_ase(tmp_path, ending):
    path = tmp_path / f"set.{ending}"
    with connect(path) as database:
        database.write(SALT, gap=5.0, material_id="mp-22862", method="pbe", data={"spectrum": np.zeros(3)})
        energetic = bulk("MgO", "rocksalt", a=4.21)
        energetic.calc = SinglePointCalculator(energetic, energy=-12.0)
        database.write(energetic, gap=4.5, name="periclase")
        database.write(WATER)
    before = path.read_bytes()
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["mp-22862", "2"]
    assert raw.z.tolist() == [11, 17, 12, 8]
    np.testing.assert_array_equal(raw.labels["gap"], [5, 4.5])
    np.testing.assert_array_equal(raw.labels["energy"], [np.nan, -12])
    assert report.counts() == {"not periodic in three directions": 1}
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read(path, id_column="name")[0].ids.to_pylist() == ["1", "periclase"]


def test_other_files_are_not_made_a_data_base(tmp_path):
    path = tmp_path / "x.db"
    sqlite3.connect(path).execute("CREATE TABLE songs (name TEXT)").connection.commit()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"x\.db is no data base of ASE: its tables are songs"):
        read(path)
    assert path.read_bytes() == before
    path.write_bytes(b"nothing" * 100)
    with pytest.raises(ValueError, match=r"x\.db is no readable data base of ASE"):
        read(path)


def test_a_damaged_data_base_is_reported(tmp_path):
    path = tmp_path / "x.db"
    with connect(path) as database:
        database.write(SALT)
        database.write(SALT)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions = x'0102' WHERE id = 2")
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["1"]
    assert report.counts() == {"data base damaged from here on": 1}
    (tmp_path / "y.json").write_text(json.dumps({"1": {"numbers": [1]}, "ids": [1], "nextid": 2}))
    assert read(tmp_path / "y.json")[1].num_kept == 0
