"""Hand encoders on: as a weights file with its model card, or to a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pyg_dim import __version__
from pyg_dim.evaluate.formatting import markdown_row, replace_file
from pyg_dim.models import Encoder
from pyg_dim.training.checkpoints import (
    ENCODER_PREFIX,
    SECTION,
    decoder_of,
    encoder_of,
    encoder_state,
    read_checkpoint,
    section,
)
from pyg_dim.training.hub import ADDRESS, CARD, FILE, upload
from pyg_dim.training.weights import WEIGHTS, pack_weights

CARD_SECTION: Final = "card"
"""Where a weights file has the texts of its card."""
NOT_TOLD: Final = "not told"

_OF_THE_MACHINE: Final = ("logdir", "name", "resume", "accelerator", "devices", "num_nodes", "compile")
"""Options of a run that are of the machine it ran on, and of no use elsewhere."""
_PATHS: Final = ("data", "init", "teacher", "teacher_atoms", "split")
"""Options of a run that may be paths: their last part tells what was used."""


def export(
    source: Encoder | str | Path,
    out: str | Path,
    licence: str | None = None,
    about: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an encoder as a weights file, and its model card (``.md``) beside it where there is none.

    The file holds the parameters to the last bit, those of the levels too, so that Deep InfoMax can go on with them.

    Args:
        source: checkpoint of a run, or what else :func:`pyg_dim.load` takes; or an encoder in memory, which cannot tell
            what it was trained on.
        out: file to write, ending in ``.safetensors``.
        licence: of the weights, such as ``"CC-BY-4.0"``.
        about: what users should know: where the data come from, who made it.
        overwrite: whether to replace an existing file. A card that is there is always kept, since people write on them.

    Returns:
        The card.

    Raises:
        FileNotFoundError: no such checkpoint, or no such folder to write to.
        ValueError: not an encoder, a file of another ending, or one that is there already.
    """
    out = Path(out)
    if out.suffix != WEIGHTS:
        raise ValueError(f"{out}: weights are written as safetensors; choose a name that ends with {WEIGHTS}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.parent}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; --overwrite replaces it")
    checkpoint = _with_card(source, licence, about)
    card = out.with_suffix(".md")
    try:
        replace_file(out, weights_of(checkpoint))
        if not card.exists():
            replace_file(card, model_card(checkpoint, out.stem, out.name))
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
    return card


def push_to_hub(
    source: Encoder | str | Path,
    repository: str,
    licence: str | None = None,
    about: str | None = None,
    private: bool = False,
) -> str:
    """Put an encoder on the Hugging Face hub: its weights and a model card; needs ``pip install "pyg-dim[hub]"``.

    Args:
        source: what :func:`export` takes.
        repository: ``"user/repository"``; it is made where it is not there yet.
        licence: of the weights, such as ``"CC-BY-4.0"``.
        about: what users should know.
        private: whether a new repository is private.

    Returns:
        ``"hf://user/repository"``, which :func:`pyg_dim.load` takes.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: not an encoder, no such repository, no right to write to it, or huggingface_hub is not installed.
    """
    checkpoint = _with_card(source, licence, about)
    with TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(weights_of(checkpoint))
        repository = repository.removeprefix(ADDRESS)
        text = model_card(checkpoint, repository.rpartition("/")[2], ADDRESS + repository)
        (Path(folder) / CARD).write_text(_front_matter(checkpoint) + text, encoding="utf-8")
        return upload(Path(folder), repository, private)


def weights_of(checkpoint: Mapping[str, Any]) -> bytes:
    """The bytes of the weights file of a checkpoint, without what tells of the machine of its run.

    Args:
        checkpoint: from :func:`~pyg_dim.training.checkpoints.read_checkpoint`.

    Returns:
        The bytes; :func:`~pyg_dim.training.checkpoints.parse_weights` reads them.

    Raises:
        ValueError: parameters that are no finite numbers.
    """
    checkpoint = _portable(checkpoint)
    tensors = {f"encoder.{name}": value for name, value in encoder_state(checkpoint).items()}
    if (decoder := decoder_of(checkpoint)) is not None:
        tensors |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    return pack_weights(checkpoint[SECTION], tensors)


