"""The command ``pyg-dim embed``: files of vectors, what is left out, and what is never overwritten."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pyg_dim import embedding, models
from pyg_dim.cli import main
from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.data.embeddings import read_embeddings
from pyg_dim.embedding import embed
from pyg_dim.evaluate.represent import NOT_FINITE, represent
from pyg_dim.training import export, load_encoder

ALLOY = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def salt(edge: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights file of an untrained Site-Net."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    export(models.build("sitenet", supercell_sites=8, post_pool=[64, 32]), path)
    return path


@pytest.fixture
def cifs(tmp_path, monkeypatch):
    """A folder of two salts and an alloy, which cannot be used; the working directory lies above it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifs").mkdir()
    for name, structure in {"a": salt(5.6), "b": salt(6.1), "mixed": ALLOY}.items():
        structure.to(f"cifs/{name}.cif")
    return tmp_path


def expected(weights, source, readout=None):
    encoder, dataset = load_encoder(weights), load_dataset(source)
    vectors, _ = represent(encoder, CrystalLoader(dataset, encoder.graph, shuffle=False), readout)
    return dataset.ids.to_pylist(), vectors


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("readout", [None, "full"])
def test_tables_hold_the_vectors_of_represent_to_the_last_bit(cifs, weights, ending, readout):
    flags = [] if readout is None else ["--readout", readout]
    assert main(["embed", "cifs", "--model", str(weights), "--out", f"e.{ending}", *flags]) == 0
    table = read_embeddings(f"e.{ending}")
    names, vectors = expected(weights, "cifs", readout)
    assert table.by == "immutable_id"
    assert table.names == names == ["a", "b"]
    assert torch.equal(table.vectors.float(), vectors)


def test_an_archive_of_arrays_has_no_pickle(cifs, weights):
    assert main(["embed", "cifs", "--model", str(weights), "--out", "e.npz"]) == 0
    names, vectors = expected(weights, "cifs")
    with np.load("e.npz", allow_pickle=False) as file:
        assert file["ids"].tolist() == names
        np.testing.assert_array_equal(file["vectors"], vectors.numpy())
    assert zipfile.is_zipfile("e.npz")


def test_every_kind_of_source(cifs, weights):
    load_dataset("cifs").to_parquet("data.parquet")
    with zipfile.ZipFile("cifs.zip", "w") as archive:
        for name in ("a", "b"):
            archive.write(f"cifs/{name}.cif")
    _, vectors = expected(weights, "cifs")
    # The alloy, or a crystal of a name that is taken.
    for sources, num_left_out in (
        (["cifs/a.cif", "cifs/b.cif"], 0),
        (["cifs/*.cif"], 1),
        (["data.parquet"], 0),
        (["cifs.zip"], 0),
        (["cifs/a.cif", "cifs.zip"], 1),
    ):
        assert len(embed(sources, weights, "e.parquet", overwrite=True)) == num_left_out
        table = read_embeddings("e.parquet")
        assert table.names == ["a", "b"], sources
        torch.testing.assert_close(table.vectors, vectors, rtol=1e-4, atol=1e-5)


def test_formulas_go_to_encoders_that_need_no_structure(cifs, weights):
    (cifs / "formulas.csv").write_text("id,formula\na,NaCl\nb,Fe2O3\nc,Qq2\n")
    export(models.build("roost"), "roost.safetensors")
    left_out = embed(["formulas.csv"], "roost.safetensors", "e.csv")
    assert [item.id for item in left_out] == ["c"]
    table = read_embeddings("e.csv")
    names, vectors = expected("roost.safetensors", "formulas.csv")
    assert table.names == names == ["a", "b"]
    assert torch.equal(table.vectors.float(), vectors)
    with pytest.raises(
        ValueError, match=r"formulas\.csv holds formulas, and .* is a sitenet encoder, which needs struct"
    ):
        embed(["formulas.csv"], weights, "f.csv")


def test_what_is_left_out_is_told_by_name_and_reason(cifs, weights, capsys):
    assert main(["embed", "cifs", "--model", str(weights), "--out", "e.parquet"]) == 0
    out = capsys.readouterr().out
    assert "left out, partial occupancy: 1 (mixed (Cu:0.5 Au:0.5))" in out
    assert "1 crystals were left out; e.parquet.report.json names each" in out
    report = json.loads((cifs / "e.parquet.report.json").read_text())
    assert report["rejected"] == [{"id": "mixed", "reason": "partial occupancy", "detail": "Cu:0.5 Au:0.5"}]
    assert (report["read"], report["embedded"], report["numbers"], report["readout"]) == (3, 2, 32, "global")
    assert report["model"] == str(weights)


