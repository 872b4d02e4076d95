from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.data.report import ImportReport
from pyg_dim.models.encoder import Encoder, Representation
from pyg_dim.training import tensorboard
from pyg_dim.training.tensorboard import (
    EmbeddingProjector,
    RepresentationMonitor,
    chemistry_metadata,
    representation_statistics,
)

CHANNELS = 6


class Masses(Encoder):
    """Reads a crystal's mean site features; with ``scale`` zero it has collapsed."""

    name = "masses"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.graph = lambda batch: batch
        self.channels = CHANNELS
        self.scale = scale
        self.linear = torch.nn.Linear(9, CHANNELS)
        self.modes: list[bool] = []

    def represent(self, batch) -> Representation:
        self.modes.append(self.training)
        mean = torch.zeros(batch.num_graphs, 9).index_add(0, batch.batch, batch.x) / batch.ptr.diff()[:, None]
        crystal = self.linear(self.scale * mean)
        return Representation(crystal, crystal, batch.x)


class Module(L.LightningModule):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        return self.encoder(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


@pytest.fixture
def crystals() -> CrystalDataset:
    n = 30
    generator = torch.Generator().manual_seed(0)
    z = torch.stack([torch.randint(3, 57, (n,), generator=generator), torch.full((n,), 8)], dim=1).flatten()
    gap = torch.rand(n, generator=generator, dtype=torch.float64)
    gap[3] = math.nan
    return CrystalDataset(
        z=z,
        pos=torch.rand(2 * n, 3, generator=generator),
        ptr=torch.arange(0, 2 * n + 1, 2),
        cell=4 * torch.eye(3).expand(n, 3, 3),
        oxidation=torch.zeros(2 * n),
        labels={"band_gap": gap},
        ids=pa.array([f"a\tcrystal {row}" for row in range(n)]),
        report=ImportReport("test crystals", n),
    )


def fit(encoder: Encoder, loader: CrystalLoader, callbacks: list[L.Callback], folder: Path, epochs: int = 2):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(Module(encoder), loader)
    trainer.logger.experiment.flush()
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return trainer, events


def test_statistics_have_their_closed_form():
    vectors = torch.tensor([[1.0, 3.0, 2.0], [-1.0, 3.0, -2.0]])
    spread, scalars = representation_statistics(vectors)
    assert spread.tolist() == [1.0, 0.0, 2.0]
    assert scalars["std_mean"] == pytest.approx(1.0)
    assert scalars["std_min"] == 0.0
    assert scalars["collapsed_fraction"] == pytest.approx(1 / 3)
    assert scalars["effective_rank"] == pytest.approx(1.0)
    independent = torch.cat([torch.eye(4), -torch.eye(4)])
    assert representation_statistics(independent)[1]["effective_rank"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("vectors", "rank"),
    [(torch.zeros(5, 3), 0.0), (torch.full((5, 3), 0.3), 0.0)],
)
def test_a_constant_representation_counts_as_collapsed(vectors: torch.Tensor, rank: float):
    _, scalars = representation_statistics(vectors)
    assert scalars["collapsed_fraction"] == 1.0
    assert scalars["effective_rank"] == pytest.approx(rank)


class BrokenMasses(Masses):
    """Has no number for the first rows when it is evaluated; training goes on."""

    def __init__(self, broken: int) -> None:
        super().__init__()
        self.broken = broken

    def represent(self, batch) -> Representation:
        crystal = super().represent(batch).crystal
        if not self.training:
            crystal = crystal.masked_fill((batch.row < self.broken)[:, None], math.nan)
        return Representation(crystal, crystal, batch.x)


@pytest.mark.parametrize("broken", [3, 29, 30])
def test_what_is_not_finite_is_said_to_be_so_and_not_collapsed(crystals: CrystalDataset, tmp_path: Path, broken: int):
    encoder = BrokenMasses(broken)
    loader = CrystalLoader(crystals, encoder.graph)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, name="", version=""),
        callbacks=[RepresentationMonitor(loader)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="is not finite") as caught:
        trainer.fit(Module(encoder), loader)
    texts = [str(warning.message) for warning in caught]
    assert sum(f"representation of {broken} of 30 crystals is not finite" in text for text in texts) == 1
    assert not any("collapsed" in text for text in texts)
    trainer.logger.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    if broken == 3:
        encoder.eval()
        expected = encoder(crystals.gather(torch.arange(3, 30))).std(dim=0, correction=0).mean()
        (*_, last) = events.Scalars("representation/std_mean")
        assert last.value == pytest.approx(expected.item(), rel=1e-4)
    else:
        assert "representation/std_mean" not in events.Tags()["scalars"]


