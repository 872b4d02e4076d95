"""Distillation as users run it: teachers of every kind, and runs that learn from them."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyg_dim.data import CrystalLoader
from pyg_dim.data.embeddings import write_embeddings
from pyg_dim.evaluate.represent import represent
from pyg_dim.models import load_crystal_twins_checkpoint
from pyg_dim.training import export, pretrained
from pyg_dim.training.checkpoints import load_encoder, read_checkpoint
from pyg_dim.training.run import train
from pyg_dim.training.setup import prepare_data, prepare_encoder, prepare_objective
from pyg_dim.training.teachers import teacher_checksum

FIXTURES = Path(__file__).parents[2] / "../shared/fixtures"
STUDENT = {"model": "cgcnn", "encoder": {"site_channels": 8, "convolutions": 1, "crystal_channels": 6, "k": 4}}
"""Of another architecture than the teacher."""


@pytest.fixture
def teacher(options):
    """Checkpoint of a small Site-Net with representations of eight numbers."""
    result = train(options(name="teacher", epochs=1, val_fraction=0.0, readout="full"))
    return str(result.directory / "last.ckpt")


@pytest.fixture
def table(tmp_path):
    """Table with vectors of three numbers for c0 to c39 alone, in another order than the data."""
    path = tmp_path / "table.parquet"
    rows = torch.randperm(40)
    write_embeddings(path, [f"c{row}" for row in rows], torch.stack([rows, rows**2, -rows], dim=1).double())
    return str(path)


@pytest.fixture
def messages(monkeypatch):
    """What the package says."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    package = logging.getLogger("pyg_dim")
    monkeypatch.setattr(package, "handlers", [handler])
    monkeypatch.setattr(package, "level", logging.INFO)
    return found


def vectors(encoder, dataset):
    loader = CrystalLoader(dataset, encoder.graph, shuffle=False)
    return represent(encoder, loader, "global")[0]


def test_an_encoder_embeds_every_crystal_of_the_run(options, teacher):
    chosen = options(objective="distillation", teacher=teacher, limit=30, **STUDENT)
    data = prepare_data(chosen)
    expected = vectors(load_encoder(teacher), data.dataset)
    assert expected.shape == (30, 8)
    torch.testing.assert_close(data.dataset.embedding, expected)
    encoder, _ = prepare_encoder(chosen)
    objective = prepare_objective(chosen, encoder, data)
    # The validation part has no say in the scale.
    torch.testing.assert_close(objective.mean, expected[data.train].mean(dim=0))
    assert objective.projector.out_features == 8


def test_a_teacher_of_structures_is_refused_for_formulas(options, teacher, tmp_path):
    formulas = tmp_path / "formulas.csv"
    formulas.write_text("formula,gap\n" + "".join(f"Fe{n}O3,{n}\n" for n in range(1, 9)))
    chosen = options(objective="distillation", teacher=teacher, data=str(formulas), model="roost", encoder={})
    with pytest.raises(ValueError, match=r"needs structures, and .*formulas\.csv holds formulas: give a table"):
        prepare_data(chosen)


def test_a_network_of_crystal_twins(options):
    weights, atoms = FIXTURES / "crystal_twins_weights_barlow.npz", FIXTURES / "cgcnn_atom_init.npz"
    if not weights.exists():
        pytest.skip("needs the authors' weights in ../shared/fixtures")
    chosen = options(objective="distillation", teacher=str(weights), teacher_atoms=str(atoms), limit=20)
    dataset = prepare_data(chosen).dataset
    torch.testing.assert_close(dataset.embedding, vectors(load_crystal_twins_checkpoint(weights, atoms), dataset))
    assert dataset.embedding.shape == (20, 128)
    assert (dataset.embedding > 0).all()
    assert teacher_checksum(chosen) not in (None, teacher_checksum(replace(chosen, teacher_atoms=str(weights))))


def test_a_table_is_joined_and_what_it_lacks_is_reported(options, table, messages):
    data = prepare_data(options(objective="distillation", teacher=table, split="random"))
    rows = torch.tensor([int(name[1:]) for name in data.dataset.ids.to_pylist()])
    assert sorted(rows.tolist()) == list(range(40))
    assert data.dataset.embedding.equal(torch.stack([rows, rows**2, -rows], dim=1).float())
    assert f"20 of 60 crystals have no embedding by {table}: c40, c41, c42, ..." in messages
    assert "20 crystals without an embedding are left out" in messages


def test_other_objectives_keep_crystals_that_a_table_lacks(options, table, messages):
    data = prepare_data(options(objective="deep_infomax+distillation", teacher=table))
    assert len(data.dataset) == 60
    assert data.dataset.embedding.isnan().all(dim=1).sum() == 20
    # "rare" is known for c0 to c19, which the table has; the others have neither.
    kept = prepare_data(options(objective="distillation+supervised", teacher=table, target="rare"))
    assert len(kept.dataset) == 40
    assert "20 crystals without a label of ['rare'] and an embedding are left out" in messages


