"""Encoders handed on: the file, its card, and what a run makes of it."""

from __future__ import annotations

import json

import pytest
import torch

from pyg_dim import models
from pyg_dim.cli import main
from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.evaluate.represent import represent
from pyg_dim.training import export, load_encoder, read_checkpoint
from pyg_dim.training.checkpoints import SECTION, crystal_options, parse_weights
from pyg_dim.training.exporting import model_card, weights_of
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train
from pyg_dim.training.weights import pack_weights, read_weights


@pytest.fixture(scope="module")
def checkpoint(parquet, tmp_path_factory):
    """A run that also learned fingerprints, and hands on what it tells of them."""
    widths = {"site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8]}
    widths |= {"local_channels": 8, "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8}
    chosen = TrainOptions(
        data=str(parquet), epochs=1, val_fraction=0.0, batch_sites=24, accelerator="cpu", compile=False,
        objective="deep_infomax+fingerprint", readout="decoded", oxidation="guess", max_sites=9, encoder=widths,
        logdir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return train(chosen).directory / "last.ckpt"


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_exported_encoder_is_the_same_to_the_last_bit(checkpoint, options, tmp_path):
    file = tmp_path / "tiny.safetensors"
    export(checkpoint, file)
    before, after = load_encoder(checkpoint), load_encoder(file)
    assert same(before, after)
    assert after.config == before.config
    assert after.default_readout == "decoded"
    assert crystal_options(read_checkpoint(file), file) == (9, "guess")
    dataset = load_dataset(options().data)
    for kind in (None, "global", "full"):
        one, other = (represent(e, CrystalLoader(dataset, e.graph, shuffle=False), kind)[0] for e in (before, after))
        assert torch.equal(one, other)
    # And so is the export of an export.
    export(file, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_architecture_in_either_precision(name, tmp_path):
    for dtype in (torch.float32, torch.float64):
        encoder = models.build(name).to(dtype)
        export(encoder, tmp_path / "e.safetensors", overwrite=True)
        again = load_encoder(tmp_path / "e.safetensors")
        assert same(encoder, again)
        assert next(again.parameters()).dtype == dtype
        assert again.config == encoder.config
        assert not again.training


def test_vectors_of_elements_with_gaps_go_with_the_file(tmp_path):
    encoder = models.build("roost", elements="magpie", layers=1)
    export(encoder, tmp_path / "e.safetensors")
    again = load_encoder(tmp_path / "e.safetensors")
    assert again.config == encoder.config
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


def test_an_encoder_in_memory_keeps_its_decoder_and_readout(checkpoint, tmp_path):
    encoder = load_encoder(checkpoint)
    card = export(encoder, tmp_path / "memory.safetensors", licence="MIT")
    again = load_encoder(tmp_path / "memory.safetensors")
    assert same(encoder, again)
    assert again.default_readout == "decoded"
    assert "not told, 0 crystals" in card.read_text()


def test_the_file_tells_nothing_of_the_machine(checkpoint, options, tmp_path):
    file = tmp_path / "tiny.safetensors"
    card = export(checkpoint, file).read_text()
    about, _ = read_weights(file)
    assert str(checkpoint.parents[1]) not in json.dumps(about) + card
    assert str(options().data).rpartition("/")[0] not in json.dumps(about) + card
    assert about["options"]["data"] == about["data"]["source"] == "binaries.parquet"
    assert not {"logdir", "name", "devices"} & about["options"].keys()


def test_the_card_has_the_facts(checkpoint, tmp_path):
    file = tmp_path / "tiny.safetensors"
    text = export(checkpoint, file, licence="CC-BY-4.0", about="Made for tests.\nOf salts.").read_text()
    encoder = load_encoder(checkpoint)
    for fact in (
        "# tiny\n", "Made for tests.\nOf salts.", "| licence of the weights | CC-BY-4.0 |", encoder.source,
        "60 crystals", "deep_infomax+fingerprint", "readout decoded", "| epochs | 1 |", "supercell_sites",
        f"| parameters | {sum(p.numel() for p in encoder.parameters())} |",
        'pyg_dim.load("tiny.safetensors")',
    ):  # fmt: skip
        assert fact in text
    # The texts stay with the weights.
    assert model_card(read_checkpoint(file), "tiny", "tiny.safetensors") == text


def test_cards_are_kept_and_files_replaced_when_told_to(checkpoint, tmp_path):
    file, card = tmp_path / "tiny.safetensors", tmp_path / "tiny.md"
    card.write_text("mine")
    file.write_text("old")
    with pytest.raises(ValueError, match=r"tiny\.safetensors exists; --overwrite replaces it"):
        export(checkpoint, file)
    assert file.read_text() == "old"
    export(checkpoint, file, overwrite=True)
    assert card.read_text() == "mine"
    load_encoder(file)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["tiny.md", "tiny.safetensors"]


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("tiny.pt", ValueError, "ends with .safetensors"),
        ("nowhere/tiny.safetensors", FileNotFoundError, "no such folder"),
    ],
)
def test_bad_places_are_named(checkpoint, tmp_path, out, error, message):
    with pytest.raises(error, match=message):
        export(checkpoint, tmp_path / out)


def test_a_disk_that_fails_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    file = tmp_path / "tiny.safetensors"
    file.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match=r"cannot write .*tiny\.safetensors: No space left on device"):
        export(checkpoint, file, overwrite=True)
    assert file.read_text() == "old"


def test_the_command(checkpoint, tmp_path, capsys):
    file = tmp_path / "tiny.safetensors"
    arguments = ["export", str(checkpoint), "--out", str(file), "--licence", "CC-BY-4.0"]
    assert main(arguments) == 0
    assert "tiny.md" in capsys.readouterr().out
    assert read_weights(file)[0]["card"]["licence"] == "CC-BY-4.0"
    assert main(arguments) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["export", "nonet", "--out", str(tmp_path / "b.safetensors")]) == 1
    assert "there is no encoder 'nonet'" in capsys.readouterr().err


