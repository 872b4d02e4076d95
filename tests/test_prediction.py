"""``pyg_dim.predict`` and ``pyg-dim predict``: labels by an encoder that was trained on labels."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

import pyg_dim
from pyg_dim import export
from pyg_dim.cli import main
from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.training.checkpoints import SECTION, read_checkpoint
from pyg_dim.training.predictors import predictor_of

TINY = ["--encoder.supercell_sites=8", "--encoder.post_pool=[16,8]", "--encoder.pre_pool=[8]"]
FLAGS = ["--epochs=1", "--accelerator=cpu", "--no-compile", "--logdir=runs", "--val-fraction=0.2"]


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    """Parquet file of 24 crystals with two labels, of which one is not known everywhere."""
    dataset = decorated_prototypes(24, seed=0)
    rows = torch.arange(24.0)
    labels = {"gap": rows, "energy": torch.where(rows < 12, -rows, torch.nan)}
    path = tmp_path_factory.mktemp("data") / "crystals.parquet"
    dataset.with_labels(labels).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def folder(crystals, tmp_path_factory):
    """Folder with runs on labels: alone, with a residual head, beside another objective; and one without labels."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "alone": ["--objective=supervised", "--target=gap,energy"],
        "robust": ["--objective=supervised", "--target=gap", "--loss=robust_l1", "--head=residual"],
        "beside": ["--objective=fingerprint + supervised", "--target=gap"],
        "crystals": ["--objective=fingerprint"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, flags in kinds.items():
            assert main(["train", f"--data={crystals}", f"--name={name}", *flags, *TINY, *FLAGS]) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(("name", "targets"), [("alone", ["gap", "energy"]), ("robust", ["gap"]), ("beside", ["gap"])])
def test_predictions_are_those_of_the_objective_that_was_trained(crystals, name, targets):
    path = f"runs/{name}/last.ckpt"
    found = pyg_dim.predict([crystals], path, batch_sites=40)
    assert found.columns.tolist() == ["immutable_id", *targets]
    dataset = load_dataset(crystals)
    assert found["immutable_id"].tolist() == dataset.ids.to_pylist()
    predictor, encoder = predictor_of(read_checkpoint(path), path)
    state = torch.load(path, weights_only=True)["state_dict"]
    prefix = "objective.parts.supervised." if name == "beside" else "objective."
    for part in ("mean", "scale", "head.1.weight" if name == "robust" else "head.2.weight"):
        assert predictor.state_dict()[part].equal(state[prefix + part])
    (batch,) = CrystalLoader(dataset, encoder.graph, 10**6, shuffle=False)
    with torch.no_grad():
        wanted = predictor.predict(batch)
    np.testing.assert_allclose(found[targets].to_numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)
    # In the unit of the label: its mean over the training part is somewhere in the middle.
    assert 3 < float(predictor.mean[0]) < 20


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_command_writes_a_table_and_names_what_it_left_out(folder, ending, capsys):
    (folder / "cifs").mkdir(exist_ok=True)
    good = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    good.to("cifs/good.cif")
    (folder / "cifs" / "bad.cif").write_text("no crystal")
    out = folder / f"p.{ending}"
    command = ["predict", "cifs", "--model=runs/alone/last.ckpt", f"--out={out.name}", "--accelerator=cpu"]
    assert main(command) == 0
    table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert table["immutable_id"].tolist() == ["good"]
    assert np.isfinite(table[["gap", "energy"]].to_numpy()).all()
    report = json.loads((folder / f"{out.name}.report.json").read_text())
    assert report["predicted"] == 1
    assert [item["id"] for item in report["rejected"]] == ["bad"]
    assert report["read"] == 2
    assert pyg_dim.predict("cifs", "runs/alone/last.ckpt").attrs["left_out"] == report["rejected"]
    assert "crystals left out: 1 (bad" in capsys.readouterr().out
    assert main(command) == 1
    assert f"{out.name} exists; --overwrite replaces it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_formulas_are_predicted_by_an_encoder_of_formulas(folder):
    pd.DataFrame({"formula": ["NaCl", "KBr", "LiF", "MgO", "CaO", "Al2O3"], "y": range(6)}).to_csv("f.csv", index=False)
    flags = ["--model=roost", "--objective=supervised", "--target=y", "--data=f.csv", "--name=roost", *FLAGS]
    assert main(["train", *flags]) == 0
    found = pyg_dim.predict(["f.csv"], "runs/roost/last.ckpt")
    assert found.columns.tolist() == ["immutable_id", "y"]
    assert len(found) == 6


@pytest.mark.parametrize("model", ["runs/crystals/last.ckpt", "sitenet-dim"])
def test_an_encoder_without_labels_predicts_none(crystals, model, capsys):
    assert main(["predict", str(crystals), "--model", model, "--out=q.csv"]) == 1
    said = capsys.readouterr().err
    assert "has learned from crystals alone and predicts no label" in said
    assert "ProbeRegressor" in said


def test_an_exported_encoder_has_no_head(crystals):
    export("runs/alone/last.ckpt", "alone.safetensors")
    with pytest.raises(ValueError, match=r"alone\.safetensors holds the encoder alone"):
        pyg_dim.predict(crystals, "alone.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"head_channels": 10**9}, {"head": "residual"}, {"target": "gap"}, {"head": 3}, {"loss": "robust_l1"}],
    ids=str,
)
def test_a_head_that_does_not_fit_its_options_is_refused(crystals, change):
    contents = torch.load("runs/alone/last.ckpt", weights_only=True)
    contents[SECTION]["options"] |= change
    torch.save(contents, "damaged.ckpt")
    with pytest.raises(ValueError, match=r"damaged\.ckpt is damaged: ('head|'mean|its options make no head)"):
        pyg_dim.predict([crystals], "damaged.ckpt")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1, 100_000), torch.empty(1, 10**9, device="meta"), torch.zeros(1, 64).to_sparse()],
    ids=["large", "meta", "sparse"],
)
def test_a_head_that_claims_to_be_large_takes_no_memory(crystals, tensor):
    """Two layers of such a width would have gigabytes."""
    contents = torch.load("runs/robust/last.ckpt", weights_only=True)
    contents["state_dict"]["objective.head.1.weight"] = tensor
    contents[SECTION]["options"]["head_channels"] = tensor.size(1)
    torch.save(contents, "large.ckpt")
    with pytest.raises(ValueError, match=r"large\.ckpt is damaged"):
        pyg_dim.predict([crystals], "large.ckpt")


