from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.evaluate.figures import tsne_coordinates
from pyg_dim.experiments import maps
from pyg_dim.experiments.features import checkpoint_features
from pyg_dim.experiments.maps import draw_map, mapped_rows
from pyg_dim.experiments.study import FORMATION, GAP, Study


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, finished):
    """The encoder of every map is trained already."""
    monkeypatch.setattr(Study, "pretrained", lambda self, recipe: finished.checkpoint)


@pytest.fixture
def embedded(monkeypatch) -> list[np.ndarray]:
    """Coordinates of each run of t-SNE."""
    made = []

    def counted(vectors):
        made.append(tsne_coordinates(vectors))
        return made[-1]

    monkeypatch.setattr(maps, "tsne_coordinates", counted)
    return made


@pytest.fixture
def figures(monkeypatch) -> list:
    """Each figure that is published."""
    made = []
    original = maps.publish

    def publish(study, figure, path, tag):
        made.append(figure)
        original(study, figure, path, tag)

    monkeypatch.setattr(maps, "publish", publish)
    return made


def test_maps_of_test_crystals_share_their_coordinates(study, embedded, figures):
    path = draw_map(study, "family")
    assert path == study.directory / "map-family-random.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = mapped_rows(study)
    assert rows.numel() == 11
    assert set(rows.tolist()) < set(study.fold.test.tolist())

    frame = pd.read_csv(path.with_suffix(".csv"))
    assert list(frame.columns) == [
        "id", "formula", "x", "y", "family", "metal_and_halogen", FORMATION, GAP, "checkpoint",
    ]  # fmt: skip
    assert frame["id"].tolist() == [f"c{row}" for row in rows.tolist()]
    assert frame["formula"].tolist() == [study.crystals.formula(row) for row in rows.tolist()]
    anions = study.crystals.z.reshape(-1, 2)[rows, 1]
    halide = [number in (9, 17, 35) for number in anions.tolist()]
    assert [family == "halide" for family in frame["family"]] == halide
    assert frame["metal_and_halogen"].tolist() == halide
    np.testing.assert_allclose(frame[FORMATION], study.crystals.target(FORMATION)[rows])
    np.testing.assert_allclose(frame[GAP], study.crystals.target(GAP)[rows])
    vectors = checkpoint_features(study.pretrained("combined"), study.crystals, rows, ("global",))["global"]
    expected = tsne_coordinates(torch.from_numpy(vectors[rows]))
    np.testing.assert_allclose(frame[["x", "y"]], expected, rtol=1e-6)
    right = figures[0].axes[1]
    assert right.get_title() == "metal and halogen"
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == [f"others ({11 - sum(halide)})", f"with metal and halogen ({sum(halide)})"]
    assert "11 test crystals of binaries.parquet, split random: combined" in figures[0].get_suptitle()

    gaps = draw_map(study, GAP)
    assert gaps == study.directory / "map-band_gap-random.png"
    assert figures[1].axes[1].get_title() == "band_gap (eV)"
    again = pd.read_csv(gaps.with_suffix(".csv"))
    pd.testing.assert_frame_equal(again, frame, rtol=1e-6)
    assert len(embedded) == 1
    events = EventAccumulator(str(study.directory / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["maps/map-band_gap-random", "maps/map-family-random"]


def test_other_coordinates_are_not_taken(study, embedded, monkeypatch, finished, tmp_path):
    csv = draw_map(study, FORMATION).with_suffix(".csv")
    text = csv.read_text()
    csv.write_text("".join(text.splitlines(keepends=True)[:-1]))  # a crystal less
    draw_map(study, FORMATION)
    assert len(embedded) == 2
    assert csv.read_text() == text
    contents = torch.load(finished.checkpoint, weights_only=True)
    contents["state_dict"]["objective.encoder.output.weight"][0] += 1
    torch.save(contents, tmp_path / "other.ckpt")
    monkeypatch.setattr(Study, "pretrained", lambda self, recipe: tmp_path / "other.ckpt")
    draw_map(study, FORMATION)
    assert len(embedded) == 3
    assert csv.read_text() != text


def test_all_test_crystals_where_there_are_few(study):
    larger = replace(study, scale=replace(study.scale, tsne_crystals=500))
    assert mapped_rows(larger).equal(study.fold.test)


def test_an_unknown_label_is_named_before_anything_is_trained(study):
    with pytest.raises(
        ValueError, match="no target column 'hardness'; its labels are 'formation_energy_per_atom', 'band_gap'"
    ):
        draw_map(study, "hardness")
    assert not study.directory.exists()
