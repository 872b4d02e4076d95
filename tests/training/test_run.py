from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.evaluate.represent import represent
from pyg_dim.models import build
from pyg_dim.training import loaders
from pyg_dim.training.callbacks import Interrupted
from pyg_dim.training.checkpoints import load_encoder, read_checkpoint
from pyg_dim.training.finished import read_runs
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train


def parameters(path):
    return read_checkpoint(path)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt_at(monkeypatch, step, signum=signal.SIGINT):
    """Raise a signal in the given training step of the process, counted from 0."""
    original, seen = TrainingModule.training_step, []

    def training_step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == step + 1:
            signal.raise_signal(signum)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    return seen


def test_what_a_signal_breaks_below_a_step_is_no_error_of_the_run(options, monkeypatch):
    """Ctrl-C reaches the compilers of torch.compile as well, and their failure comes back as an exception."""

    def broken(self, batch, batch_idx):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("the compiler was interrupted")

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(Interrupted, match="nothing was saved yet") as stop:
        train(options())
    assert stop.value.checkpoint is None
    monkeypatch.setattr(TrainingModule, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(options())


def test_losses_and_their_baseline_share_a_chart(options):
    directory = train(options()).directory
    events = EventAccumulator(str(directory))
    events.Reload()
    (plugin,) = [name for name in events.summary_metadata if "custom_scalars" in name]
    assert b"baseline/js" in events.Tensors(plugin)[0].tensor_proto.string_val[0]


def test_a_run_leaves_checkpoints_options_events_and_a_summary(options):
    chosen = options()
    result = train(chosen)
    assert result.directory == Path(chosen.logdir) / "sitenet-deep-infomax-binaries-1"
    names = {path.name for path in result.directory.iterdir()}
    assert {"last.ckpt", "best.ckpt", "summary.csv", "summary.md", "hparams.yaml"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    written = TrainOptions.from_dict(yaml.safe_load((result.directory / "hparams.yaml").read_text()))
    assert written == replace(chosen, encoder=build("sitenet", **chosen.encoder).config)
    assert isinstance(result.summary, pd.DataFrame)
    assert set(result.summary["section"]) == {"loss", "probe"}
    assert all(
        math.isfinite(result.metrics[f"{part}/js/{level}"])
        for part in ("train", "val")
        for level in ("local", "global")
    )
    assert any(name.startswith("probe/energy") for name in result.metrics)


def test_a_second_run_gets_the_next_number_and_a_name_is_not_reused(options):
    chosen = options(epochs=1, val_fraction=0.0)
    assert train(chosen).directory.name.endswith("-1")
    assert train(chosen).directory.name.endswith("-2")
    named = replace(chosen, name="mine")
    assert train(named).directory == Path(chosen.logdir) / "mine"
    with pytest.raises(ValueError, match=r"holds a run already.*--resume .*mine/last\.ckpt"):
        train(named)


@pytest.mark.parametrize(
    ("model", "encoder", "level"),
    [
        ("sitenet", None, "local_level"),
        ("cgcnn", {"site_channels": 8, "convolutions": 2, "crystal_channels": 8}, "convolution_levels.1"),
    ],
)
def test_tags_are_those_of_every_architecture(options, model, encoder, level):
    chosen = options(model=model) if encoder is None else options(model=model, encoder=encoder)
    events = EventAccumulator(str(train(chosen).directory), size_guidance={"scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for part in ("train", "val"):
        assert {f"{part}/{name}" for name in ("total", "js/local", "js/global", "kl/local", "kl/global")} <= scalars
        assert f"detail/{part}/{level}/composition/coverage" in scalars
    assert {"crystals_per_second", "representation/std_mean", "representation/collapsed_fraction"} <= scalars
    assert any(name.startswith("probe/") for name in scalars)
    assert len(events.Scalars("val/js/local")) == 2
    baseline = events.Scalars("baseline/js")
    assert [event.value for event in baseline] == pytest.approx([2 * math.log(2)] * 2)
    assert "_hparams_/experiment" in events.summary_metadata
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(events.summary_metadata)


def test_info_nce_has_tags_and_a_baseline_of_its_own(options):
    chosen = options()
    result = train(replace(chosen, encoder=chosen.encoder | {"estimator": "info_nce", "critic": "bilinear"}))
    events = EventAccumulator(str(result.directory), size_guidance={"scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/nce/local", "val/nce/global", "baseline/nce"} <= scalars
    assert not any("js" in name for name in scalars)
    assert {event.value for event in events.Scalars("baseline/nce")} == {0.0}
    assert result.summary.set_index("name").loc["nce/local", "baseline"] == 0


def test_final_metrics_stand_beside_the_options_without_a_false_point_in_a_curve(options):
    result = train(options())
    events = EventAccumulator(str(result.directory))
    events.Reload()
    from tensorboard.plugins.hparams import metadata

    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {"lr", "seed", "encoder.heads", "crystals"} <= {info.name for info in experiment.hparam_infos}
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"val/js/local", "train/total"} <= metrics
    curve = [event.value for event in events.Scalars("val/js/local")]
    assert len(curve) == 2
    assert curve[-1] == pytest.approx(result.metrics["val/js/local"])


def test_a_seed_decides_everything(options):
    first, again = train(options(name="first")), train(options(name="again"))
    other = train(options(name="other", seed=1))
    state = parameters(first.directory / "last.ckpt")
    assert same(state, parameters(again.directory / "last.ckpt"))
    assert not same(state, parameters(other.directory / "last.ckpt"))
    assert first.metrics["val/total"] == again.metrics["val/total"]


@pytest.mark.parametrize("precision", ["32", "64"])
def test_a_resumed_run_equals_an_uninterrupted_one(options, precision):
    whole = train(options(name="whole", epochs=3, precision=precision))
    half = options(name="half", epochs=1, precision=precision)
    checkpoint = train(half).directory / "last.ckpt"
    resumed = train(replace(half, epochs=3, resume=str(checkpoint)))
    assert resumed.directory == checkpoint.parent
    assert same(parameters(whole.directory / "last.ckpt"), parameters(checkpoint))
    assert resumed.metrics["val/js/local"] == whole.metrics["val/js/local"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_epoch_is_taken_up_where_it_was_left(options, monkeypatch, signum):
    whole = train(options(name="whole"))
    stopped = options(name="stopped")
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, 5, signum)
        with pytest.raises(Interrupted) as stop:
            train(stopped)
    assert stop.value.signum == signum
    assert stop.value.checkpoint == Path(stopped.logdir) / "stopped" / "last.ckpt"
    assert str(stop.value).endswith(f"saved in {stop.value.checkpoint}")
    # Epochs have more than one step, and the sixth is within the second one.
    assert 0 < steps[-1] < max(steps)
    with monkeypatch.context() as patch:
        rest = interrupt_at(patch, 99)
        train(replace(stopped, resume=str(stop.value.checkpoint)))
    assert rest[0] == steps[-1] + 1
    assert same(parameters(whole.directory / "last.ckpt"), parameters(stop.value.checkpoint))


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_checkpoint(options, monkeypatch):
    steps = interrupt_at(monkeypatch, 10**9)
    whole = train(options(name="whole"))
    last = max(steps)
    with monkeypatch.context() as patch:
        interrupt_at(patch, last)
        with pytest.raises(Interrupted):
            train(options(name="stopped"))
    checkpoint = Path(options().logdir) / "stopped" / "last.ckpt"
    train(options(name="stopped", resume=str(checkpoint)))
    assert same(parameters(whole.directory / "last.ckpt"), parameters(checkpoint))


def test_handlers_of_signals_are_put_back(options):
    before = signal.getsignal(signal.SIGINT)
    train(options(epochs=1, val_fraction=0.0))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(options, monkeypatch):
    original = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if self.current_epoch == 1 else loss

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    with pytest.raises(FloatingPointError, match=r"not a finite number in epoch 2.*--lr.*earlier epochs are kept"):
        train(options(name="bad", epochs=3))
    state = parameters(Path(options().logdir) / "bad" / "last.ckpt")
    assert all(value.isfinite().all() for value in state.values())


def test_supervised_training_starts_from_a_pretrained_encoder_and_predicts(options):
    pretrained = train(options()).directory / "last.ckpt"
    chosen = options(objective="supervised", target="energy", init=str(pretrained), epochs=40, lr=3e-3)
    result = train(chosen)
    labels = pd.read_parquet(chosen.data)["energy"].dropna()
    spread = (labels - labels.mean()).abs().mean()
    assert result.metrics["train/mae/energy"] < 0.6 * spread
    assert "val/mae/energy" in result.metrics
    assert "train/js/local" not in result.metrics
    state = parameters(result.directory / "last.ckpt")
    assert state["objective.mean"].item() == pytest.approx(labels.mean(), abs=3)
    load_encoder(result.directory / "best.ckpt")


def test_initial_parameters_are_those_of_the_checkpoint(options):
    pretrained = train(options()).directory / "last.ckpt"
    # A learning rate that changes nothing shows what the run started from.
    result = train(options(init=str(pretrained), lr=1e-30, weight_decay=0.0, epochs=1))
    assert same(load_encoder(pretrained).state_dict(), load_encoder(result.directory / "last.ckpt").state_dict())


ALL = "deep_infomax+fingerprint+barlow_twins"
ADDED = ("total/deep_infomax", "total/fingerprint", "total/barlow_twins", "mse/fingerprint", "barlow/on_diagonal",
         "barlow/off_diagonal")  # fmt: skip
ENCODERS = {
    "sitenet": None,
    "cgcnn": {"site_channels": 8, "convolutions": 1, "crystal_channels": 8},
    "megnet": {"element_channels": 4, "gaussians": 10, "blocks": 1, "feature_channels": 8, "dense_hidden": [8],
               "convolution_hidden": [8], "crystal_channels": 8},
    "alignn": {"alignn_layers": 1, "gcn_layers": 1, "hidden_channels": 8, "embedding_channels": 8, "k": 4,
               "crystal_channels": 8, "edge_gaussians": 10, "angle_gaussians": 5},
    "roost": {"site_channels": 8, "layers": 1, "heads": 1, "hidden_channels": 8, "trunk": [8], "crystal_channels": 8,
              "element_channels": 5},
}  # fmt: skip


@pytest.mark.parametrize("model", list(ENCODERS))
def test_objectives_that_add_up_have_the_same_tags_for_every_architecture(options, model):
    values = {"objective": ALL, "model": model, "barlow_channels": 8, "epochs": 1, "limit": 30}
    encoder = ENCODERS[model]
    result = train(options(**values) if encoder is None else options(**values, encoder=encoder))
    events = EventAccumulator(str(result.directory), size_guidance={"scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for part in ("train", "val"):
        assert {f"{part}/{name}" for name in ("total", "js/local", "js/global", "kl/local", *ADDED)} <= scalars
        parts = [result.metrics[f"{part}/{name}"] for name in ADDED[:3]]
        assert result.metrics[f"{part}/total"] == pytest.approx(sum(parts), rel=1e-5)
    assert set(ADDED) <= set(result.summary["name"])


def test_a_run_of_several_objectives_is_resumed_compared_and_started_from(options):
    chosen = {"objective": ALL, "objective_weights": "1,0.5,2", "barlow_channels": 8}
    whole = train(options(name="whole", epochs=3, **chosen))
    half = options(name="half", epochs=1, **chosen)
    checkpoint = train(half).directory / "last.ckpt"
    resumed = train(replace(half, epochs=3, resume=str(checkpoint)))
    assert same(parameters(whole.directory / "last.ckpt"), parameters(checkpoint))
    assert resumed.metrics["val/total"] == whole.metrics["val/total"]
    total = sum(w * whole.metrics[f"val/{name}"] for w, name in zip((1, 0.5, 2), ADDED[:3], strict=True))
    assert whole.metrics["val/total"] == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError, match=r"objective_weights was '1,0.5,2' and is now '1,1,1'"):
        train(replace(half, epochs=4, resume=str(checkpoint), objective_weights="1,1,1"))

    # The encoder is there once, under the prefix that checkpoints are read by.
    names = [name for name in parameters(checkpoint) if "encoder." in name]
    assert names
    assert all(name.startswith("objective.encoder.") for name in names)
    encoder = load_encoder(checkpoint)
    decoder = {name: encoder.state_dict()[f"decoder.{name}"] for name in ("weight", "bias")}
    mine = {name: value for name, value in encoder.state_dict().items() if not name.startswith("decoder.")}
    assert all(parameters(checkpoint)[f"objective.encoder.{name}"].equal(value) for name, value in mine.items())
    # What tells fingerprints comes with it, for the readout "decoded".
    told = "objective.parts.fingerprint.projector."
    assert all(parameters(checkpoint)[told + name].equal(value) for name, value in decoder.items())
    runs, left_out = read_runs([whole.directory])
    assert (runs[0].objective, left_out) == (ALL, {})
    assert list(runs[0].losses)[:4] == ["js/local", "js/global", "kl/local", "kl/global"]
    assert set(ADDED) <= set(runs[0].losses)

    tuned = train(options(name="tuned", objective="supervised", target="energy", init=str(checkpoint), epochs=1))
    assert "val/mae/energy" in tuned.metrics


def test_labels_are_one_objective_of_several(options):
    result = train(options(objective="deep_infomax+supervised", target="rare", epochs=1, val_fraction=0.4))
    assert {"train/mae/rare", "val/mae/rare", "train/js/local", "train/total/supervised"} <= result.metrics.keys()
    assert "objective.parts.supervised.mean" in parameters(result.directory / "last.ckpt")
    # "rare" is known for a third of the crystals, and none is left out.
    assert read_checkpoint(result.directory / "last.ckpt")["pyg_dim"]["data"]["crystals"] == 60
    assert 0 < result.metrics["detail/train/mae/rare/coverage"] < 1


def test_one_of_the_other_objectives_alone(options):
    result = train(options(objective="barlow_twins", barlow_channels=8, epochs=1))
    assert result.directory.name == "sitenet-barlow-twins-binaries-1"
    assert {"train/total", "val/barlow/on_diagonal"} <= result.metrics.keys()
    assert not any("js" in name for name in result.metrics)


def test_the_readout_of_a_run_is_that_of_its_encoder(options):
    chosen = options(epochs=1, val_fraction=0.0, readout="full")
    checkpoint = train(chosen).directory / "last.ckpt"
    encoder = load_encoder(checkpoint)
    loader = CrystalLoader(load_dataset(chosen.data), encoder.graph, shuffle=False)
    assert represent(encoder, loader)[0].equal(represent(encoder, loader, "full")[0])
    train(replace(chosen, epochs=2, resume=str(checkpoint), readout="global"))
    assert load_encoder(checkpoint).default_readout == "global"
    # Runs from before there was a choice.
    old = torch.load(checkpoint, weights_only=True)
    for name in ("readout", "objective_weights", "fingerprints", "barlow_channels", "mask", "displacement"):
        del old["pyg_dim"]["options"][name]
    torch.save(old, checkpoint)
    assert load_encoder(checkpoint).default_readout == "global"
    train(replace(chosen, epochs=3, resume=str(checkpoint), readout="full"))
    assert load_encoder(checkpoint).default_readout == "full"


def test_crystals_without_a_label_are_left_out_of_supervised_training(options):
    result = train(options(objective="supervised", target="rare", epochs=1))
    about = read_checkpoint(result.directory / "last.ckpt")["pyg_dim"]
    assert about["data"]["crystals"] == 20
    assert about["options"]["target"] == "rare"


def test_unknown_and_empty_targets_are_named(options):
    with pytest.raises(ValueError, match=r"no target column 'enrgy'.*'energy', 'rare'"):
        train(options(objective="supervised", target="enrgy"))
    with pytest.raises(ValueError, match="no crystal with a label in empty"):
        train(options(objective="supervised", target="empty"))


def test_without_a_validation_part_there_is_no_comparison(options):
    result = train(options(val_fraction=0.0))
    assert result.summary is None
    assert not any(name.startswith("val/") for name in result.metrics)
    assert (result.directory / "best.ckpt").exists()


def test_an_encoder_of_64_bits_represents_a_loader_of_32(options):
    encoder = load_encoder(train(options(precision="64", epochs=1, val_fraction=0.0)).directory / "last.ckpt")
    loaders = [
        CrystalLoader(load_dataset(options().data, dtype=dtype), encoder.graph, shuffle=False)
        for dtype in (torch.float32, torch.float64)
    ]
    rounded, exact = (represent(encoder, loader)[0] for loader in loaders)
    assert rounded.dtype == exact.dtype == torch.float64
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["64", "bf16"])
def test_other_precisions_train(options, precision):
    result = train(options(precision=precision))
    assert math.isfinite(result.metrics["val/total"])
    encoder = load_encoder(result.directory / "last.ckpt")
    assert next(encoder.parameters()).dtype == (torch.float64 if precision == "64" else torch.float32)


def test_batches_are_made_where_the_steps_run_and_not_copied(options, monkeypatch):
    placed, built, used = [], set(), []
    build, step = CrystalLoader._build, TrainingModule.training_step

    def made_resident(dataset, device):
        placed.append((len(dataset), device))
        return dataset.to(device)

    def _build(self, planned):
        batch = build(self, planned)
        built.add((batch.pos.data_ptr(), batch.edge_index.data_ptr()))
        return batch

    def training_step(self, batch, batch_idx):
        used.append((batch.pos.data_ptr(), batch.edge_index.data_ptr()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(loaders, "made_resident", made_resident)
    monkeypatch.setattr(CrystalLoader, "_build", _build)
    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    train(options(epochs=1))
    assert placed == [(48, torch.device("cpu")), (12, torch.device("cpu"))]
    assert used
    assert set(used) <= built


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_makes_its_batches_there(options, monkeypatch):
    build, devices = CrystalLoader._build, set()

    def _build(self, planned):
        batch = build(self, planned)
        devices.add(batch.edge_dist.device)
        return batch

    monkeypatch.setattr(CrystalLoader, "_build", _build)
    result = train(options(epochs=2, accelerator="gpu", precision="bf16"))
    assert devices == {torch.device("cuda", 0)}
    assert math.isfinite(result.metrics["train/total"])
