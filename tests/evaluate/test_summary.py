from __future__ import annotations

import io
import math
import warnings

import pandas as pd
import pytest
import torch
from rich.console import Console

from pyg_dim.data.keys import BATCH
from pyg_dim.evaluate.formatting import number
from pyg_dim.evaluate.intrinsic import intrinsic_targets
from pyg_dim.evaluate.report import COLUMNS, headline, loss_rows, print_summary, probe_row
from pyg_dim.evaluate.summary import probe_metrics, summarise
from pyg_dim.models.encoder import Encoder, Representation

LOSSES = {
    "train/js/local": 1.1,
    "val/js/local": 1.2,
    "val/js/global": 1.4,
    "val/kl/local": 1.0,
    "baseline/js": 1.386,
} | {"train/detail/local/other": 0.5}


class Volumes(Encoder):
    """Knows the density and the volume of a crystal up to noise; the untrained one knows nothing but noise."""

    name = "volumes"

    def __init__(self, noise: float, broken_row: int = -1) -> None:
        super().__init__()
        self.graph = lambda batch: batch
        self.channels = 4
        self.noise = noise
        self.broken_row = broken_row
        self.passes = 0

    def represent(self, batch) -> Representation:
        self.passes += 1
        volume = torch.linalg.det(batch.cell)
        mass = torch.zeros_like(volume).index_add(0, batch[BATCH], batch.x[:, 1])
        known = torch.stack([volume, mass, mass / volume, 1 / volume], dim=1)
        noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(int(batch.row[0])))
        crystal = known + self.noise * known.std() * noise
        crystal[batch.row == self.broken_row] = math.nan
        return Representation(crystal, crystal[:, :2] ** 2, batch.x[:, :1])


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def rows():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    return order[:40], order[40:]


def test_unlabelled_crystals_are_probed_on_intrinsic_targets(crystals, rows, tmp_path):
    console = quiet()
    trained, untrained = Volumes(0.0), Volumes(5.0)
    table = summarise(
        trained, untrained, crystals, *rows, LOSSES, directory=tmp_path, sizes=(20,), repeats=4, console=console
    )
    assert tuple(table.columns) == COLUMNS
    probes = table[table["section"] == "probe"]
    assert set(probes["name"]) == set(intrinsic_targets(crystals))
    assert len(probes) == 3 * 2 * 2
    density = probes[(probes["name"] == "density") & (probes["probe"] == "ridge") & (probes["readout"] == "global")]
    (row,) = density.to_dict("records")
    assert (row["wins"], row["losses"], row["n"], row["unit"]) == (4, 0, 20, "g/cm3")
    assert row["trained_median"] < 0.1 * row["untrained_median"]
    assert row["trained_q25"] <= row["trained_median"] <= row["trained_q75"]
    assert row["baseline"] > 10 * row["trained_median"]

    losses = table[table["section"] == "loss"].set_index("name")
    assert list(losses.index) == ["js/local", "js/global", "kl/local"]
    assert losses.loc["js/local", ["train", "val"]].tolist() == [1.1, 1.2]
    assert losses.loc["js/global", "baseline"] == pytest.approx(2 * math.log(2))
    assert math.isnan(losses.loc["kl/local", "baseline"])

    printed = console.file.getvalue()
    assert "density (g/cm3), global readout" in printed
    assert "NOT below" in printed
    assert "Training lowered the error in" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed


def shown(scale, width=80):
    """A printed summary of errors of about a size."""
    errors = [scale * (1 + share / 10) for share in range(4)]
    rows = [probe_row("k", "full", 1000, kind, errors, errors[::-1], scale) for kind in ("least squares", "ridge")]
    losses = loss_rows({"train/js/convolutions": 1.25e-5, "val/js/convolutions": 43210.0, "train/total": 1.0})
    console = Console(file=io.StringIO(), width=width)
    kinds = dict.fromkeys(("n", "wins", "losses"), "Int64")
    table = pd.DataFrame(losses + rows, columns=list(COLUMNS)).astype(kinds)
    print_summary(table, [], console)
    return console.file.getvalue()


