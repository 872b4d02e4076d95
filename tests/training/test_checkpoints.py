from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from pyg_dim import models
from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.training.checkpoints import SECTION, load_encoder, read_checkpoint
from pyg_dim.training.run import train
from pyg_dim.training.setup import prepare_encoder


class Command:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class OtherNet(models.SiteNet):
    name = "othernet"


@pytest.fixture
def checkpoint(options):
    return train(options(epochs=1, val_fraction=0.0)).directory / "last.ckpt"


def test_it_holds_plain_values_and_tensors_only(checkpoint, options):
    about = torch.load(checkpoint, weights_only=True)[SECTION]
    assert about["model"] == "sitenet"
    assert about["options"]["lr"] == options().lr
    assert about["encoder"]["site_channels"] == 8
    assert about["data"]["crystals"] == 60
    assert about["data"]["source"] == options().data
    models.build(about["model"], **about["encoder"])


def test_an_encoder_comes_back_as_it_was_trained(checkpoint, options):
    encoder = load_encoder(checkpoint)
    assert not encoder.training
    again = load_encoder(str(checkpoint))
    batch = next(iter(CrystalLoader(load_dataset(options().data), encoder.graph, shuffle=False)))
    with torch.no_grad():
        vectors = encoder(batch)
        assert vectors.shape == (60, 8)
        assert torch.equal(vectors, again(batch))
        assert not torch.allclose(vectors, models.build("sitenet", **encoder.config).eval()(batch))


def test_another_architecture_is_named_with_this_one(checkpoint, options, monkeypatch):
    monkeypatch.setitem(models.MODELS, "othernet", OtherNet)
    for name in ("init", "resume"):
        with pytest.raises(
            ValueError, match=r"last\.ckpt holds a sitenet encoder.*train othernet: use --model sitenet"
        ):
            train(options(model="othernet", **{name: str(checkpoint)}))


def test_another_shape_is_named(checkpoint, options):
    wide = options().encoder | {"local_channels": 16}
    with pytest.raises(ValueError, match="another shape: local_channels is 8 there and 16 here"):
        train(options(encoder=wide, init=str(checkpoint)))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_options_that_do_not_show_in_shapes_are_named(checkpoint, options, caplog):
    other = options().encoder | {"supercell_sites": 4, "kl": "paper"}
    prepare_encoder(options(encoder=other, init=str(checkpoint)))
    changes = "supercell_sites: 8 in the checkpoint, 4 now; kl: log_variance in the checkpoint, paper now"
    assert warnings_of(caplog) == [f"--init {checkpoint} was trained with other options: {changes}"]


def test_there_is_no_warning_of_equal_options(checkpoint, options, caplog):
    same = options().encoder | {"pre_pool": (8,)}
    prepare_encoder(options(encoder=same, init=str(checkpoint)))
    contents = torch.load(checkpoint, weights_only=True)
    # As a version would have written it that did not know the option yet.
    del contents[SECTION]["encoder"]["distance_weights"]
    torch.save(contents, checkpoint)
    prepare_encoder(options(init=str(checkpoint)))
    assert warnings_of(caplog) == []


def test_a_model_that_is_not_known_here_is_named(checkpoint, tmp_path):
    contents = torch.load(checkpoint, weights_only=True)
    contents[SECTION]["model"] = "futurenet"
    torch.save(contents, tmp_path / "future.ckpt")
    with pytest.raises(ValueError, match=r"unknown model 'futurenet'; known: .*sitenet"):
        load_encoder(tmp_path / "future.ckpt")


