from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pyg_dim import cli, export, load, models
from pyg_dim.cli import main, parse_train
from pyg_dim.training.checkpoints import read_checkpoint
from pyg_dim.training.options import TrainOptions

ROOT = Path(__file__).parents[1]
SMALL = [
    "--no-compile", "--accelerator=cpu", "--batch-sites=24", "--encoder.site_channels=8", "--encoder.pair_channels=8",
    "--encoder.attention_hidden=[8]", "--encoder.value_hidden=[8]", "--encoder.local_channels=8",
    "--encoder.pre_pool=[8]", "--encoder.post_pool=[8,8]", "--encoder.supercell_sites=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Path of 48 rock salt crystals with the label "energy"."""
    pairs = [(a, x) for a in ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba") for x in ("F", "Cl", "Br", "O", "S", "Se")]
    cell = (np.ones((3, 3)) - np.eye(3)) * 2.8
    table = {
        "lattice_vectors": [cell.tolist()] * len(pairs),
        "species_at_sites": [list(pair) for pair in pairs],
        "cartesian_site_positions": [[[0.0, 0.0, 0.0], (cell.sum(0) / 2).tolist()]] * len(pairs),
        "energy": [float(row % 7) for row in range(len(pairs))],
    }
    path = tmp_path_factory.mktemp("data") / "salts.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def arguments(parquet, tmp_path):
    """Flags of a run of a second."""
    return ["train", f"--data={parquet}", f"--logdir={tmp_path / 'runs'}", "--epochs=1", "--name=run", *SMALL]


def test_the_defaults_are_those_of_the_options():
    assert parse_train([]) == TrainOptions(encoder=parse_train([]).encoder)
    assert parse_train([]).encoder["site_channels"] == 64


def test_flags_are_hyphenated_and_reach_the_options():
    chosen = parse_train(
        ["--model", "sitenet", "--objective", "supervised", "--target", "a,b c", "--batch-sites", "600", "--lr", "3e-4",
         "--no-compile", "--no-isolate", "--precision", "bf16", "--val-fraction=0.2", "--encoder.heads", "2",
         "--encoder.pre_pool", "[32, 64]", "--kinds", "other,permutation"]
    )  # fmt: skip
    assert chosen.targets == ["a", "b c"]
    assert (chosen.batch_sites, chosen.lr, chosen.val_fraction, chosen.precision) == (600, 3e-4, 0.2, "bf16")
    assert (chosen.compile, chosen.isolate) == (False, False)
    assert chosen.encoder["heads"] == 2
    assert chosen.encoder["pre_pool"] == [32, 64]
    assert chosen.false_kinds == ["other", "permutation"]


def test_help_tells_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in TrainOptions().to_dict():
        assert f"--{name.replace('_', '-')}" in text
    for flag in ("--config", "--print-config", "--no-compile", "--encoder.heads"):
        assert flag in text
    assert "default: 0.0001" in text


def test_a_printed_configuration_can_be_read_again(capsys, tmp_path):
    flags = ["--epochs=7", "--encoder.heads=3", "--target=a", "--no-isolate"]
    with pytest.raises(SystemExit) as stop:
        main(["train", *flags, "--print-config"])
    assert stop.value.code == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    assert set(yaml.safe_load(file.read_text())) == set(TrainOptions().to_dict())
    assert parse_train(["--config", str(file)]) == parse_train(flags)
    assert parse_train(["--config", str(file), "--epochs=8"]).epochs == 8


def test_a_file_may_hold_any_option_as_a_list_or_with_commas(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: sitenet\nbatch_sites: 100\ntarget: [a, b]\nkinds: [other]\nencoder:\n  blocks: 2\n")
    chosen = parse_train([f"--config={file}"])
    assert chosen.targets == ["a", "b"]
    assert chosen.false_kinds == ["other"]
    assert (chosen.batch_sites, chosen.encoder["blocks"]) == (100, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epoch-count", "3"], "--epoch-count"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--model", "megnet", "--encoder.k", "5"], "unrecognized arguments: --encoder.k 5"),
        (["--model", "cgcnn", "--encoder.gaussian=20"], "unrecognized arguments: --encoder.gaussian=20"),
        (["--epochs", "many"], "epochs"),
        (["--model", "nonet"], "sitenet"),
        (["--objective", "magic"], "deep_infomax"),
        (["--encoder.wings", "2"], "encoder.wings"),
        (["--encoder.heads", "two"], "heads"),
        (["--precision", "8"], "bf16"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--model"], "--model"),
    ],
)
def test_wrong_flags_exit_with_2_and_are_named(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_option_of_an_encoder_tells_where_its_options_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "cgcnn", "--encoder.gaussian", "20"])
    (command,) = re.findall(r"run: pyg-dim (.*)", capsys.readouterr().err)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--encoder.gaussian_step" in text
    assert text.startswith("usage: pyg-dim train [options]")