@pytest.mark.parametrize("scale", [3.1e-5, 0.32, 31700, 317000, 3.17e7])
@pytest.mark.parametrize("width", [60, 80])
def test_no_column_is_cut_on_a_narrow_screen(scale, width):
    printed = shown(scale, width)
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    words = set(printed.split())
    assert {"untrained", "trained", "dummy", "lost", "least", "2-2", "js/convolutions", "1.250e-05", "43210"} <= words
    low, median, high = (number(scale * (1 + share)) for share in (0.075, 0.15, 0.225))
    assert {median, f"[{low},", f"{high}]", number(scale)} <= words


def test_a_spread_stays_in_one_line_where_it_fits():
    assert "36500 [34100, 38800]  36500 [34100, 38800]" in shown(31700)
    assert "least squares  0.368 [0.344, 0.392]" in shown(0.32, width=100)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (38312.0, 3, "38300"),
        (999.96, 3, "1000"),
        (1234.6, 4, "1235"),
        (-45678.0, 3, "-45700"),
        (999499.0, 3, "999000"),
        (999600.0, 3, "1.00e+06"),
        (1.2e-5, 3, "1.20e-05"),
        (317.0, 3, "317"),
        (0.5, 3, "0.500"),
        (math.inf, 3, "inf"),
        (math.nan, 3, ""),
    ],
)
def test_numbers_below_a_million_have_no_power_of_ten(value, digits, text):
    assert number(value, digits) == text


def test_files_hold_what_is_returned(crystals, rows, tmp_path):
    target = tmp_path / "run"
    table = summarise(
        Volumes(0.0), Volumes(1.0), crystals, *rows, LOSSES, directory=target, sizes=(20,), repeats=2, console=quiet()
    )
    assert sorted(path.name for path in target.iterdir()) == ["summary.csv", "summary.md"]
    read = pd.read_csv(target / "summary.csv")
    assert tuple(read.columns) == COLUMNS
    assert read["trained_median"].dropna().tolist() == pytest.approx(table["trained_median"].dropna().tolist())
    text = (target / "summary.md").read_text()
    assert "| js/local | 1.100 | 1.200 | 1.386 | below |" in text
    assert text.count("| 20 | ridge |") == 6


def test_equal_encoders_tie(crystals, rows):
    table = summarise(Volumes(1.0), Volumes(1.0), crystals, *rows, {}, sizes=(20,), repeats=3, console=quiet())
    assert (table["wins"] == 0).all()
    assert (table["losses"] == 0).all()
    assert headline(table).startswith("Training lowered the error in 0 of 12 probes; the median change is +0.0 %")


@pytest.mark.parametrize(
    ("untrained", "trained", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], "0 of 2 probes."),
        ([0.0, 2.0], [1.0, 1.0], "1 of 2 probes; the median change is -50.0 %."),
        ([math.nan, 2.0], [1.0, math.nan], "0 of 2 probes."),
    ],
)
def test_an_error_of_zero_is_no_share_of_anything(untrained, trained, expected):
    table = pd.DataFrame({"section": "probe", "untrained_median": untrained, "trained_median": trained})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert headline(table) == f"Training lowered the error in {expected}"


def test_notes_of_the_run_come_first(crystals, rows, tmp_path):
    console = quiet()
    summarise(
        Volumes(0.0), Volumes(1.0), crystals, *rows, {}, notes=["local_level learned nothing"],
        directory=tmp_path, repeats=2, console=console,
    )  # fmt: skip
    notes = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("- note")]
    assert notes[0] == "- note: local_level learned nothing"
    assert len(notes) > 1
    assert "note: local_level learned nothing" in console.file.getvalue()


def test_each_encoder_sees_each_crystal_once(crystals, rows):
    trained = Volumes(0.0)
    summarise(trained, Volumes(1.0), crystals, *rows, {}, sizes=(20,), repeats=2, batch_sites=120, console=quiet())
    assert trained.passes == 1