def model_card(checkpoint: Mapping[str, Any], name: str, address: str) -> str:
    """Write what a checkpoint tells of its encoder as a page.

    Args:
        checkpoint: from :func:`~pyg_dim.training.checkpoints.read_checkpoint`.
        name: of the encoder.
        address: what :func:`pyg_dim.load` is given.

    Returns:
        Markdown.
    """
    about, encoder = _portable(checkpoint)[SECTION], encoder_of(checkpoint, name)
    data, options, card = about["data"], about["options"], _card(checkpoint)
    facts = {
        "architecture": f"{about['model']} ({encoder.source})",
        "parameters": str(sum(parameter.numel() for parameter in encoder.parameters())),
        "representation": f"{encoder.readout_channels(encoder.default_readout)} numbers a crystal "
        f"(readout {encoder.default_readout}), {encoder.channels} of them global",
        "objective": options.get("objective", NOT_TOLD),
        "data": f"{data['source']}, {data['crystals']} crystals, {data['val']} of them for validation",
        "licence of the weights": card.get("licence", NOT_TOLD),
        "made by": f"pyg_dim {card.get('version', __version__)}",
    }
    lines = [f"# {name}", ""]
    lines += [card["about"], ""] if "about" in card else []
    lines += ["```python", "import pyg_dim", "", f'encoder = pyg_dim.load("{address}")', "```", ""]
    lines += _table(("fact", "value"), facts)
    settings = {name: value for name, value in {**options, "encoder": about["encoder"]}.items() if value is not None}
    # Another table, since there are many and few are of interest.
    lines += ["", "## Settings", "", *_table(("option", "value"), settings)]
    return "\n".join(lines) + "\n"


def _with_card(source: Encoder | str | Path, licence: str | None, about: str | None) -> dict[str, Any]:
    """The checkpoint of an encoder, with the texts of its card; those that it has already stay unless given anew."""
    checkpoint = _in_memory(source) if isinstance(source, Encoder) else read_checkpoint(source)
    given = {name: text for name, text in (("licence", licence), ("about", about)) if text is not None}
    card = {"version": __version__, **_card(checkpoint), **given}
    return {**checkpoint, SECTION: {**checkpoint[SECTION], CARD_SECTION: card}}


def _portable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without what its section tells of the machine of its run."""
    about = checkpoint[SECTION]
    options = {name: value for name, value in about["options"].items() if name not in _OF_THE_MACHINE}
    options |= {name: _last_part(options[name]) for name in _PATHS if name in options}
    data = about["data"] | {"source": _last_part(about["data"]["source"])}
    return {**checkpoint, SECTION: {**about, "options": options, "data": data}}


def _card(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a card; a file may hold anything in their place."""
    card = checkpoint[SECTION].get(CARD_SECTION)
    return {name: str(text) for name, text in card.items()} if isinstance(card, dict) else {}


def _in_memory(encoder: Encoder) -> dict[str, Any]:
    state = {ENCODER_PREFIX + name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    options: dict[str, Any] = {"encoder": dict(encoder.config), "readout": encoder.default_readout}
    if encoder.decoder is not None:
        options["objective"] = "fingerprint"
        state |= {f"decoder.{name}": value.detach().cpu() for name, value in encoder.decoder.state_dict().items()}
    data = {"source": NOT_TOLD, "crystals": 0, "val": 0, "fingerprint": 0}
    return {SECTION: section(encoder, options, data), "state_dict": state}


def _last_part(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value


def _front_matter(checkpoint: Mapping[str, Any]) -> str:
    """What the hub reads of a card."""
    licence = _card(checkpoint).get("licence")
    lines = ["library_name: pyg-dim", "tags: [materials-science, crystals, deep-infomax]"]
    lines += [f"license: {json.dumps(licence.lower())}"] if licence else []
    return "\n".join(["---", *lines, "---", "", ""])


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in rows.items()}
    lines = [markdown_row(head), "|---|---|"]
    return lines + [markdown_row((name, " ".join(text.split()))) for name, text in texts.items()]
