from __future__ import annotations

import numpy as np
import pytest
import torch

from pyg_dim.evaluate.families import FAMILIES
from pyg_dim.evaluate.figures import map_figure, tsne_coordinates, tsne_figure


def two_clusters() -> torch.Tensor:
    vectors = torch.randn(80, 60, generator=torch.Generator().manual_seed(0))
    vectors[:40] += 6.0
    return vectors


def test_clusters_stay_apart_and_the_seed_decides():
    points = tsne_coordinates(two_clusters())
    assert points.shape == (80, 2)
    centres = points[:40].mean(axis=0), points[40:].mean(axis=0)
    radius = max(np.linalg.norm(points[:40] - centres[0], axis=1).mean(), 1e-9)
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * radius
    np.testing.assert_array_equal(points, tsne_coordinates(two_clusters()))


def test_a_collapsed_representation_has_a_map_too():
    assert np.isfinite(tsne_coordinates(torch.ones(20, 4))).all()


def test_too_few_crystals_are_an_error():
    with pytest.raises(ValueError, match="at least 10 crystals, got 9"):
        tsne_coordinates(torch.randn(9, 4))


@pytest.mark.parametrize("labelled", [80, 50, 0])
def test_the_figure_names_families_and_property(labelled: int):
    families = [FAMILIES[row % 3] for row in range(80)]
    values = torch.arange(80.0)
    values[labelled:] = torch.nan
    figure = tsne_figure(two_clusters(), families, values, "band_gap (eV)", "eighty crystals")
    left, right = figure.axes[:2]
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["oxide (27)", "halide (27)", "chalcogenide (26)"]
    assert right.get_title() == "band_gap (eV)"
    assert figure.get_suptitle() == "eighty crystals"
    assert sum(len(dots.get_offsets()) for dots in right.collections[:2]) == 80


def test_classes_stand_beside_the_families():
    points = np.arange(40.0).reshape(20, 2)
    figure = map_figure(points, ["oxide"] * 20, ["with"] * 5 + ["others"] * 15, "overlay")
    left, right = figure.axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["others (15)", "with (5)"]
    assert right.get_title() == "overlay"
    np.testing.assert_array_equal(right.collections[1].get_offsets(), points[:5])
    np.testing.assert_array_equal(left.collections[0].get_offsets(), points)
    assert figure.get_suptitle() == "t-SNE of 20 crystals"