def test_a_later_format_is_refused(checkpoint, tmp_path):
    contents = torch.load(checkpoint, weights_only=True)
    contents[SECTION]["format"] = 99
    torch.save(contents, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint format 99.*upgrade"):
        read_checkpoint(tmp_path / "later.ckpt")


def test_missing_files_and_folders_are_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        load_encoder(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match=r"is a folder; give a checkpoint file: .*last\.ckpt"):
        load_encoder(checkpoint.parent)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(checkpoint, tmp_path, share):
    whole = checkpoint.read_bytes()
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"broken\.ckpt is not a readable checkpoint"):
        read_checkpoint(broken)


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*protocol 4.*")
@pytest.mark.parametrize(
    "contents",
    [
        b"model: sitenet\nepochs: 3\n",
        "# Über die Kristalle\nein Text, kein Modell\n".encode() * 50,
        b"immutable_id,energy\n1,2.5\n",
        b"",
        bytes(4096),
        b"PK\x03\x04" + bytes(200),
        b"PAR1" + bytes(range(256)),
        b"\x80\x02}",
    ],
    ids=["yaml", "text", "csv", "empty", "zeros", "zip", "parquet", "cut pickle"],
)
def test_foreign_files_are_named(tmp_path, contents):
    (tmp_path / "foreign.ckpt").write_bytes(contents)
    with pytest.raises(ValueError, match=r"foreign\.ckpt is not a readable checkpoint"):
        read_checkpoint(tmp_path / "foreign.ckpt")


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*protocol 4.*")
def test_a_hostile_file_runs_no_code(tmp_path):
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Command(tmp_path / "written")))
    torch.save({SECTION: Command(tmp_path / "written")}, tmp_path / "torch.ckpt")
    for name in ("pickle", "torch"):
        with pytest.raises(ValueError, match=rf"{name}\.ckpt is not a readable checkpoint"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("contents", [{"state_dict": {}}, [1, 2], 3.5, torch.ones(2), {"x": torch.ones(2)}])
def test_a_file_of_another_program_is_named(tmp_path, contents):
    torch.save(contents, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is a PyTorch file but no checkpoint of a pyg_dim run"):
        read_checkpoint(tmp_path / "other.ckpt")


def whole():
    """The least that is a checkpoint."""
    data = {"source": "x", "crystals": 1, "val": 0, "fingerprint": 1}
    about = {"format": 1, "model": "sitenet", "encoder": {}, "options": {"encoder": {}}, "data": data}
    return {SECTION: about, "state_dict": {"objective.encoder.weight": torch.ones(1)}}


def test_the_least_checkpoint_is_read(tmp_path):
    torch.save(whole(), tmp_path / "least.ckpt")
    assert read_checkpoint(tmp_path / "least.ckpt")[SECTION]["model"] == "sitenet"


@pytest.mark.parametrize("section", [None, [], "text", 7])
def test_a_section_that_is_no_dictionary_is_named(tmp_path, section):
    torch.save(whole() | {SECTION: section}, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=r"damaged\.ckpt is damaged: its 'pyg_dim' section is a .*, not a dict"):
        read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize("name", ["model", "encoder", "options", "options.encoder", "data", "data.fingerprint"])
def test_what_a_section_lacks_is_named(tmp_path, name):
    *parents, key = name.split(".")
    contents = whole()
    place = contents[SECTION]
    for parent in parents:
        place = place[parent]
    place[key] = None
    torch.save(contents, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=rf"damaged\.ckpt is damaged: '{name}' of its .* is a NoneType, not a"):
        read_checkpoint(tmp_path / "damaged.ckpt")
    del place[key]
    torch.save(contents, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=rf"damaged\.ckpt is damaged: its 'pyg_dim' section has no '{name}'"):
        read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize("form", [None, "1"])
def test_a_section_without_a_format_is_named(tmp_path, form):
    contents = whole()
    contents[SECTION]["format"] = form
    torch.save(contents, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=r"damaged\.ckpt is damaged: its 'pyg_dim' section tells no format"):
        read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize(
    "state",
    [None, {}, {"weight": torch.ones(1)}, {"objective.encoder.weight": 1.0}],
    ids=["none", "empty", "other", "no"],
)
def test_a_checkpoint_without_parameters_is_named(tmp_path, state):
    torch.save(whole() | {"state_dict": state}, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=r"damaged\.ckpt is damaged: it has no parameters of an encoder"):
        load_encoder(tmp_path / "damaged.ckpt")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    torch.save(whole(), tmp_path / "locked.ckpt")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(ValueError, match=r"cannot read the checkpoint .*locked\.ckpt: Permission denied"):
        read_checkpoint(tmp_path / "locked.ckpt")


def test_writing_replaces_the_file_as_a_whole(options, monkeypatch):
    chosen = options(epochs=1, val_fraction=0.0)
    path = train(chosen).directory / "last.ckpt"
    before = path.read_bytes()
    original = torch.save

    def disk_full(contents, file, *arguments):
        original(contents, file, *arguments)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_full)
        with pytest.raises(ValueError, match=r"cannot write to .*: no space left on device; what was saved stays"):
            train(replace(chosen, epochs=2, resume=str(path)))
    assert path.read_bytes() == before