def test_crystals_with_no_label_at_all_are_probed_on_intrinsic_targets(crystals, rows):
    crystals.labels = {"gap": torch.full((60,), torch.nan, dtype=torch.float64)}
    console = quiet()
    table = summarise(
        Volumes(0.0), Volumes(5.0), crystals, *rows, LOSSES, "gap", sizes=(20,), repeats=2, console=console
    )
    assert set(table.loc[table["section"] == "probe", "name"]) == set(intrinsic_targets(crystals))
    assert "not probed: gap" in console.file.getvalue()


def test_labels_with_gaps(crystals, rows):
    train, test = rows
    label = intrinsic_targets(crystals)["density"].clone()
    label[train[:6]] = math.nan
    label[test[:3]] = math.nan
    crystals.labels = {"band_gap": label, "empty": torch.full_like(label, math.nan)}
    console = quiet()
    table = summarise(
        Volumes(0.0), Volumes(1.0), crystals, train, test, {}, sizes=(20, 1000), repeats=2, console=console
    )
    assert set(table["name"]) == {"band_gap"}
    assert set(table["n"]) == {20}
    assert set(table["unit"]) == {"eV"}
    printed = " ".join(console.file.getvalue().split())
    assert "band_gap: no probe on 1000 labels: 34 training crystals have one" in printed
    missing = "without a label and left out are 6 of 40 training rows and 3 of 20 test rows"
    assert f"band_gap: {missing}" in printed
    assert "labels without any value, not probed: empty" in printed


def test_a_small_set_is_probed_with_half_of_its_labels(crystals, rows):
    console = quiet()
    table = summarise(Volumes(0.0), Volumes(1.0), crystals, *rows, {}, repeats=2, console=console)
    assert set(table["n"]) == {20}
    assert "20 are drawn instead of 100" in " ".join(console.file.getvalue().split())


def test_without_labels_to_test_on_the_losses_remain(crystals, rows):
    trained = Volumes(0.0)
    table = summarise(trained, Volumes(1.0), crystals, rows[0], rows[1][:0], LOSSES, console=quiet())
    assert set(table["section"]) == {"loss"}
    assert trained.passes == 0
    assert headline(table) == ""


def test_crystals_without_a_finite_representation_are_left_out(crystals, rows):
    console = quiet()
    # The subset is numbered from 0 in ascending order of the rows: here it is the whole data set.
    table = summarise(
        Volumes(0.0, broken_row=7), Volumes(1.0), crystals, *rows, {}, sizes=(20,), repeats=2, console=console
    )
    assert table["trained_median"].notna().all()
    assert "their representation is not finite: 1, in rows [7]" in " ".join(console.file.getvalue().split())


def test_several_targets_and_a_wrong_one(crystals, rows):
    crystals.labels = intrinsic_targets(crystals)
    table = summarise(
        Volumes(0.0), Volumes(1.0), crystals, *rows, {}, ["density", "packing fraction"], sizes=(20,), console=quiet()
    )
    assert list(dict.fromkeys(table["name"])) == ["density", "packing fraction"]
    with pytest.raises(ValueError, match="'hardness'"):
        summarise(Volumes(0.0), Volumes(1.0), crystals, *rows, {}, "hardness")


def test_shared_rows_are_an_error(crystals, rows):
    with pytest.raises(ValueError, match="1 rows are in both"):
        summarise(Volumes(0.0), Volumes(1.0), crystals, rows[0], rows[0][:1], {})


def test_metrics_are_named_for_a_log(crystals, rows):
    table = summarise(Volumes(0.0), Volumes(1.0), crystals, *rows, LOSSES, sizes=(20,), repeats=2, console=quiet())
    metrics = probe_metrics(table)
    assert len(metrics) == 24
    assert "probe/mean_electronegativity/20/least_squares/full/untrained" in metrics
    assert all(math.isfinite(value) and " " not in name for name, value in metrics.items())