def test_a_prediction_that_is_no_number_is_left_out(crystals):
    contents = torch.load("runs/alone/last.ckpt", weights_only=True)
    contents["state_dict"]["objective.scale"].fill_(3e38)
    contents["state_dict"]["objective.head.2.bias"].fill_(1e3)
    torch.save(contents, "far.ckpt")
    with pytest.raises(ValueError, match=r"far\.ckpt predicts no finite number"):
        pyg_dim.predict(crystals, "far.ckpt", "far.csv")
    assert not Path("far.csv").exists()


def test_other_endings_missing_files_and_other_objects_are_named(crystals):
    with pytest.raises(ValueError, match=r"must end with \.csv, \.parquet"):
        pyg_dim.predict([crystals], "runs/alone/last.ckpt", "p.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        pyg_dim.predict([crystals], "none.ckpt")
    with pytest.raises(ValueError, match=r"sources are paths of files, not CrystalDataset"):
        pyg_dim.predict([load_dataset(crystals)], "runs/alone/last.ckpt")


def test_larger_crystals_than_those_of_the_training_can_be_asked_for(crystals):
    sites = load_dataset(crystals).ptr.diff()
    few = pyg_dim.predict(crystals, "runs/alone/last.ckpt", max_sites=2)
    assert len(few) == int((sites <= 2).sum()) < len(sites)


@pytest.mark.parametrize("size", [0, 200])
def test_a_full_disk_keeps_the_old_file(crystals, capsys, size):
    Path("kept.csv").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(ValueError, match=r"cannot write kept\.csv: .*choose another --out"):
            pyg_dim.predict(crystals, "runs/alone/last.ckpt", "kept.csv", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path("kept.csv").read_text() == "old"
    assert not Path("kept.csv.tmp").exists()


def test_vectors_of_the_elements_are_handed_on_with_the_encoder(capsys):
    """They were read from a file that the second run is not told; its untrained encoder has them, too."""
    names = ["Na", "Cl", "K", "Br", "Li", "F", "Mg", "O", "Ca", "Al"]
    Path("elements.csv").write_text("".join(f"{name},{k / 10},{1 - k / 10}\n" for k, name in enumerate(names)))
    formulas = [
        f"{a}{k}{x}" for a in ("Na", "K", "Li", "Mg", "Ca", "Al") for x in ("Cl", "Br", "F", "O") for k in (1, 2)
    ]
    pd.DataFrame({"formula": formulas, "y": range(len(formulas))}).to_csv("g.csv", index=False)
    first = ["--model=roost", "--encoder.elements=elements.csv", "--objective=fingerprint", "--data=g.csv"]
    assert main(["train", *first, "--name=first", *FLAGS]) == 0
    capsys.readouterr()
    second = ["--init=runs/first/last.ckpt", "--objective=supervised", "--target=y", "--data=g.csv"]
    assert main(["train", *second, "--name=second", *FLAGS]) == 0
    assert "Training lowered the error in" in capsys.readouterr().out
    assert len(pyg_dim.predict("g.csv", "runs/second/last.ckpt")) == len(formulas)
