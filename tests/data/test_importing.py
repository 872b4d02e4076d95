import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data import importing as module
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.importing import import_crystals, report_path
from pyg_dim.data.reading import open_sources

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
OPTIONS = ImportOptions(50)


@pytest.fixture
def folder(tmp_path):
    """Seven CIFs, two of which cannot be used, and labels."""
    cifs = tmp_path / "cifs"
    cifs.mkdir()
    for k, structure in enumerate([SALT, CSCL, MIXED, CSCL, SALT.get_primitive_structure(), CSCL]):
        structure.to(str(cifs / f"c{k}.cif"))
    (cifs / "c6.cif").write_text("nothing")
    (cifs / "id_prop.csv").write_text("id,gap (eV)\nc0,1\nc1,2\nc3,inf\nc4,\nc5,wide\n")
    return cifs


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of two crystals each."""
    monkeypatch.setattr("pyg_dim.data.reading.CHUNK", 2)
    monkeypatch.setattr(module, "CHUNK", 2)


def run(folder, out, **settings):
    return import_crystals(open_sources([folder]), out, OPTIONS, **settings)


def left_behind(tmp_path):
    return sorted(file.name for file in tmp_path.iterdir() if file.name != "cifs")


def test_file_and_report(folder, tmp_path, small_parts):
    report = run(folder, tmp_path / "out.parquet")
    assert left_behind(tmp_path) == ["out.parquet", "out.report.json"]
    assert report.num_read == 7
    assert report.num_reduced == 1
    dataset = CrystalDataset.from_parquet(tmp_path / "out.parquet", dtype=torch.float64)
    assert dataset.ids.to_pylist() == ["c0", "c1", "c4", "c5"]
    assert dataset.num_sites.tolist() == [2] * 4
    np.testing.assert_array_equal(dataset.target("gap"), [1, 2, np.nan, np.nan])
    assert dataset.units == {"gap": "eV"}
    assert dataset.subset(torch.tensor([1])).units == {"gap": "eV"}

    written = json.loads(report_path(tmp_path / "out.parquet").read_text(encoding="utf-8"))
    assert (written["read"], written["kept"], written["cells_reduced"]) == (7, 4, 1)
    assert written["left_out"] == {"partial occupancy": 1, "non-finite label": 1, "unreadable CIF": 1}
    assert [(item["id"], item["reason"]) for item in written["rejected"]] == [
        ("c2", "partial occupancy"),
        ("c3", "non-finite label"),
        ("c6", "unreadable CIF"),
    ]
    assert all(item["detail"] for item in written["rejected"])
    assert written["labels"]["gap"]["unit"] == "eV"
    assert written["labels"]["gap"]["values"] == 2
    assert written["labels"]["gap"]["not_numbers"] == {"count": 1, "examples": ["c5: wide"]}
    assert written["settings"]["symprec"] == 0.001


def test_the_same_crystals_as_read_directly(folder, tmp_path, small_parts):
    run(folder, tmp_path / "out.parquet")
    imported = load_dataset(tmp_path / "out.parquet", dtype=torch.float64)
    direct = load_dataset(folder, dtype=torch.float64)
    assert imported.ids.to_pylist() == direct.ids.to_pylist()
    for name in ("z", "ptr", "pos", "cell"):
        assert torch.equal(getattr(imported, name), getattr(direct, name)), name
    torch.testing.assert_close(imported.target("gap"), direct.target("gap"), equal_nan=True)
    assert imported.units == direct.units


def test_units_survive_another_round(folder, tmp_path):
    load_dataset(folder).to_parquet(tmp_path / "copy.parquet")
    assert load_dataset(tmp_path / "copy.parquet").units == {"gap": "eV"}


def test_what_was_imported_says_so(folder, tmp_path):
    run(folder, tmp_path / "out.parquet")
    note = "imported by pyg_dim 0.1.0: primitive cells (to 0.001 Å), no sites nearer than 0.5 Å"
    assert note in load_dataset(tmp_path / "out.parquet").report.notes
    import_crystals(open_sources([folder]), tmp_path / "kept.parquet", ImportOptions(50, primitive=False))
    assert note.replace("primitive cells (to 0.001 Å)", "cells as they were") in (
        load_dataset(tmp_path / "kept.parquet").report.notes
    )


def test_several_processes_give_the_same_file(folder, tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(module, "_FEW", 0)
    run(folder, tmp_path / "one.parquet")
    run(folder, tmp_path / "two.parquet", workers=2)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert (tmp_path / "one.report.json").read_bytes() == (tmp_path / "two.report.json").read_bytes()


def test_identifiers_of_all_parts_and_sources_differ(folder, tmp_path, small_parts):
    report = import_crystals(
        open_sources([folder, folder / "c1.cif", folder / "c5.cif"]), tmp_path / "o.parquet", OPTIONS
    )
    assert report.counts()["identifier already taken"] == 2
    assert report.num_kept == 4
    assert pq.read_table(tmp_path / "o.parquet")["immutable_id"].to_pylist() == ["c0", "c1", "c4", "c5"]
    # Values of crystals that are not in the file do not count.
    import_crystals(open_sources([folder, folder]), tmp_path / "twice.parquet", OPTIONS)
    written = json.loads((tmp_path / "twice.report.json").read_text(encoding="utf-8"))
    assert written["labels"]["gap"]["values"] == 2


def test_labels_that_only_some_parts_have(tmp_path, small_parts):
    import ase.io
    from ase.build import bulk

    frames = [bulk("NaCl", "rocksalt", a=5.6) for _ in range(6)]
    for k in (3, 4):
        frames[k].info = {"gap": float(k), "note": "text"}
    ase.io.write(tmp_path / "x.extxyz", frames, format="extxyz")
    import_crystals(open_sources([tmp_path / "x.extxyz"]), tmp_path / "o.parquet", OPTIONS)
    values = load_dataset(tmp_path / "o.parquet").target("gap")
    np.testing.assert_array_equal(values, [np.nan] * 3 + [3, 4, np.nan])


def test_nothing_is_overwritten_unless_told(folder, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"out\.parquet exists; --overwrite replaces it"):
        run(folder, out)
    assert out.read_bytes() == b"precious"
    assert left_behind(tmp_path) == ["out.parquet"]
    run(folder, out, overwrite=True)
    assert len(load_dataset(out)) == 4
    with pytest.raises(ValueError, match="is both a source and a file to write"):
        import_crystals(open_sources([out]), out, OPTIONS, overwrite=True)
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        run(folder, tmp_path / "cifs")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run(folder, tmp_path / "nowhere" / "out.parquet")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run(folder, tmp_path / "more.parquet", workers=0)


def test_a_report_is_not_replaced_unless_told(folder, tmp_path):
    report, out = tmp_path / "mine.report.json", tmp_path / "mine.parquet"
    report.write_text("precious")
    with pytest.raises(ValueError, match=r"mine\.report\.json exists; --overwrite replaces it"):
        run(folder, out)
    source = open_sources([folder])
    source.files.append(report)
    with pytest.raises(ValueError, match=r"mine\.report\.json is both a source and a file to write"):
        import_crystals(source, out, OPTIONS, overwrite=True)
    assert report.read_text() == "precious"
    assert left_behind(tmp_path) == ["mine.report.json"]
    run(folder, out, overwrite=True)
    assert json.loads(report.read_text(encoding="utf-8"))["kept"] == 4


@pytest.mark.parametrize("stopped", ["_fit", "_report_text"])
def test_a_stop_while_parts_are_put_together_leaves_only_the_parts(folder, tmp_path, monkeypatch, stopped):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, stopped, stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "out.parquet")
    assert left_behind(tmp_path) == ["out.parquet.parts"]
    assert run(folder, tmp_path / "out.parquet", resume=True).num_kept == 4


def test_a_name_that_is_no_utf8_does_not_end_the_import(folder, tmp_path, capsys):
    CSCL.to(str(folder / "caf.cif"))
    try:
        os.rename(folder / "caf.cif", os.fsencode(folder) + b"/caf\xe9.cif")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    out = tmp_path / "out.parquet"
    report = run(folder, out)
    assert pq.read_table(out)["immutable_id"].to_pylist()[-1] == "caf\\udce9"
    notes = json.loads(report_path(out).read_text(encoding="utf-8"))["notes"]
    assert any("caf\\udce9" in note for note in notes)
    report.source = "caf\udce9"
    module.show_report(report, out)
    assert "caf\\udce9" in capsys.readouterr().out


def test_a_source_without_a_usable_crystal_writes_nothing(folder, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)no usable crystal.*partial occupancy: 1 \(c2"):
        import_crystals(open_sources([folder / "c2.cif"]), tmp_path / "out.parquet", OPTIONS)
    assert left_behind(tmp_path) == []


def stop_after(monkeypatch, number):
    """Ctrl-C when so many parts have been made."""
    from pyg_dim.data import workers

    made = []

    def make(entries, options, path):
        if len(made) == number:
            raise KeyboardInterrupt
        made.append(path.name)
        return workers.parts_make(entries, options, path)

    monkeypatch.setattr(workers, "parts_make", workers.make_part, raising=False)
    monkeypatch.setattr(workers, "make_part", make)
    return made


def test_an_import_that_was_stopped_goes_on(folder, tmp_path, small_parts, monkeypatch, caplog):
    run(folder, tmp_path / "whole.parquet")
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        assert len(stop_after(patch, 2)) == 0
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
    assert "go on with --resume" in caplog.text
    assert not out.exists()
    assert sorted(file.name for file in (tmp_path / "out.parquet.parts").iterdir()) == [
        "part-000000.parquet",
        "part-000000.sha256",
        "part-000001.parquet",
        "part-000001.sha256",
        "plan.json",
    ]
    with pytest.raises(ValueError, match="--resume goes on with them, --overwrite discards them"):
        run(folder, out)
    # One of the parts is damaged meanwhile: it is made again.
    first = tmp_path / "out.parquet.parts" / "part-000000.parquet"
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 0xFF
    first.write_bytes(data)
    with monkeypatch.context() as patch:
        made = stop_after(patch, 99)
        run(folder, out, resume=True)
    assert made == ["part-000000.parquet", "part-000002.parquet", "part-000003.parquet"]
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "out.report.json").read_bytes() == (tmp_path / "whole.report.json").read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.parametrize("change", ["a file", "an option", "the labels"])
def test_parts_of_another_import_are_refused(folder, tmp_path, small_parts, monkeypatch, change):
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
    options, what = OPTIONS, "files"
    if change == "a file":
        os.utime(folder / "c1.cif", (1, 1))
    elif change == "the labels":
        (folder / "id_prop.csv").write_text("c0,1\n")
    else:
        options, what = ImportOptions(49), "options"
    with pytest.raises(ValueError, match=rf"of another import \({what} changed since\); --overwrite"):
        import_crystals(open_sources([folder]), out, options, resume=True)
    (tmp_path / "out.parquet.parts" / "mine.txt").write_text("not a part")
    import_crystals(open_sources([folder]), out, options, overwrite=True)
    assert out.exists()
    # What the import did not make stays.
    assert [file.name for file in (tmp_path / "out.parquet.parts").iterdir()] == ["mine.txt"]


def test_resuming_without_parts_is_an_ordinary_import(folder, tmp_path):
    assert run(folder, tmp_path / "out.parquet", resume=True).num_kept == 4


def test_the_official_file_of_phonons(shared, tmp_path):
    path = shared("data/matbench_phonons.json.gz")
    report = import_crystals(open_sources([path]), tmp_path / "out.parquet", OPTIONS)
    content = json.loads(gzip.decompress(path.read_bytes()))
    dataset = load_dataset(tmp_path / "out.parquet")
    assert report.num_read == report.num_kept == len(dataset) == 1265
    assert dataset.ids.to_pylist() == [str(index) for index in content["index"]]
    column = content["columns"].index("last phdos peak")
    assert dataset.target("last phdos peak").tolist() == [row[column] for row in content["data"]]


PROGRAM = """
import logging, sys
from pyg_dim.data import importing
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources

