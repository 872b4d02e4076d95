"""Hostile files of every kind are opened by everything that opens such files, and nothing of theirs runs.

A payload writes a file where it runs. Beside that, Python's own audit events tell of programs that are started and of
names that a pickle looks up: no load path uses the module pickle at all, on hostile files or on good ones.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sqlite3
import stat
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import pyg_dim
from pyg_dim import models
from pyg_dim.cli import main
from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data.compositions import CompositionDataset
from pyg_dim.data.embeddings import read_embeddings, write_embeddings
from pyg_dim.data.graph_cache import GraphCache
from pyg_dim.data.graphs import NearestNeighbors
from pyg_dim.data.index_sets import load_index_sets, save_index_sets
from pyg_dim.data.sources.streams import FREE
from pyg_dim.evaluate import baselines
from pyg_dim.experiments.provenance import keep_to
from pyg_dim.experiments.table import FitTable
from pyg_dim.models import load_cgcnn_checkpoint, load_crystal_twins_checkpoint, load_megnet_checkpoint
from pyg_dim.models.element_vectors import read_element_vectors
from pyg_dim.training.checkpoint_files import CheckpointFiles
from pyg_dim.training.checkpoints import SECTION, load_encoder
from pyg_dim.training.finished import EVENTS, read_runs

CODE = "hostile code"
BOMB = "bomb"
MARK = "it-ran"


class Payload:
    """What runs where a pickle of it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PAYLOADS = {
    "open": Payload(open, MARK, "w"),
    "system": Payload(os.system, f"touch {MARK}"),
    "exec": Payload(exec, f"open({MARK!r}, 'w')"),
    "eval": Payload(eval, f"open({MARK!r}, 'w')"),
}


class Ears:
    """Hears what runs; there is one, since Python keeps every audit hook for ever."""

    STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "os.fork")

    def __init__(self):
        self.listening, self.heard = False, []
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if self.listening and event in self.STARTS:
            self.heard.append((event, arguments))


EARS = Ears()


@contextmanager
def nothing_runs():
    EARS.heard.clear()
    EARS.listening = True
    try:
        yield
    finally:
        EARS.listening = False
    assert EARS.heard == []
    assert not Path(MARK).exists()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refuses(call):
    """A clear error: one of ours, or an exit with a message."""
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as error:
        call()
    if isinstance(error.value, SystemExit):
        assert error.value.code == 2


