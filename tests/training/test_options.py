from __future__ import annotations

import pytest

from pyg_dim.training.options import TrainOptions, descriptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1; got 0"),
        ({"batch_sites": -1}, "--batch-sites must be at least 1"),
        ({"devices": 0}, "--devices must be at least 1"),
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


def test_the_name_of_a_run_tells_what_it_is():
    assert TrainOptions().run_name == "sitenet-deep-infomax-prototypes"
    assert TrainOptions(data="a/b c/set.json.gz").run_name == "sitenet-deep-infomax-set"
    assert TrainOptions(name="mine").run_name == "mine"


def test_plain_values_there_and_back():
    options = TrainOptions(encoder={"heads": 2}, target=["a", "b"])
    assert TrainOptions.from_dict(options.to_dict()) == options
    assert TrainOptions.from_dict(options.to_dict() | {"of_a_later_version": 1}) == options


def test_every_option_is_described():
    described = descriptions()
    assert set(described) == set(TrainOptions().to_dict())
    assert all(len(text) > 10 for _, text in described.values())