def test_an_encoder_is_a_teacher_by_name_and_as_a_weights_file(options, teacher, tmp_path, monkeypatch):
    weights = tmp_path / "handed-on.safetensors"
    export(teacher, weights)
    monkeypatch.setattr(pretrained, "shipped_encoders", lambda: {"handed-on": weights})
    data = [
        prepare_data(options(objective="distillation", teacher=name, limit=20))
        for name in (teacher, str(weights), "handed-on")
    ]
    assert torch.equal(data[0].dataset.embedding, data[1].dataset.embedding)
    assert torch.equal(data[1].dataset.embedding, data[2].dataset.embedding)
    both = [options(objective="distillation", teacher=name) for name in (str(weights), "handed-on")]
    assert teacher_checksum(both[0]) == teacher_checksum(both[1]) is not None
    result = train(options(objective="distillation", teacher="handed-on", epochs=1, **STUDENT))
    assert read_checkpoint(result.directory / "last.ckpt")["pyg_dim"]["options"]["teacher"] == "handed-on"
    with pytest.raises(FileNotFoundError, match="there is no encoder 'unheard'"):
        train(options(objective="distillation", teacher="unheard"))


def test_a_teacher_that_saw_other_oxidation_states_is_named(options, teacher, messages):
    prepare_data(options(objective="distillation", teacher=teacher, oxidation="guess"))
    assert any("was trained with --oxidation zero, and is given crystals of --oxidation guess" in m for m in messages)


def test_files_that_are_no_teachers(options, tmp_path):
    absent = options(objective="distillation", teacher=str(tmp_path / "absent.ckpt"), data="absent.parquet")
    # Before the data are read.
    with pytest.raises(FileNotFoundError, match=r"--teacher .*absent\.ckpt: no such file"):
        train(absent)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt is not a readable checkpoint"):
        train(options(objective="distillation", teacher=str(tmp_path / "text.ckpt")))


TAGS = ("total", "mse/embedding")


@pytest.mark.parametrize("student", [{}, STUDENT], ids=["sitenet", "cgcnn"])
def test_a_student_learns_and_logs(options, teacher, student):
    first = train(options(objective="distillation", teacher=teacher, name="a", epochs=1, **student))
    result = train(options(objective="distillation", teacher=teacher, name="b", epochs=25, lr=1e-2, **student))
    assert {f"{part}/{tag}" for part in ("train", "val") for tag in TAGS} <= result.metrics.keys()
    assert result.metrics["train/mse/embedding"] < 0.5 < first.metrics["train/mse/embedding"]
    assert result.metrics["detail/train/mse/embedding/coverage"] == 1
    assert set(TAGS) <= set(result.summary["name"])


def test_a_run_with_a_teacher_is_resumed_and_started_from(options, teacher, table, tmp_path):
    both = {"objective": "deep_infomax+distillation", "objective_weights": "1,0.5", "teacher": teacher}
    whole = train(options(name="whole", epochs=3, **both))
    half = options(name="half", epochs=1, **both)
    checkpoint = train(half).directory / "last.ckpt"
    # The teacher may lie elsewhere, as long as it is the same.
    moved = tmp_path / "moved.ckpt"
    shutil.copy(teacher, moved)
    resumed = train(replace(half, epochs=3, resume=str(checkpoint), teacher=str(moved)))
    state = read_checkpoint(checkpoint)["state_dict"]
    expected = read_checkpoint(whole.directory / "last.ckpt")["state_dict"]
    assert state.keys() == expected.keys()
    assert all(state[name].equal(value) for name, value in expected.items())
    assert resumed.metrics["val/total"] == whole.metrics["val/total"]
    total = whole.metrics["val/total/deep_infomax"] + 0.5 * whole.metrics["val/total/distillation"]
    assert whole.metrics["val/total"] == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError, match=r"was trained with another --teacher than the file that is there now.*--init"):
        train(replace(half, epochs=4, resume=str(checkpoint), teacher=table))

    # Of the teacher there are only the projector onto its embeddings and their scale.
    own = {name.removeprefix("objective.parts.distillation.") for name in state if "distillation" in name}
    assert own == {"mean", "scale", "projector.weight", "projector.bias"}
    assert load_encoder(checkpoint).decoder is None
    tuned = train(options(name="tuned", objective="supervised", target="energy", init=str(checkpoint), epochs=1))
    assert "val/mae/energy" in tuned.metrics


def test_a_run_from_before_teachers_is_resumed(options):
    half = options(name="half", epochs=1)
    checkpoint = train(half).directory / "last.ckpt"
    old = torch.load(checkpoint, weights_only=True)
    for name in ("teacher", "teacher_atoms"):
        del old["pyg_dim"]["options"][name]
    del old["pyg_dim"]["data"]["teacher"]
    torch.save(old, checkpoint)
    assert train(replace(half, epochs=2, resume=str(checkpoint))).metrics