@pytest.mark.parametrize(
    "text",
    [
        "epochs: !!python/object/apply:pathlib.Path.touch [written]\n",
        "encoder:\n  class_path: subprocess.Popen\n  init_args: {args: [touch, written]}\n",
        "target:\n  class_path: pathlib.Path\n",
        "nonsense: 3\n",
        "epochs: [\n",
    ],
)
def test_a_file_of_anything_else_is_refused_and_runs_no_code(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "run.yaml"])
    assert stop.value.code == 2
    assert capsys.readouterr().err
    assert not Path("written").exists()


def test_options_of_an_encoder_are_plain_values():
    # What a YAML file may set must not name a class to be imported.
    plain = {"int", "float", "str", "bool", "Sequence", "list", "Literal", "None"}
    plain |= {"KLForm", "NoiseForm", "CriticName", "Estimator"}  # each a Literal
    for model in cli.MODELS.values():
        for kind in (v for name, v in model.__init__.__annotations__.items() if name != "return"):
            assert set(re.findall(r"[A-Za-z]+", str(kind))) <= plain


def test_a_run_prints_its_epochs_and_its_summary(arguments, capsys, tmp_path):
    assert main([*arguments, "--epochs=2"]) == 0
    out = capsys.readouterr().out
    assert "48 of 48 crystals kept" in out
    assert re.search(r"split: \d+ crystals to train on, \d+ to validate on", out)
    assert re.search(r"model: sitenet, \d+ parameters; objective: deep_infomax", out)
    line = re.search(r"epoch 2/2 \| train (.*) \| val (.*) \| (\d+) crystals/s", out)
    assert line
    assert all("js/local" in part and "js/global" in part for part in line.groups()[:2])
    assert f"tensorboard --logdir {tmp_path / 'runs'}" in out
    assert "energy" in out
    assert (tmp_path / "runs" / "run" / "summary.md").exists()


def test_user_errors_are_one_line_and_exit_with_1(arguments, capsys, tmp_path):
    assert main([*arguments, "--objective=supervised", "--target=enrgy"]) == 1
    error = capsys.readouterr().err.strip()
    assert re.fullmatch(r"error: .*no target column 'enrgy'.*'energy'", error)
    assert main(["train", f"--data={tmp_path / 'none.parquet'}"]) == 1
    assert re.fullmatch(r"error: no such file.*none\.parquet.*", capsys.readouterr().err.strip())
    assert main([*arguments, "--init=none.ckpt"]) == 1
    assert capsys.readouterr().err.strip() == "error: no checkpoint at none.ckpt"
    (tmp_path / "file").write_text("")
    assert main([*arguments, f"--logdir={tmp_path / 'file'}"]) == 1
    assert re.fullmatch(r"error: cannot make the folder .*choose --logdir", capsys.readouterr().err.strip())
    assert main(["train", "--epochs=0"]) == 1
    assert capsys.readouterr().err.strip() == "error: --epochs must be at least 1; got 0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder.site_channels=-4"], r"--model sitenet cannot be built: .*site_channels.*-4"),
        (["--encoder.site_channels=0"], r"--model sitenet cannot be built: .*site_channels.*"),
        (["--encoder.pre_pool=[0]"], r"--model sitenet cannot be built: .*pre_pool.*"),
        (["--encoder.attention_hidden=[]"], r"--model sitenet cannot be built: .*attention_hidden.*"),
        (["--encoder.site_channels=99999999999999"], r"--model sitenet cannot be built: .*"),
        (["--kinds="], r"Deep InfoMax needs at least one kind.*"),
        (["--weight-decay=-1"], r"--weight-decay must be finite and not negative; got -1\.0"),
        (["--seed=99999999999999999999"], r"--seed must .* got 99999999999999999999"),
        (["--name=../elsewhere"], r"--name must be the name of one folder.*"),
    ],
)
def test_values_out_of_range_are_one_line(arguments, capsys, tmp_path, flags, message):
    assert main([*arguments, *flags]) == 1
    assert re.fullmatch(f"error: {message}", capsys.readouterr().err.strip())
    assert not (tmp_path / "elsewhere").exists()