if __name__ == "__main__":
    logging.basicConfig()
    importing.CHUNK, importing._FEW = 2, 0
    source, out, *resume = sys.argv[1:]
    workers = 1 if resume else 2
    importing.import_crystals(open_sources([source]), out, ImportOptions(50), workers, bool(resume))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_can_be_killed_and_the_import_goes_on(folder, tmp_path, how):
    """A real process with workers of its own, stopped in the middle: no file and no process stays, and it goes on."""
    for k in range(40):
        SALT.to(str(folder / f"more{k:02d}.cif"), symprec=0.01)
    script = folder / "run.py"
    script.write_text(PROGRAM)
    out = tmp_path / "out.parquet"
    command = [sys.executable, str(script), str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603
    parts = tmp_path / "out.parquet.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # to all of its processes, as a terminal does
    else:
        process.kill()
    said = process.communicate(timeout=60)[0].decode()
    if process.returncode == 0:
        pytest.skip("the import was done before it could be stopped")
    assert process.returncode != 0, said
    assert not out.exists()
    if how == signal.SIGINT:
        assert "go on with --resume" in said
        assert said.count("Traceback") == 1  # the workers leave it to the first process
    while True:  # the workers notice that their parent is gone
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = subprocess.run([*command, "again"], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert len(pq.read_table(out)) == 44
    assert not parts.exists()


def test_labels_of_no_crystal_write_nothing(tmp_path, folder):
    (tmp_path / "late.csv").write_text("gap,file\n1,c0\n2,c1\n")
    with pytest.raises(ValueError, match=r"column 'file' matches 2 of 7 crystals: add --labels-id file"):
        import_crystals(open_sources([folder], labels=tmp_path / "late.csv"), tmp_path / "out.parquet", OPTIONS)
    assert not list(tmp_path.glob("out*"))
