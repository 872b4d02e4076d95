"""The end of a run: did training help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.evaluate.intrinsic import intrinsic_targets
from pyg_dim.evaluate.probes import ProbeReport, probe
from pyg_dim.evaluate.regressors import DUMMY, LEAST_SQUARES, RIDGE
from pyg_dim.evaluate.report import COLUMNS, TRAINED, UNTRAINED, loss_rows, print_summary, probe_row, write_summary
from pyg_dim.evaluate.represent import represent
from pyg_dim.models.encoder import READOUTS, Encoder

MOST_TARGETS = 3
MOST_TEST_ROWS = 10_000
POOL = 5
"""Training rows represented, as a multiple of the largest size: enough for subsets that overlap little."""
FEWEST_LABELS = 10
"""With fewer labels in training a probe says nothing."""


def summarise(
    trained: Encoder,
    untrained: Encoder,
    dataset: CrystalDataset,
    train_rows: Tensor,
    test_rows: Tensor,
    losses: Mapping[str, float],
    target: str | Sequence[str] | None = None,
    *,
    notes: Sequence[str] = (),
    directory: str | Path | None = None,
    sizes: Sequence[int] = (100, 1000),
    repeats: int = 10,
    seed: int = 0,
    batch_sites: int = 1200,
    device: torch.device | str | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """Compare a trained encoder with its untrained self: losses against their baseline, probes on small label sets.

    Both encoders represent the same crystals, and their probes are fitted on the same label subsets and measured on
    the same test rows, so that the subsets in which either is better can be counted.

    Args:
        trained: The encoder after training.
        untrained: The same encoder at its initial parameters.
        dataset: The crystals.
        train_rows: [n] rows to draw labels from.
        test_rows: [m] rows to measure on, none of them in ``train_rows``.
        losses: Final values by tag, ``train/...`` and ``val/...``; other tags and ``detail/`` are not shown.
        target: A label of the data set, or several. By default its labels, the three most frequent ones if there are
            more. Where none of them has a value, the properties of
            :func:`pyg_dim.evaluate.intrinsic.intrinsic_targets` take their place.
        notes: What else is to be said of the run, in sentences that come before those of the comparison.
        directory: Where to write ``summary.csv`` and ``summary.md``; nothing is written by default.
        sizes: Numbers of labels; where none of them is available, half of the labels are used.
        repeats: Label subsets for each size.
        seed: Seed of the label subsets.
        batch_sites: Sites in a batch, as in training.
        device: Where to compute; where the encoders are by default.
        console: Where to print; the standard output by default.

    Returns:
        One row for each loss (``section`` "loss") and each probe ("probe"), with the columns of
        :data:`pyg_dim.evaluate.report.COLUMNS`.

    Raises:
        ValueError: If a target is no label of the data set, or a row is in both sets.
    """
    shared = train_rows[torch.isin(train_rows, test_rows)]
    if shared.numel():
        raise ValueError(
            f"{shared.numel()} rows are in both the training and the test rows, the first is {int(shared[0])}"
        )
    notes = list(notes)
    targets = _targets(dataset, target, notes)
    pools, test = _rows_to_represent(targets, train_rows, test_rows, POOL * max(sizes), seed, notes)
    encoders = {TRAINED: trained, UNTRAINED: untrained}
    represented = _represent_all(encoders, dataset, torch.cat([*pools.values(), test]), batch_sites, device, notes)
    table_rows = loss_rows(losses)
    for name, values in targets.items():
        train, scored = represented.present(pools[name]), represented.present(test[torch.isfinite(values[test])])
        fitting = _fitting_sizes(name, sizes, train.numel(), scored.numel(), notes)
        for readout in READOUTS if fitting else ():
            reports = {
                encoder: probe(
                    represented.vectors(encoder, readout, train),
                    values[train],
                    represented.vectors(encoder, readout, scored),
                    values[scored],
                    fitting,
                    repeats,
                    seed,
                )
                for encoder in encoders
            }
            notes += [f"{name}: {note}" for note in reports[TRAINED].notes]
            table_rows += _compare(name, readout, reports[TRAINED], reports[UNTRAINED])
    table = pd.DataFrame(table_rows, columns=list(COLUMNS)).astype({"n": "Int64", "wins": "Int64", "losses": "Int64"})
    notes = list(dict.fromkeys(notes))
    # Written first: printing can fail, into a closed pipe for instance.
    if directory is not None:
        write_summary(table, notes, Path(directory))
    print_summary(table, notes, console or Console())
    return table


def probe_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Name the probe errors of a summary as scalars for a log.

    Args:
        table: What :func:`summarise` returns.

    Returns:
        Median mean absolute errors under ``probe/<target>/<n>/<probe>/<readout>/<trained or untrained>``, with
        underscores for spaces.
    """
    metrics: dict[str, float] = {}
    for row in table[table["section"] == "probe"].to_dict("records"):
        tag = f"probe/{row['name']}/{row['n']}/{row['probe']}/{row['readout']}".replace(" ", "_")
        metrics[f"{tag}/{TRAINED}"] = float(row["trained_median"])
        metrics[f"{tag}/{UNTRAINED}"] = float(row["untrained_median"])
    return metrics