def test_a_device_that_is_not_there_is_no_traceback(arguments, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*arguments, "--accelerator=gpu"]) == 1
    assert re.fullmatch(r"error: --accelerator gpu needs a CUDA device.*", capsys.readouterr().err.strip())


def test_without_a_working_compiler_a_run_says_why_and_goes_on(arguments, capsys, monkeypatch):
    def broken(function, **options):
        raise RuntimeError("\nInvalidCxxCompiler: no working compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    assert main([*arguments, "--compile"]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: torch.compile does not work here") == 1
    assert "slower): InvalidCxxCompiler: no working compiler\n" in out
    assert "epoch 1/1" in out


def test_false_samples_that_are_impossible_are_told(arguments, capsys, tmp_path):
    # Two sites a batch are one crystal, which has no other.
    assert main([*arguments, "--batch-sites=2", "--kinds=other", "--epochs=2"]) == 0
    out = capsys.readouterr().out
    text = "not one valid false sample was found for local_level, global_level, so nothing is learned there"
    assert out.count(f"warning: {text}: add kinds (--kinds), or raise --batch-sites") == 1
    summary = (tmp_path / "runs" / "run" / "summary.md").read_text()
    assert f"- note: training: {text}" in summary
    assert "js/local" not in summary


def test_unexpected_errors_keep_their_traceback(arguments, monkeypatch):
    def broken(options):
        return math.sqrt(-1.0) + int("x")

    def fail(options):
        raise TypeError("a bug")

    for function, kind in ((broken, ValueError), (fail, TypeError)):
        monkeypatch.setattr(cli, "train", function)
        with pytest.raises(kind):
            main(arguments)