def test_the_monitor_logs_scalars_and_a_histogram(crystals: CrystalDataset, tmp_path: Path):
    encoder = Masses()
    loader = CrystalLoader(crystals, encoder.graph, batch_sites=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed.*")
        _, events = fit(encoder, loader, [RepresentationMonitor(loader, every_n_epochs=2)], tmp_path, epochs=4)
    tags = events.Tags()
    names = {f"representation/{name}" for name in ("std_mean", "std_min", "collapsed_fraction", "effective_rank")}
    assert names <= set(tags["scalars"])
    assert tags["histograms"] == ["representation/std"]
    for name in names:
        # Three batches an epoch; logged after the second and the fourth.
        assert [event.step for event in events.Scalars(name)] == [5, 11]
    histogram = events.Histograms("representation/std")[-1].histogram_value
    assert histogram.num == CHANNELS
    assert histogram.sum / CHANNELS == pytest.approx(events.Scalars("representation/std_mean")[-1].value, rel=1e-5)
    assert events.Scalars("representation/collapsed_fraction")[-1].value == 0.0
    # Measured in evaluation mode, trained in training mode.
    assert encoder.modes[:9] == [True] * 6 + [False] * 3
    assert encoder.training


def test_the_monitor_warns_once_of_a_collapse(crystals: CrystalDataset, tmp_path: Path):
    encoder = Masses(scale=0.0)
    loader = CrystalLoader(crystals, encoder.graph)
    monitor = RepresentationMonitor(loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=TensorBoardLogger(tmp_path, name="", version=""),
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(encoder), loader)
    assert sum("the representation has collapsed: 100%" in str(warning.message) for warning in caught) == 1


def test_the_monitor_needs_a_positive_interval(crystals: CrystalDataset):
    with pytest.raises(ValueError, match="at least 1"):
        RepresentationMonitor(CrystalLoader(crystals, lambda batch: batch), every_n_epochs=0)


def test_the_projector_writes_vectors_metadata_and_a_map(crystals: CrystalDataset, tmp_path: Path):
    encoder = Masses()
    loader = CrystalLoader(crystals, encoder.graph, batch_sites=20)
    trainer, events = fit(encoder, loader, [EmbeddingProjector(loader)], tmp_path)
    assert "representation/tsne" in events.Tags()["images"]
    (image,) = events.Images("representation/tsne")
    assert (image.width, image.height) == (1300, 560)

    assert "tensor_path" in (tmp_path / "projector_config.pbtxt").read_text()
    (vectors_file,) = tmp_path.rglob("tensors.tsv")
    vectors = np.loadtxt(vectors_file)
    expected = encoder(crystals.gather(torch.arange(30))).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    with (vectors_file.parent / "metadata.tsv").open(newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == [
        "id",
        "formula",
        "elements",
        "family",
        "mean electronegativity (Pauling)",
        "density (g/cm3)",
        "band_gap (eV)",
    ]
    assert len(rows) == 30
    assert {len(row) for row in rows} == {len(header)}
    assert rows[4][:2] == ["a crystal 4", crystals.formula(4)]
    assert rows[3][-1] == ""
    assert float(rows[4][-1]) == pytest.approx(float(crystals.labels["band_gap"][4]), rel=1e-4)
    assert trainer.global_step == 6


def test_the_projector_is_capped_at_random_rows(crystals: CrystalDataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tensorboard, "MOST_CRYSTALS", 12)
    encoder = Masses()
    loader = CrystalLoader(crystals, encoder.graph)
    fit(encoder, loader, [EmbeddingProjector(loader, "band_gap")], tmp_path)
    (metadata,) = tmp_path.rglob("metadata.tsv")
    names = [line.split("\t")[0] for line in metadata.read_text().splitlines()[1:]]
    assert len(set(names)) == 12
    assert names != [f"a crystal {row}" for row in range(12)]
    (vectors_file,) = tmp_path.rglob("tensors.tsv")
    rows = torch.tensor([int(name.split()[-1]) for name in names])
    np.testing.assert_allclose(
        np.loadtxt(vectors_file), encoder(crystals.gather(rows)).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_few_crystals_have_no_map(crystals: CrystalDataset, tmp_path: Path):
    encoder = Masses()
    loader = CrystalLoader(crystals.subset(torch.arange(5)), encoder.graph)
    _, events = fit(encoder, loader, [EmbeddingProjector(loader)], tmp_path)
    assert events.Tags()["images"] == []
    assert len(list(tmp_path.rglob("tensors.tsv"))) == 1


def test_a_wrong_target_is_known_before_training(crystals: CrystalDataset):
    with pytest.raises(ValueError, match="'hardness'"):
        EmbeddingProjector(CrystalLoader(crystals, lambda batch: batch), "hardness")


def test_metadata_of_unlabelled_crystals(crystals: CrystalDataset):
    crystals.labels = {}
    header, rows = chemistry_metadata(crystals)
    assert len(header) == 6
    assert {row[3] for row in rows} <= {"oxide", "other"}
