from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from rich.console import Console

from pyg_dim import models
from pyg_dim.evaluate.architectures import count_parameters, print_models


def printed(width: int) -> str:
    out = io.StringIO()
    print_models(models.MODELS, Console(file=out, width=width))
    return out.getvalue()


def test_parameters_of_levels_are_counted_apart():
    encoder = models.build("cgcnn", site_channels=4, convolutions=2, crystal_channels=3)
    of_levels = sum(
        p.numel() for level in (*encoder.convolution_levels, encoder.global_level) for p in level.parameters()
    )
    in_all = sum(p.numel() for p in encoder.parameters())
    assert count_parameters(encoder) == (in_all - of_levels, of_levels)
    # A sum by hand of one linear layer, of a site with 4 and an edge with 41 numbers, and two batch norms.
    convolution = (2 * 4 + 41) * 8 + 8 + 2 * 8 + 2 * 4
    assert in_all - of_levels == (9 * 4 + 4) + 2 * convolution + (4 * 3 + 3)


def test_parameters_without_levels():
    encoder = models.build("cgcnn").output
    assert count_parameters(encoder) == (64 * 128 + 128, 0)


def test_every_model_is_listed_with_its_numbers_graph_and_source():
    lines = printed(400).splitlines()
    for name, model in models.MODELS.items():
        place = next(place for place, line in enumerate(lines) if line.split()[:1] == [name])
        encoder = model()
        numbers = [str(number) for number in (*count_parameters(encoder), encoder.channels)]
        assert lines[place].split()[1:] == numbers
        place = lines.index(name)
        assert lines[place + 1 : place + 4] == [f"  {encoder.graph!r}", f"  {encoder.source}", ""]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_nothing_is_cut_off_in_a_narrow_list(width):
    narrow = printed(width)
    assert max(map(len, narrow.splitlines())) <= width
    assert "…" not in narrow
    letters = "".join(narrow.split())
    for name, model in models.MODELS.items():
        assert any(line.split()[:1] == [name] for line in narrow.splitlines())
        assert "".join(model.source.split()) in letters
        assert "".join(repr(model().graph).split()) in letters
    # No word of a graph or a source is broken.
    whole = " ".join(f"{model().graph!r} {model.source}" for model in models.MODELS.values())
    assert Counter(re.findall(r"[\w.=]+", whole)) <= Counter(re.findall(r"[\w.=]+", narrow))