def _targets(dataset: CrystalDataset, target: str | Sequence[str] | None, notes: list[str]) -> dict[str, Tensor]:
    asked = ([target] if isinstance(target, str) else target) if target else list(dataset.labels)
    known = {name: int(torch.isfinite(dataset.target(name)).sum()) for name in asked}
    empty = [name for name, count in known.items() if not count]
    if empty:
        notes.append(f"labels without any value, not probed: {', '.join(empty)}")
    frequent = sorted((name for name in asked if known[name]), key=lambda name: -known[name])
    if not frequent:
        return intrinsic_targets(dataset)
    if not target and len(frequent) > MOST_TARGETS:
        notes.append(f"labels that are not probed: {', '.join(frequent[MOST_TARGETS:])} (name one as the target)")
        frequent = frequent[:MOST_TARGETS]
    return {name: dataset.labels[name] for name in frequent}


def _rows_to_represent(
    targets: Mapping[str, Tensor], train: Tensor, test: Tensor, pool: int, seed: int, notes: list[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Choose what is worth a pass of the encoder: as many labelled rows as the subsets and a sharp mean error need.

    Returns the labelled training rows of each target and the test rows of all.
    """
    generator = torch.Generator().manual_seed(seed)
    if test.numel() > MOST_TEST_ROWS:
        notes.append(f"{MOST_TEST_ROWS} of the {test.numel()} test rows are used, drawn at random")
        test = test[torch.randperm(test.numel(), generator=generator)[:MOST_TEST_ROWS]]
    pools = {}
    for name, values in targets.items():
        labelled = train[torch.isfinite(values[train])]
        missing, missing_test = train.numel() - labelled.numel(), int((~torch.isfinite(values[test])).sum())
        if missing or missing_test:
            notes.append(
                f"{name}: without a label and left out are {missing} of {train.numel()} training rows and "
                f"{missing_test} of {test.numel()} test rows"
            )
        drawn = torch.randperm(labelled.numel(), generator=generator)[:pool]
        # Without test rows there is nothing to probe, and no reason to run the encoders.
        pools[name] = labelled[drawn].sort().values if test.numel() else labelled[:0]
    return pools, test if any(rows.numel() for rows in pools.values()) else test[:0]


@dataclass(frozen=True)
class _Represented:
    """Vectors of the same rows, in ascending order, by encoder and readout."""

    by_encoder: Mapping[tuple[str, str], Tensor]
    rows: Tensor

    def present(self, rows: Tensor) -> Tensor:
        return rows[torch.isin(rows, self.rows)]

    def vectors(self, encoder: str, readout: str, rows: Tensor) -> Tensor:
        return self.by_encoder[encoder, readout][torch.searchsorted(self.rows, rows)]


def _represent_all(
    encoders: Mapping[str, Encoder],
    dataset: CrystalDataset,
    rows: Tensor,
    batch_sites: int,
    device: torch.device | str | None,
    notes: list[str],
) -> _Represented:
    rows = torch.unique(rows)
    subset = dataset.subset(rows) if device is None else dataset.subset(rows).to(device)
    vectors: dict[tuple[str, str], Tensor] = {}
    for name, encoder in encoders.items() if rows.numel() else ():
        # One process writes the summary, and it needs all rows.
        loader = CrystalLoader(subset, encoder.graph, batch_sites=batch_sites, shuffle=False, shard=False)
        full, _ = represent(encoder, loader, "full", device)
        vectors[name, "full"], vectors[name, "global"] = full, full[:, : encoder.channels]
    finite = torch.ones(rows.numel(), dtype=torch.bool)
    for value in vectors.values():
        finite &= torch.isfinite(value).all(dim=1)
    if not finite.all():
        # Left out for every encoder, so that the comparison stays paired.
        bad = rows[~finite]
        notes.append(
            f"crystals left out because their representation is not finite: {bad.numel()}, in rows {bad[:5].tolist()}"
            + (" and others" if bad.numel() > 5 else "")
        )
    return _Represented({key: v[finite] for key, v in vectors.items()}, rows[finite])


def _fitting_sizes(name: str, sizes: Sequence[int], labels: int, tests: int, notes: list[str]) -> Sequence[int]:
    if labels < FEWEST_LABELS or not tests:
        notes.append(f"{name}: not probed, {labels} training rows and {tests} test rows have a label")
        return ()
    if labels < min(sizes):
        notes.append(f"{name}: {labels} training rows have a label, {labels // 2} are drawn instead of {min(sizes)}")
        return (labels // 2,)
    return sizes


def _compare(name: str, readout: str, trained: ProbeReport, untrained: ProbeReport) -> list[dict[str, Any]]:
    rows = []
    for n in dict.fromkeys(error.n for error in trained.errors):
        baseline = float(np.median(trained.of(n, DUMMY)))
        rows += [
            probe_row(name, readout, n, kind, trained.of(n, kind), untrained.of(n, kind), baseline)
            for kind in (LEAST_SQUARES, RIDGE)
        ]
    return rows
