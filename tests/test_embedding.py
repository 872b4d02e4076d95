"""The command ``pyg-dim embed``: files of vectors, what is left out, and what is never overwritten."""

from __future__ import annotations

import json
import os
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
from pyg_dim.data import CrystalLoader, StreamingLoader, load_dataset
from pyg_dim.data.embedding_files import FILES
from pyg_dim.data.embeddings import read_embeddings
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.embedding import embed
from pyg_dim.evaluate.represent import NOT_FINITE, represent
from pyg_dim.training import export, load_encoder
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.teachers import is_table, teacher_checksum, teacher_embeddings

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

    class Full(FILES[f".{ending}"]):
        def close(self):
            super().close()
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(FILES, f".{ending}", Full)
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


@pytest.fixture
def prototypes(tmp_path, monkeypatch):
    """A folder of two files of 30 crystals in row groups of seven; the working directory lies above it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crystals").mkdir()
    dataset = decorated_prototypes(n=60, max_sites=12)
    for name, rows in (("a", torch.arange(30)), ("b", torch.arange(30, 60))):
        part = tmp_path / "crystals" / f"{name}.parquet"
        dataset.subset(rows).to_parquet(part)
        pq.write_table(pq.read_table(part), part, row_group_size=7)
    return tmp_path


def command(weights, *flags, source="crystals", out="parts"):
    return ["embed", source, "--model", str(weights), "--out", out, "--batch-sites", "40", *flags]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_shards_are_one_result_to_the_last_bit(prototypes, weights, count, monkeypatch):
    """Streamed from row groups, and of crystals in memory; also where there are more shards than batches."""
    monkeypatch.setattr(embedding, "_PIECE", 3)
    load_dataset("crystals").to_parquet("whole.parquet")
    encoder, dataset = load_encoder(weights), load_dataset("crystals")
    vectors, _ = represent(encoder, CrystalLoader(dataset, encoder.graph, 40, shuffle=False))
    assert main(command(weights, out="one.parquet")) == 0
    for number in range(1, count + 1):
        assert main(command(weights, "--shard", f"{number}/{count}")) == 0
    for table in (read_embeddings("one.parquet"), read_embeddings("parts")):
        assert table.names == dataset.ids.to_pylist()
        assert torch.equal(table.vectors, vectors)
    assert pq.read_table("parts").equals(pq.read_table("one.parquet"))
    reports = [json.loads(path.read_text()) for path in (prototypes / "parts").glob("_part*.report.json")]
    assert sum(report["embedded"] for report in reports) == 60
    assert len(list((prototypes / "parts").iterdir())) == 2 * count


def test_crystals_that_are_left_out_are_named_by_the_first_shard(cifs, weights):
    assert [len(embed(["cifs"], weights, "parts", shard=f"{number}/2")) for number in (1, 2)] == [1, 0]
    report = json.loads((cifs / "parts/_part-00001-of-00002.parquet.report.json").read_text())
    assert [item["id"] for item in report["rejected"]] == ["mixed"]
    assert read_embeddings("parts").names == ["a", "b"]


def test_two_row_groups_and_a_piece_of_vectors_are_in_memory(prototypes, weights, monkeypatch):
    held, written = [], []

    class Watched(FILES[".parquet"]):
        def write(self, ids, vectors):
            written.append(len(ids))
            super().write(ids, vectors)

    load = StreamingLoader._load
    monkeypatch.setattr(StreamingLoader, "_load", lambda self, window: held.append(window) or load(self, window))
    monkeypatch.setitem(FILES, ".parquet", Watched)
    monkeypatch.setattr(embedding, "_PIECE", 2)
    embed(["crystals"], weights, "e.parquet", batch_sites=40)
    # Three where a batch spans the row group of two crystals at the end of a file.
    assert {2} <= set(map(len, held)) <= {2, 3}
    assert sum(written) == 60
    assert max(written) < 30
    held.clear()
    embed(["crystals"], weights, "parts", batch_sites=40, shard="3/3")
    # The last third alone is read again.
    assert {group for window in held for group in window} < set(range(10))


def test_a_shard_that_was_stopped_is_run_again_and_others_are_kept(prototypes, weights, capsys):
    first, second = (command(weights, "--shard", f"{number}/2") for number in (1, 2))
    assert main(first) == 0
    done = prototypes / "parts" / "part-00001-of-00002.parquet"
    before = done.stat().st_mtime_ns
    program = f"""
