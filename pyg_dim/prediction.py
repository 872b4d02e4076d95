"""Predict labels of crystals by an encoder that was trained on labels: ``pyg_dim.predict``, ``pyg-dim predict``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from tqdm import tqdm

from pyg_dim import __version__
from pyg_dim.data import keys
from pyg_dim.data.report import printable
from pyg_dim.data.sources.base import ID_COLUMNS
from pyg_dim.embedding import (
    REPORT,
    add_source_flags,
    device_of,
    finite_rows,
    open_batches,
    require_target,
    written_with_report,
)
from pyg_dim.training.checkpoints import read_checkpoint
from pyg_dim.training.devices import Accelerator
from pyg_dim.training.predictors import predictor_of

_logger = logging.getLogger(__name__)

_WRITERS: Final[dict[str, Callable[[pd.DataFrame, Path], Any]]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}
"""By the ending of the file."""


def predict(
    sources: str | Path | Sequence[str | Path],
    model: str | Path,
    out: str | Path | None = None,
    batch_sites: int = 1200,
    accelerator: Accelerator = "auto",
    max_sites: int | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict the labels that an encoder was trained on.

    Crystals that cannot be used are left out; a warning counts them, and a report beside ``out`` and
    ``attrs["left_out"]`` of the table name each.

    Args:
        sources: path of what :func:`pyg_dim.data.load_dataset` takes; of several, what ``pyg-dim import`` takes.
        model: checkpoint of a run with the objective ``supervised``, alone or among others.
        out: file to write, ``.csv`` or ``.parquet``; its report has ``.report.json`` behind the name. None for none.
        batch_sites: sites that are computed at a time.
        accelerator: where.
        max_sites: crystals with more primitive sites are left out; the limit of the training by default.
        overwrite: whether to replace a file that is there.

    Returns:
        A row for each crystal in the order of the sources: ``immutable_id``, and a column for each label, in the unit
        that it had in training.

    Raises:
        FileNotFoundError: no such source, checkpoint or folder to write to.
        ValueError: a checkpoint that has learned no label, a source that is no path, cannot be read or has no usable
            crystal, predictions without a finite number, a file that is there already, another ending, no such
            accelerator, or a disk that is full.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    if strange := [source for source in sources if not isinstance(source, str | Path)]:
        raise ValueError(f"sources are paths of files, not {type(strange[0]).__name__}: write crystals to files first")
    path = None if out is None else Path(out)
    if path is not None:
        require_target(path, sources, overwrite, _WRITERS)
    checkpoint = read_checkpoint(model)
    predictor, encoder = predictor_of(checkpoint, model)
    device = device_of(accelerator)
    loader, ids, source = open_batches(sources, checkpoint, model, encoder, batch_sites, device, max_sites)
    predictor.to(device)
    values = predictor.scale.new_zeros(len(ids), len(predictor.targets), device="cpu")
    with torch.no_grad(), closing(loader.batches(0)) as batches:
        for batch in tqdm(batches, total=len(loader), desc="predict", unit="batch", disable=None):
            # A copy, since PyG changes a batch in place.
            values[batch[keys.ROW].cpu()] = predictor.predict(copy(batch).to(device)).cpu()
    kept, values, faults = finite_rows(ids, values)
    if not len(kept):
        raise ValueError(f"{model} predicts no finite number, for no crystal")
    left_out = [*source.left_out, *faults]
    table = pd.DataFrame(
        {ID_COLUMNS[0]: kept.to_pylist()} | dict(zip(predictor.targets, values.numpy().T, strict=True))
    )
    where = ""
    if path is not None:
        report_path = path.with_name(path.name + REPORT)
        with written_with_report(path, report_path) as (file, report):
            _WRITERS[path.suffix](table, file)
            report |= {
                "model": str(model), "targets": predictor.targets, "version": __version__, "source": source.source,
                "read": source.num_read, "predicted": len(table), "notes": source.all_notes(),
                "rejected": [*map(asdict, left_out)],
            }  # fmt: skip
        where = f"; {printable(str(report_path))} names each"
    table.attrs["left_out"] = [*map(asdict, left_out)]
    if left_out:
        _logger.warning("crystals left out: %d (%s)%s", len(left_out), printable(str(left_out[0])), where)
    return table


def predict_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim predict``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Predict the labels that an encoder was trained on (pyg-dim train --objective supervised).",
    )
    parser.add_argument("--model", required=True, metavar="CKPT", help="checkpoint of a run on labels")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {', '.join(_WRITERS)}")
    add_source_flags(parser)
    chosen = vars(parser.parse_args(arguments))
    table = predict(chosen.pop("source"), **chosen)
    _logger.info("%d crystals, %s: %s", len(table), ", ".join(table.columns[1:]), printable(chosen["out"]))
    return 0