def test_runs_start_from_a_weights_file_and_learn_from_it(checkpoint, options, tmp_path):
    file = tmp_path / "tiny.safetensors"
    export(checkpoint, file)
    tuned = options(epochs=1, name="tuned", objective="supervised", target="energy", init=str(file))
    assert "val/mae/energy" in train(tuned).metrics
    student = options(epochs=1, name="student", objective="distillation", teacher=str(file), oxidation="guess")
    assert "val/mse/embedding" in train(student).metrics
    with pytest.raises(ValueError, match=r"holds an encoder alone, not the state of a run: .* --init"):
        train(options(resume=str(file)))


def damaged(about, tensors, change):
    about = json.loads(json.dumps(about))
    change(about, tensors)
    return pack_weights(about, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, t: a.update(model="os.system"), "unknown model 'os.system'"),
        (lambda a, t: a.update(model=["sitenet"]), "'model' of its 'pyg_dim' section is a list"),
        (lambda a, t: a.update(format=99), "format 99"),
        (lambda a, t: a.pop("options"), "no 'options'"),
        (lambda a, t: a["encoder"].update(wings=2), "wings"),
        (lambda a, t: a["encoder"].update(name="cgcnn"), "make no sitenet encoder"),
        (lambda a, t: a["encoder"].update(critic="exec"), "unknown critic 'exec'"),
        (lambda a, t: a["encoder"].update(critic={"__reduce__": "x"}), "model 'sitenet': "),
        (lambda a, t: a["encoder"].update(pre_pool="text"), "model 'sitenet': "),
        (lambda a, t: a["encoder"].update(site_channels=10**9), "an option of its encoder is 1000000000"),
        (lambda a, t: a["encoder"].update(pre_pool=[10**9]), "an option of its encoder is 1000000000"),
        (lambda a, t: a["encoder"].update(local_channels=16), "another shape"),
        (
            lambda a, t: a["encoder"].update(noise="/etc/elements.csv"),
            "'/etc/elements.csv', which is no name of a choice",
        ),
        (
            lambda a, t: t["encoder.output.weight"].fill_(float("nan")),
            "'output.weight' holds values that are no finite",
        ),
        (lambda a, t: a["options"].update(readout="__init__"), "unknown readout"),
        (lambda a, t: t.pop("encoder.output.weight"), "another shape"),
        (lambda a, t: t.update({"encoder.extra": torch.ones(2)}), "another shape"),
        (lambda a, t: t.pop("decoder.bias"), "layer of fingerprints"),
        (lambda a, t: t.update({"decoder.weight": torch.ones(3)}), "layer of fingerprints"),
        (lambda a, t: t.update({"decoder.weight": torch.ones(132, 3)}), "layer of fingerprints"),
        (lambda a, t: t.clear(), "no parameters of an encoder"),
    ],
)
def test_what_a_file_says_is_looked_at(checkpoint, tmp_path, change, message):
    about, tensors = read_weights_of(checkpoint, tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(damaged(about, tensors, change))
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / "bad.safetensors")


def read_weights_of(checkpoint, folder):
    export(checkpoint, folder / "good.safetensors")
    return read_weights(folder / "good.safetensors")


@pytest.mark.parametrize("change", [{"max_sites": "many"}, {"max_sites": 0}, {"oxidation": "exec"}])
def test_how_crystals_are_seen_is_looked_at(checkpoint, change):
    contents = read_checkpoint(checkpoint)
    contents[SECTION]["options"] |= change
    with pytest.raises(ValueError, match=r"x is damaged: max_sites is .* and oxidation"):
        crystal_options(contents, "x")


def test_bytes_serve_as_well_as_files(checkpoint):
    contents = read_checkpoint(checkpoint)
    again = parse_weights(weights_of(contents), "memory")
    assert again[SECTION]["encoder"] == contents[SECTION]["encoder"]
    assert weights_of(again) == weights_of(contents)


def test_a_card_may_hold_anything(checkpoint):
    contents = read_checkpoint(checkpoint)
    contents[SECTION]["card"] = ["no", "card"]
    assert "not told" in model_card(contents, "x", "x")
    contents[SECTION]["card"] = {"licence": {"a": 1}}
    assert "{'a': 1}" in model_card(contents, "x", "x")