import os, signal
from pyg_dim import embedding
from pyg_dim.cli import main
pieces = embedding._pieces
def die(*arguments):
    yield next(pieces(*arguments))
    os.kill(os.getpid(), signal.SIGKILL)
embedding._pieces, embedding._PIECE = die, 1
main({second!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(ValueError, match=r"lacks 1 of its shards \(2/2\)"):
        read_embeddings("parts")
    capsys.readouterr()
    assert main(first) == 1
    assert "part-00001-of-00002.parquet exists; --overwrite replaces it, --resume keeps" in capsys.readouterr().err
    for again in (first, second):
        assert main([*again, "--resume"]) == 0
    assert "complete already: parts/part-00001-of-00002.parquet" in capsys.readouterr().out
    assert done.stat().st_mtime_ns == before
    assert main(command(weights, out="one.parquet")) == 0
    assert torch.equal(read_embeddings("parts").vectors, read_embeddings("one.parquet").vectors)
    assert not list((prototypes / "parts").glob("*.tmp*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume"], "--resume goes with --shard"),
        (["--shard", "3/2"], "there is no shard 3/2: of 2 the first is 1/2"),
        (["--shard", "two"], "'two' is no shard: say K/N"),
        (["--shard", "auto"], "--shard auto is for processes of torchrun or srun, and this is none"),
        (["--shard", "1/2", "--out", "e.parquet"], "--shard writes files into a folder"),
        (["--shard", "1/2", "--out", "nowhere/parts"], "no such folder: nowhere"),
        (["--shard", "1/2", "--out", "crystals/a.parquet/parts"], "cannot make the folder"),
        (["--shard", "1/2", "--out", "crystals"], "would become a part of it"),
        (["--shard", "1/2", "--resume", "--readout", "full"], "something else (numbers 32 there and"),
        (["--shard", "1/2", "--resume", "--max-sites", "4"], "something else (crystals "),
    ],
)
def test_wrong_shards_are_one_message(prototypes, weights, capsys, flags, message):
    main(command(weights, "--shard", "1/2"))
    before = {path: path.read_bytes() for path in prototypes.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(command(weights, *flags)) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in prototypes.rglob("*") if path.is_file()} == before


def test_processes_of_torchrun_take_a_shard_each(prototypes, weights):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    entry = f"import sys; from pyg_dim.cli import main; sys.exit(main({command(weights, '--shard', 'auto')!r}))"
    done = subprocess.run(  # noqa: S603
        [*program, sys.executable, "-c", entry],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Both say what they have done.
    assert done.stdout.count("numbers each: parts/part-0000") == 2
    assert len(read_embeddings("parts").names) == 60


def test_srun_tells_the_shard(prototypes, weights, monkeypatch):
    of_job = {"SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1",
              "SLURM_JOB_NAME": "embed"}  # fmt: skip
    for name, value in of_job.items():
        monkeypatch.setenv(name, value)
    assert main(command(weights, "--shard", "auto")) == 0
    assert [path.name for path in (prototypes / "parts").glob("part*")] == ["part-00002-of-00003.parquet"]


def test_parts_are_a_teacher(prototypes, weights):
    for number in (1, 2):
        main(command(weights, "--shard", f"{number}/2"))
    options = TrainOptions(data="crystals", objective="distillation", teacher="parts", accelerator="cpu")
    assert is_table(options)
    assert teacher_checksum(options) is not None
    embedding_of_teacher = teacher_embeddings(options, load_dataset("crystals"))
    assert torch.equal(embedding_of_teacher, read_embeddings("parts").vectors)