def test_vectors_that_are_not_finite_are_left_out(cifs, weights, monkeypatch):
    def broken(encoder, loader, *_):
        vectors, rows = represent(encoder, loader)
        vectors[0, 3] = float("nan")
        return vectors, rows

    monkeypatch.setattr(embedding, "represent", broken)
    left_out = embed(["cifs"], weights, "e.csv")
    assert [(item.id, item.reason) for item in left_out][-1] == ("a", NOT_FINITE)
    assert read_embeddings("e.csv").names == ["b"]
    with pytest.raises(ValueError, match=NOT_FINITE):
        embed(["cifs/a.cif"], weights, "f.csv")
    assert not (cifs / "f.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifs", "--out", "e.xlsx"], "end with .parquet, .csv, .npz"),
        (["cifs", "--out", "nowhere/e.csv"], "no such folder: nowhere"),
        (["cifs", "--out", "old.csv"], "old.csv exists; --overwrite replaces it"),
        (["cifs", "--out", "e.csv", "--model", "nonet"], "there is no encoder 'nonet'"),
        (["cifs", "--out", "e.csv", "--model", "cifs/a.cif"], "is not a readable checkpoint"),
        (["cifs", "--out", "e.csv", "--readout", "decoded"], "trained with the objective fingerprint"),
        (["nowhere", "--out", "e.csv"], "no such file or folder: nowhere"),
        (["cifs/mixed.cif", "--out", "e.csv"], "no usable crystal"),
        (["cifs", "--out", "e.csv", "--batch-sites", "0"], "batch_sites must be at least 1"),
        (["cifs", "--out", "e.csv", "--max-sites", "1"], "no usable crystal"),
        (["data.parquet", "--out", "data.parquet", "--overwrite"], "both a source and the file to write"),
        (["shards", "--out", "shards/e.parquet"], "would become a part of it"),
    ],
)
def test_user_errors_are_one_message_and_nothing_is_written(cifs, weights, capsys, arguments, message):
    (cifs / "old.csv").write_text("old")
    load_dataset("cifs").to_parquet("data.parquet")
    (cifs / "shards").mkdir()
    load_dataset("cifs").to_parquet("shards/1.parquet")
    before = {path: path.read_bytes() for path in cifs.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["embed", "--model", str(weights), *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert {path: path.read_bytes() for path in cifs.rglob("*") if path.is_file()} == before


def test_an_old_file_is_replaced_when_told_to(cifs, weights):
    (cifs / "e.parquet").write_text("old")
    (cifs / "e.parquet.report.json").write_text("old")
    embed(["cifs"], weights, "e.parquet", overwrite=True)
    assert read_embeddings("e.parquet").names == ["a", "b"]
    assert json.loads((cifs / "e.parquet.report.json").read_text())["embedded"] == 2
    assert pq.read_schema("e.parquet").names == ["immutable_id", "embedding"]


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(cifs, weights, monkeypatch, ending):
    (cifs / f"e.{ending}").write_text("old")

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(embedding.WRITERS, f".{ending}", full)
    with pytest.raises(ValueError, match=rf"cannot write e\.{ending}: No space left on device; choose another --out"):
        embed(["cifs"], weights, f"e.{ending}", overwrite=True)
    assert (cifs / f"e.{ending}").read_text() == "old"
    assert not list(cifs.glob("*.tmp*"))


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_a_killed_command_leaves_the_old_file_and_can_be_run_again(cifs, weights, ending):
    """Killed when the new file is complete beside the old one, which is the last moment to lose it."""
    old = cifs / f"e.{ending}"
    old.write_text("old")
    program = f"""
import os, signal
from pyg_dim.cli import main
replace = os.replace
def die(source, target):
    if str(target) == {old.name!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = die
main(["embed", "cifs", "--model", {str(weights)!r}, "--out", {old.name!r}, "--overwrite"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert old.read_text() == "old"
    assert main(["embed", "cifs", "--model", str(weights), "--out", old.name, "--overwrite"]) == 0
    assert old.read_bytes() != b"old"
    assert not list(cifs.glob("*.tmp*"))
