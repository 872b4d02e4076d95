import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.importing import import_crystals
from pyg_dim.data.reading import open_sources, read_crystals

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
OPTIMADE = {
    "lattice_vectors": CSCL.lattice.matrix.tolist(),
    "species_at_sites": ["Cs", "Cl"],
    "cartesian_site_positions": CSCL.cart_coords.tolist(),
}


def read(*sources, **options):
    return read_crystals(open_sources(sources, **options), ImportOptions(50))


def shards(folder, rows):
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist([row | {"of": len(name)} for row in rows]), folder / f"{name}.parquet")
    return folder


def test_shards_without_identifiers_are_all_kept(tmp_path):
    folder = shards(tmp_path / "shards", [OPTIMADE] * 3)
    report = import_crystals(open_sources([folder]), tmp_path / "out.parquet", ImportOptions(50))
    assert report.num_kept == 6
    ids = pq.read_table(tmp_path / "out.parquet")["immutable_id"].to_pylist()
    assert ids == [f"{name}/{k}" for name in "ab" for k in range(3)]
    assert "2 sources number their crystals from 0: identifiers are a/0 and so on" in report.notes
    # One file alone keeps its numbers, and so do identifiers that the files give.
    assert read(folder / "a.parquet")[0].ids.to_pylist() == ["0", "1", "2"]


def test_numbered_rows_of_several_tables_are_all_kept(tmp_path):
    text = CSCL.to(fmt="cif").replace('"', '""')
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.csv").write_text(f'gap,cif\n1,"{text}"\n2,"{text}"\n')
    files = [tmp_path / place / "rows.csv" for place in ("x", "y")]
    raw, _ = read(*files)
    assert raw.ids.to_pylist() == [f"{file}/{k}" for file in files for k in range(2)]
    # The same file twice holds the same crystals.
    _, report = read(files[0], files[0])
    assert report.counts() == {"identifier already taken": 2}


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    folder = shards(tmp_path / "mixed", [OPTIMADE])
    CSCL.to(str(folder / "c.cif"))
    with pytest.raises(ValueError, match=r"holds Parquet files \(a\.parquet\) and 1 CIFs or POSCARs \(c\.cif\); give"):
        open_sources([folder])


def test_labels_in_an_archive_are_spoken_of(tmp_path):
    with zipfile.ZipFile(tmp_path / "cgcnn.zip", "w") as archive:
        archive.writestr("data/a.cif", CSCL.to(fmt="cif"))
        archive.writestr("data/id_prop.csv", "a,1\n")
    _, report = read(tmp_path / "cgcnn.zip")
    assert report.notes == ["data/id_prop.csv in the archive was not read: unpack it for its labels"]
