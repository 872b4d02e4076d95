from __future__ import annotations

from dataclasses import replace

import pytest

from pyg_dim.training.options import TrainOptions, descriptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1; got 0"),
        ({"batch_sites": -1}, "--batch-sites must be at least 1"),
        ({"devices": 0}, "--devices must be at least 1"),
        ({"num_nodes": 0}, "--num-nodes must be at least 1"),
        ({"limit": 1}, "--limit must be at least 2"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"lr": float("nan")}, "--lr must be positive"),
        ({"lr": float("inf")}, "--lr must be positive and finite; got inf"),
        ({"weight_decay": -0.1}, "--weight-decay must be finite and not negative; got -0.1"),
        ({"weight_decay": float("nan")}, "--weight-decay must be finite"),
        ({"alpha": -1.0}, "--alpha must be finite and not negative"),
        ({"beta": float("inf")}, "--beta must be finite and not negative"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"seed": 2**32}, "--seed must not be negative and lie below 4294967296; got 4294967296"),
        ({"name": "../elsewhere"}, r"--name must be the name of one folder.*'\.\./elsewhere'; see --logdir"),
        ({"name": ".."}, "--name must be the name of one folder"),
        ({"name": "."}, "--name must be the name of one folder"),
        ({"name": "a/b"}, "--name must be the name of one folder"),
        ({"name": "a/"}, "--name must be the name of one folder"),
        ({"name": "a\\b"}, "--name must be the name of one folder"),
        ({"name": " "}, "--name must be the name of one folder"),
        ({"name": "a\0b"}, "--name must be the name of one folder"),
        ({"val_fraction": 1.0}, r"--val-fraction must lie in \[0, 1\)"),
        ({"kinds": "other,foo"}, "--kinds foo: unknown; known: other, composition"),
        ({"objective": "supervised"}, "needs --target COLUMN"),
        ({"objective": "deep_infomax+supervised"}, "needs --target COLUMN"),
        ({"objective": "magic"}, "--objective magic: unknown: 'magic'; known: deep_infomax, fingerprint, barlow_twins"),
        ({"objective": "deep_infomax+"}, r"--objective deep_infomax\+: unknown: ''"),
        ({"objective": "fingerprint+fingerprint"}, "each objective is named once; --objective-weights"),
        ({"objective_weights": "1,2"}, "needs one weight for each of deep_infomax; got 2 of them"),
        ({"objective_weights": "much"}, "--objective-weights must be numbers separated by commas; got 'much'"),
        ({"objective_weights": [-1.0]}, "--objective-weights must be finite and not negative; got -1.0"),
        ({"objective_weights": "nan"}, "--objective-weights must be finite and not negative; got nan"),
        ({"fingerprints": "magpie,soap"}, "--fingerprints must be of magpie, radial, each once; got 'magpie,soap'"),
        ({"fingerprints": ["radial", "radial"]}, "--fingerprints must be of magpie, radial, each once"),
        ({"fingerprints": ""}, "--fingerprints must be of magpie, radial, each once; got ''"),
        ({"barlow_channels": 0}, "--barlow-channels must be at least 1; got 0"),
        ({"mask": 1.0}, r"--mask must lie in \[0, 1\); got 1.0"),
        ({"displacement": -0.1}, "--displacement must be finite and not negative"),
        ({"objective": "distillation"}, "--objective distillation needs --teacher FILE: a checkpoint, a network of C"),
        ({"teacher": "a.ckpt"}, "--teacher needs --objective distillation"),
        ({"objective": "distillation", "teacher": "a.pth"}, "--teacher a.pth needs --teacher-atoms FILE"),
        ({"teacher_atoms": "a.json"}, r"--teacher-atoms belongs to a --teacher of Crystal Twins \(.pth or .npz\)"),
        (
            {"objective": "distillation", "teacher": "a.csv", "teacher_atoms": "a.json"},
            "--teacher-atoms belongs to a --teacher of Crystal Twins",
        ),
        ({"readout": "local"}, "--readout local: unknown; known: global, full"),
        ({"init": "a.ckpt", "resume": "b.ckpt"}, "give one of them"),
    ],
)
def test_bad_values_name_their_flag(values, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**values)


def test_lists_may_be_written_with_commas():
    options = TrainOptions(target="band gap, energy", kinds=["other", "permutation"])
    assert options.targets == ["band gap", "energy"]
    assert options.false_kinds == ["other", "permutation"]
    assert TrainOptions().targets == []


def test_objectives_add_up_with_their_weights():
    options = TrainOptions(objective="deep_infomax + fingerprint", fingerprints=["radial", "magpie"])
    assert (options.objectives, options.weights) == (["deep_infomax", "fingerprint"], [1, 1])
    assert options.fingerprint_kinds == ["radial", "magpie"]
    for weights in ("1, 0.5", [1, 0.5]):
        assert replace(options, objective_weights=weights).weights == [1, 0.5]
    assert TrainOptions().objectives == ["deep_infomax"]


def test_the_name_of_a_run_tells_what_it_is():
    assert TrainOptions().run_name == "sitenet-deep-infomax-prototypes"
    assert TrainOptions(data="a/b c/set.json.gz").run_name == "sitenet-deep-infomax-set"
    assert TrainOptions(objective="deep_infomax+fingerprint").run_name == "sitenet-deep-infomax-fingerprint-prototypes"
    assert TrainOptions(name="mine").run_name == "mine"


def test_plain_values_there_and_back():
    options = TrainOptions(encoder={"heads": 2}, target=["a", "b"])
    assert TrainOptions.from_dict(options.to_dict()) == options
    assert TrainOptions.from_dict(options.to_dict() | {"of_a_later_version": 1}) == options


def test_every_option_is_described():
    described = descriptions()
    assert set(described) == set(TrainOptions().to_dict())
    assert all(len(text) > 10 for _, text in described.values())