def status_of(arguments):
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def fails(arguments, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def run(run_file, tmp_path_factory):
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--config", str(run_file), "--epochs=1"]) == 0
    return folder / "runs" / "run"


@pytest.fixture
def data(parquet):
    return CrystalDataset.from_parquet(parquet)


# Checkpoints and weights


def in_pickle(payload, _):
    return pickle.dumps(payload)


def in_torch(payload, _):
    buffer = io.BytesIO()
    torch.save({SECTION: payload, "state_dict": {}}, buffer)
    return buffer.getvalue()


def in_old_torch(payload, _):
    buffer = io.BytesIO()
    torch.save({SECTION: payload, "state_dict": {}}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def beside_a_good_run(payload, run):
    """All of a checkpoint that can be resumed, and one thing more."""
    contents = torch.load(run / "last.ckpt", weights_only=True)
    buffer = io.BytesIO()
    torch.save(contents | {"callbacks": {"x": payload}}, buffer)
    return buffer.getvalue()


FORMS = [in_pickle, in_torch, in_old_torch, beside_a_good_run]


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*protocol.*")
@pytest.mark.parametrize("payload", list(PAYLOADS))
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_checkpoints(faults, run, form, payload):
    Path("hostile.ckpt").write_bytes(form(PAYLOADS[payload], run))
    for opened in (load_encoder, pyg_dim.load, CheckpointFiles().load_checkpoint):
        with faults.injected_into("checkpoint", CODE), nothing_runs():
            refuses(lambda opened=opened: opened("hostile.ckpt"))


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*protocol.*")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_commands_that_take_checkpoints(faults, run, run_file, parquet, capsys, form):
    Path("hostile").mkdir()
    file = Path("hostile/last.ckpt")
    file.write_bytes(form(PAYLOADS["open"], run))
    new = ["train", "--config", str(run_file)]
    for arguments in (
        ["train", "--resume", str(file), "--epochs=5"],
        [*new, "--init", str(file)],
        [*new, "--objective=distillation", "--teacher", str(file)],
        ["embed", str(parquet), "--model", str(file), "--out", "e.csv"],
        ["predict", str(parquet), "--model", str(file), "--out", "e.csv"],
        ["export", str(file), "--out", "e.safetensors"],
        ["compare", "hostile"],
        ["probe", str(file), "--data", str(parquet), "--target=band_gap"],
        ["transfer", str(file), "--data", str(parquet), "--target=band_gap"],
    ):
        with faults.injected_into("checkpoint, by a command", CODE), nothing_runs():
            fails(arguments, capsys)
    with faults.injected_into("checkpoint, by a command", CODE), nothing_runs():
        refuses(lambda: pyg_dim.CrystalEmbedder(str(file)).fit(["x"]))


@pytest.mark.parametrize("payload", list(PAYLOADS))
@pytest.mark.parametrize("form", [in_pickle, in_torch], ids=lambda form: form.__name__)
def test_weights_files(faults, form, payload):
    Path("hostile.safetensors").write_bytes(form(PAYLOADS[payload], None))
    with faults.injected_into("weights file", CODE), nothing_runs():
        refuses(lambda: pyg_dim.load("hostile.safetensors"))


HOSTILE_OPTIONS = {
    "a module for an architecture": ("model", "os.system"),
    "a path for an architecture": ("model", "../../hostile"),
    "a class to build": ("encoder", {"pre_pool": {"class_path": "subprocess.Popen", "init_args": {"args": "touch x"}}}),
    "a file to read": ("encoder", {"elements": "/etc/passwd.csv"}),
    "an option of another name": ("encoder", {"__class__": "os.system"}),
    "more memory than there is": ("encoder", {"site_channels": 10**12}),
    "more memory than the file fills": ("encoder", {"site_channels": 200_000}),
    "more layers than the file has": ("encoder", {"blocks": 10**9}),
}


@pytest.mark.parametrize("name", list(HOSTILE_OPTIONS))
def test_options_in_a_checkpoint(faults, run, parquet, capsys, name):
    """Plain values that would be harmful where options name things to import, to read or to make."""
    contents = torch.load(run / "last.ckpt", weights_only=True)
    key, value = HOSTILE_OPTIONS[name]
    about = contents[SECTION]
    about[key] = value if key == "model" else about[key] | value
    about["options"] = about["options"] | {key: about[key]}
    torch.save(contents, "hostile.ckpt")
    with faults.injected_into("options in a checkpoint", CODE), nothing_runs():
        refuses(lambda: load_encoder("hostile.ckpt"))
    for arguments in (
        ["train", "--resume", "hostile.ckpt", "--epochs=5"],
        ["train", "--init", "hostile.ckpt", "--data", str(parquet)],
        ["embed", str(parquet), "--model", "hostile.ckpt", "--out", "e.csv"],
    ):
        with faults.injected_into("options in a checkpoint", CODE), nothing_runs():
            assert status_of(arguments) in (1, 2)
            assert "Traceback" not in capsys.readouterr().err


def test_a_checkpoint_deletes_no_file(faults, run):
    """Lightning deletes the file that a checkpoint calls the best so far."""
    folder = Path("runs/run").absolute()
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "best.ckpt").write_bytes((run / "best.ckpt").read_bytes())
    contents = torch.load(run / "last.ckpt", weights_only=True)
    for state in contents["callbacks"].values():
        if "best_model_path" in state:
            notes = str(folder / "notes.txt")
            state |= {"dirpath": str(folder), "best_model_path": notes, "kth_best_model_path": notes}
            state["best_k_models"] = dict.fromkeys([notes], torch.tensor(9.9)) if state["best_k_models"] else {}
    torch.save(contents, folder / "last.ckpt")
    with faults.injected_into("paths in a checkpoint", CODE), nothing_runs():
        assert main(["train", "--resume", str(folder / "last.ckpt"), "--epochs=2"]) == 0
        assert (folder / "notes.txt").read_text() == "mine"


def test_tensors_that_claim_to_be_large(faults, run):
    """By their strides, by what a file declares of its members, and by compression."""
    contents = torch.load(run / "last.ckpt", weights_only=True)
    name = next(name for name in contents["state_dict"] if name.startswith("objective.encoder."))
    contents["state_dict"][name] = torch.ones(1).expand(2**36)
    torch.save(contents, "strides.ckpt")
    with faults.injected_into("checkpoint", BOMB):
        refuses(lambda: load_encoder("strides.ckpt"))
    with zipfile.ZipFile("large.ckpt", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data/0", "w") as member:
        for _ in range(3 * FREE // 2**20):
            member.write(bytes(2**20))
    with faults.injected_into("checkpoint", BOMB), pytest.raises(ValueError, match="expands to more than 200 times"):
        load_encoder("large.ckpt")


# Networks of other programs


@pytest.mark.filterwarnings("ignore:.*weights_only.*")
@pytest.mark.parametrize("payload", list(PAYLOADS))
def test_networks_of_other_programs(faults, payload):
    hostile = PAYLOADS[payload]
    Path("atom_init.json").write_text(json.dumps({"1": [0.0, 1.0]}))
    Path("megnet").mkdir()
    Path("megnet/model.json").write_text(json.dumps({"@class": "MEGNet", "@module": "os", "init_args": {}}))
    torch.save({"state_dict": hostile, "normalizer": hostile}, "hostile.pth.tar")
    torch.save(hostile, "megnet/state.pt")
    np.savez("hostile.npz", Z=np.array([hostile], dtype=object), element=np.array([hostile], dtype=object))
    for call in (
        lambda: load_cgcnn_checkpoint("hostile.pth.tar", "atom_init.json"),
        lambda: load_cgcnn_checkpoint("hostile.npz", "atom_init.json"),
        lambda: load_crystal_twins_checkpoint("hostile.pth.tar", "atom_init.json"),
        lambda: load_megnet_checkpoint("megnet"),
        lambda: load_megnet_checkpoint("hostile.npz"),
        lambda: read_element_vectors("hostile.npz"),
    ):
        with faults.injected_into("network of another program", CODE), nothing_runs():
            refuses(call)


def deflated(path, member, megabytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for _ in range(megabytes):
            file.write(bytes(2**20))


def test_arrays_that_expand_without_end(faults, data):
    for call in (read_element_vectors, load_megnet_checkpoint):
        deflated("bomb.npz", "element.npy", 3 * FREE // 2**20)
        with faults.injected_into("archive of arrays", BOMB), pytest.raises(ValueError, match="expands to more than"):
            call("bomb.npz")
    with faults.injected_into("cache of graphs", BOMB):
        GraphCache(data, NearestNeighbors(4), "bomb.npz")
        assert Path("bomb.npz").stat().st_size < FREE // 100
        with np.load("bomb.npz") as file:
            assert "distance" in file.files


# Configuration

CONFIGURATIONS = {
    "object": "epochs: !!python/object/apply:os.system ['touch it-ran']\n",
    "new": "epochs: !!python/object/new:os.system ['touch it-ran']\n",
    "name": "target: !!python/name:os.system\n",
    "module": "target: !!python/module:antigravity\n",
    "class": "encoder:\n  class_path: subprocess.Popen\n  init_args: {args: [touch, it-ran]}\n",
    "class of an option": "encoder: {pre_pool: {class_path: subprocess.Popen, init_args: {args: [touch, it-ran]}}}\n",
    "callable": "data: {class_path: os.system, init_args: {command: touch it-ran}}\n",
    "environment": "data: ${oc.env:HOME}\nobjective: ${oc.create:x}\n",
    "shell": "data: $(touch it-ran)\nname: '`touch it-ran`'\n",
    "model": "model: os.system\n",
}


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_configurations(faults, capsys, name):
    Path("hostile.yaml").write_text(CONFIGURATIONS[name])
    with faults.injected_into("configuration", CODE), nothing_runs():
        assert status_of(["train", "--config", "hostile.yaml"]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


def test_a_configuration_that_expands_without_end(faults, capsys):
    """Nine levels of nine references each would be 400 million words where they are written out."""
    lines = ["a0: &a0 [word, word, word, word, word, word, word, word, word]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    for text in ("\n".join([*lines, "data: *a8"]), "\n".join([*lines, "encoder: {pre_pool: *a8}"])):
        Path("hostile.yaml").write_text(text)
        with faults.injected_into("configuration", BOMB):
            assert main(["train", "--config", "hostile.yaml"]) == 1
            assert "hostile.yaml has references (*name)" in capsys.readouterr().err


# Sources of crystals


def with_extension(path, columns):
    """A Parquet file with a column of a type that old versions of Arrow unpickle when they read its name."""
    about = {
        "ARROW:extension:name": "arrow.py_extension_type",
    }
    payload = pickle.dumps(PAYLOADS["open"])
    fields = [
        pa.field(name, column.type, metadata=about | {"ARROW:extension:metadata": payload})
        for name, column in columns.items()
    ]
    pq.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), path)


STRUCTURE = {"@module": "os", "@class": "system", "@version": "1", "command": f"touch {MARK}"}


def make_source(name, parquet):
    """The path of a hostile source of crystals."""
    if name == "parquet":
        table = pq.read_table(parquet)
        columns = {key: table[key].combine_chunks() for key in table.column_names}
        with_extension("hostile.parquet", columns | {"x": pa.array(range(len(table)))})
    elif name == "note in a parquet":
        table = pq.read_table(parquet).replace_schema_metadata({"pyg_dim": b"[" * 100_000, "pandas": b"cos\nsystem"})
        pq.write_table(table, "hostile.parquet")
    elif name == "csv":
        cells = [json.dumps(STRUCTURE), "=cmd|' /C touch it-ran'!A0", "__import__('os').system('touch it-ran')"]
        pd.DataFrame({"id": ["a", "b", "c"], "cif": cells}).to_csv("hostile.csv", index=False)
    elif name == "json":
        content = {"index": ["a"], "columns": ["structure", "y"], "data": [[STRUCTURE, 1.0]]}
        Path("hostile.json").write_text(json.dumps(content))
    elif name == "ase json":
        row = {"numbers": {"__ase_objtype__": "os.system"}, "positions": {"__ndarray__": [[1], "object", ["x"]]}}
        Path("hostile.json").write_text(json.dumps({"1": row, "ids": [1], "nextid": 2}))
    elif name == "db":
        with sqlite3.connect("hostile.db") as base:
            base.execute("CREATE TABLE systems (id INTEGER, numbers BLOB, data BLOB)")
            base.execute("CREATE TABLE information (name TEXT, value TEXT)")
            blob = pickle.dumps(PAYLOADS["open"])
            base.execute("INSERT INTO systems VALUES (1, ?, ?)", (blob, blob))
        base.close()
    elif name == "extxyz":
        comment = 'Lattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3 energy=_JSON {"__import__": "os"}'
        Path("hostile.extxyz").write_text(f"1\n{comment} x=\"exec('import os')\"\nNa 0 0 0\n")
    elif name == "cif":
        Path("hostile.cif").write_bytes(pickle.dumps(PAYLOADS["open"]))
    elif name == "poscar":
        Path("POSCAR").write_text("__import__('os')\neval(1)\n1 0 0\n0 1 0\n0 0 1\nNa\n1\ndirect\n0 0 0\n")
        return "POSCAR"
    elif name == "formulas":
        Path("hostile.csv").write_text("formula,y\n__import__('os').system('touch it-ran'),1\nNaCl,2\n")
    return next(str(path) for path in Path().glob("hostile.*"))


SOURCES = ["parquet", "note in a parquet", "csv", "json", "ase json", "db", "extxyz", "cif", "poscar", "formulas"]


@pytest.mark.parametrize("name", SOURCES)
def test_sources(faults, parquet, capsys, name):
    source = make_source(name, parquet)
    # Those with good crystals or formulas beside the payload are read, without it.
    good = {"parquet": 70, "note in a parquet": 70, "extxyz": 1, "formulas": 1}
    with faults.injected_into("source of crystals", CODE), nothing_runs():
        if name in good:
            assert len(load_dataset(source)) == good[name]
        else:
            fails(["import", source, "out.parquet", "--workers=1"], capsys)
            assert not Path("out.parquet").exists()


def member(name, data=b"data_x"):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def test_archives(faults, cifs, capsys):
    """Members that lead out, links, devices, pickles: the good one is read, and nothing is written but the result."""
    good = (cifs / "salt00.cif").read_bytes()
    with zipfile.ZipFile("hostile.zip", "w") as archive:
        for name in ("../escaped.cif", "/tmp/escaped.cif", "C:\\escaped.cif", "good.cif", "a.pkl", "__init__.py"):  # noqa: S108
            archive.writestr(name, good if name.endswith(".cif") else pickle.dumps(PAYLOADS["open"]))
        link = zipfile.ZipInfo("link.cif")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("pickle.cif", pickle.dumps(PAYLOADS["open"]))
    with tarfile.open("hostile.tar.gz", "w:gz") as archive:
        for name in ("../escaped.cif", "/tmp/escaped.cif", "good.cif"):  # noqa: S108
            info, data = member(name, good)
            archive.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}.cif")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    for source in ("hostile.zip", "hostile.tar.gz"):
        before = set(Path().rglob("*"))
        with faults.injected_into("archive of crystals", CODE), nothing_runs():
            assert main(["import", source, f"{source}.parquet", "--workers=1"]) == 0
            assert load_dataset(f"{source}.parquet").ids.to_pylist() == ["good"]
            made = {str(path) for path in set(Path().rglob("*")) - before}
            assert made == {f"{source}.parquet", f"{source}.report.json"}
            assert not Path("../escaped.cif").exists()


def test_archives_that_expand_without_end(faults, capsys):
    deflated("bomb.zip", "bomb.cif", 3 * FREE // 2**20)
    with tarfile.open("bomb.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("bomb.cif")
        info.size = 3 * FREE
        archive.addfile(info, open("/dev/zero", "rb"))  # noqa: SIM115
    for source in ("bomb.zip", "bomb.tar.gz"):
        with faults.injected_into("archive of crystals", BOMB):
            fails(["import", source, "out.parquet", "--workers=1"], capsys)


# Caches, tables and what else a command reads back


def test_caches_and_tables(faults, data, run, parquet, capsys):
    hostile = PAYLOADS["open"]
    arrow = {"x": pa.array([1])}

    def remade():
        np.savez("graphs.npz", key=np.array([hostile], dtype=object), ptr=np.array([hostile], dtype=object))
        GraphCache(data, NearestNeighbors(4), "graphs.npz")

    def parts():
        Path("out.parquet.parts").mkdir()
        with_extension("out.parquet.parts/part-000000.parquet", arrow)
        Path("out.parquet.parts/plan.json").write_bytes(pickle.dumps(hostile))
        fails(["import", str(parquet), "out.parquet", "--workers=1", "--resume"], capsys)

    def descriptors():
        with_extension("ofm.parquet", arrow)
        refuses(lambda: baselines.descriptor_table("ofm", data, torch.arange(2), "ofm.parquet"))

    def events():
        shutil.copytree(run, "copy")
        for file in Path("copy").glob(EVENTS):
            file.write_bytes(pickle.dumps(hostile))
        refuses(lambda: read_runs(["copy"]))

    def as_pickle(name, call):
        Path(name).write_bytes(pickle.dumps(hostile))
        refuses(lambda: call(name))

    def embeddings():
        with_extension("e.parquet", arrow)
        refuses(lambda: read_embeddings("e.parquet"))

    calls = {
        "cache of graphs": remade,
        "parts of an import": parts,
        "cache of descriptors": descriptors,
        "events of a run": events,
        "table of embeddings": embeddings,
        "embeddings as a pickle": lambda: as_pickle("p.parquet", read_embeddings),
        "embeddings in CSV": lambda: as_pickle("p.csv", read_embeddings),
        "index sets": lambda: as_pickle("sets.json", lambda path: load_index_sets(path, data)),
        "vectors of elements": lambda: as_pickle("elements.json", read_element_vectors),
        "table of fits": lambda: as_pickle("fits.csv", lambda path: FitTable(path, ("n",), ("mae",))),
        "settings of a study": lambda: as_pickle("study.json", lambda path: keep_to(Path(path), {"a": 1})),
        "formulas": lambda: as_pickle("formulas.csv", CompositionDataset.from_csv),
    }
    for name, call in calls.items():
        with faults.injected_into(name, CODE), nothing_runs():
            call()


def test_good_files_need_no_pickle(data, run, parquet, weights):
    """The same paths with files as they should be."""
    save_index_sets("sets.json", data, {"train": torch.arange(5)})
    write_embeddings("e.parquet", ["a", "b"], torch.ones(2, 3))
    GraphCache(data, NearestNeighbors(4), "graphs.npz")
    encoder = models.build("sitenet", **yaml.safe_load((run / "hparams.yaml").read_text())["encoder"])
    with nothing_runs():
        load_dataset(parquet)
        load_encoder(run / "last.ckpt")
        CheckpointFiles().load_checkpoint(run / "last.ckpt")
        pyg_dim.load(weights)
        load_index_sets("sets.json", data)
        read_embeddings("e.parquet")
        GraphCache(data, NearestNeighbors(4), "graphs.npz")
        read_runs([run])
        assert main(["train", "--config", str(run / "hparams.yaml"), "--logdir=runs", "--epochs=1"]) == 0
        assert main(["train", "--resume", "runs/run/last.ckpt", "--epochs=2"]) == 0
        assert main(["embed", str(parquet), "--model", "runs/run/last.ckpt", "--out=v.npz"]) == 0
    assert encoder.name == "sitenet"