def test_ctrl_c_outside_of_training_is_no_traceback(arguments, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_resuming_takes_the_options_of_the_run(arguments, capsys, tmp_path):
    assert main([*arguments, "--seed=5"]) == 0
    last = tmp_path / "runs" / "run" / "last.ckpt"
    capsys.readouterr()
    assert main(["train", "--resume", str(last), "--epochs", "2"]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    about = read_checkpoint(last)
    assert about["pyg_dim"]["options"]["seed"] == 5
    assert about["pyg_dim"]["options"]["encoder"]["site_channels"] == 8
    # The same command line with --resume added is fine, another option is not.
    assert parse_train([*arguments[1:], "--seed=5", f"--resume={last}", "--epochs=3"]).epochs == 3
    assert main([*arguments, "--seed=6", f"--resume={last}"]) == 1
    assert re.search(r"seed was 5 and is now 6.*--init .*last\.ckpt", capsys.readouterr().err)
    assert main(["train", f"--resume={last}", "--encoder.heads=2", "--encoder.pre_pool=[4]"]) == 1
    error = capsys.readouterr().err
    assert "started with, but encoder.heads was 1 and is now 2, encoder.pre_pool was [8] and is now [4]: leave" in error
    assert main(["train", f"--resume={last}", "--epochs=3", "--devices=2"]) == 1
    assert "devices was 1 and is now 2" in capsys.readouterr().err
    for flag in ("--name=other", f"--logdir={tmp_path / 'other'}"):
        assert main(["train", f"--resume={last}", "--epochs=3", flag]) == 1
        error = capsys.readouterr().err.strip()
        assert re.fullmatch(r"error: --resume goes on in the folder of its checkpoint.*leave out --logdir.*", error)
    assert main(["train", f"--resume={last}", "--epochs=2"]) == 1
    assert re.fullmatch(r"error: the run is complete: raise --epochs to go on .*", capsys.readouterr().err.strip())


def test_resuming_can_be_asked_for_in_a_file(arguments, tmp_path):
    assert main(arguments) == 0
    file = tmp_path / "again.yaml"
    file.write_text(f"resume: {tmp_path / 'runs' / 'run' / 'last.ckpt'}\nepochs: 2\n")
    chosen = parse_train(["--config", str(file)])
    assert chosen.epochs == 2
    assert chosen.encoder["site_channels"] == 8


def start(arguments):
    """Run train.py in a process of its own."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, str(ROOT / "train.py"), *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_ctrl_c_saves_and_says_how_to_resume(arguments, tmp_path, capsys):
    process = start([*arguments, "--epochs=100000"])
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    text = "".join(lines)
    last = tmp_path / "runs" / "run" / "last.ckpt"
    assert "Traceback" not in text
    assert f"resume with: python train.py --resume {last}" in text
    epoch = read_checkpoint(last)["epoch"]
    assert epoch >= 1
    assert main(["train", "--resume", str(last), "--epochs", str(epoch + 2)]) == 0
    assert f"epoch {epoch + 2}/{epoch + 2}" in capsys.readouterr().out


def test_two_processes_share_a_run(arguments, tmp_path):
    began = time.time()
    process = start([*arguments, "--devices=2", "--epochs=2"])
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    assert "epoch 2/2" in text
    assert text.count("saved in") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert read_checkpoint(tmp_path / "runs" / "run" / "last.ckpt")["epoch"] == 1
    assert (tmp_path / "runs" / "run" / "summary.csv").stat().st_mtime >= began - 1


def test_a_run_that_starts_from_an_encoder_has_its_architecture_and_options(tmp_path, capsys, caplog):
    """What is given besides wins, and what cannot fit is still refused."""
    chosen = parse_train(["--init=sitenet-dim", "--objective=supervised", "--target=gap"])
    assert (chosen.model, chosen.init, chosen.lr) == ("sitenet", "sitenet-dim", TrainOptions.lr)
    assert chosen.encoder == dict(load("sitenet-dim").config)
    path = tmp_path / "cgcnn.safetensors"
    export(models.build("cgcnn", site_channels=16, convolutions=1), path)
    chosen = parse_train([f"--init={path}", "--encoder.cutoff=5.0"])
    assert (chosen.model, chosen.encoder["site_channels"], chosen.encoder["cutoff"]) == ("cgcnn", 16, 5.0)
    contents = read_checkpoint(path)
    contents["pyg_dim"]["encoder"]["later"] = 3
    torch.save(contents, tmp_path / "later.ckpt")
    assert parse_train([f"--init={tmp_path / 'later.ckpt'}"]).encoder == parse_train([f"--init={path}"]).encoder
    assert "later.ckpt has options that cgcnn does not have here: later" in caplog.text
    assert main(["train", f"--init={path}", "--model=sitenet"]) == 1
    assert "holds a cgcnn encoder, but this run is to train sitenet" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["5", "[a]", "{a: 1}"])
def test_a_file_of_options_whose_encoder_is_no_text_is_refused(tmp_path, capsys, value):
    (tmp_path / "run.yaml").write_text(f"init: {value}\n")
    with pytest.raises(SystemExit) as stop:
        parse_train([f"--config={tmp_path / 'run.yaml'}"])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
