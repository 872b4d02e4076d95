"""What happens where the kernels cannot be built, or were built before."""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch

from pyg_dim import native
from pyg_dim.native.library import NoKernelError, call, threads
from pyg_dim.native.mish_norm import mish_norm

# The package has a function of that name.
module = importlib.import_module("pyg_dim.native.library")
build = module.library.__wrapped__  # without the memory of this process
STEP = """
import sys, torch
from pyg_dim import native
from pyg_dim.models import SiteNet
model = SiteNet(16, 16, attention_hidden=[16], value_hidden=[16], pre_pool=[16], post_pool=[16, 16]).double()
model.set_kernels(True)
from conftest import make_batch
from pyg_dim.objectives.deep_infomax import DeepInfoMax
total = DeepInfoMax(model)(make_batch(["NaCl", "ZnS"], sites=4), torch.Generator().manual_seed(0))["total"]
total.backward()
print(native.fault(), float(total.isfinite()), sep="|")
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of one's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """``compiler("exit 1")``: the only compiler on the path is that shell script; ``$REAL`` is the real one."""
    real = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), "none")

    def compiler(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "c++").write_text(f"#!/bin/sh\nREAL={real}\nPATH={os.environ['PATH']}\n{script}\n")
        (folder / "c++").chmod(stat.S_IRWXU)
        module._target.cache_clear()
        monkeypatch.setenv("PATH", str(folder))

    return compiler


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file())


def test_without_a_compiler(monkeypatch, home, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "library", build)
    assert "no C++ compiler" in native.fault.__wrapped__()
    assert not files(home)


@pytest.mark.parametrize(
    "script",
    ["echo lost my way >&2; exit 1",
     'case "$*" in *-dM*) exec $REAL "$@";; esac; echo lost my way >&2; exit 1'],
    ids=["that does not work", "that cannot build"],
)  # fmt: skip
def test_a_compiler(script, monkeypatch, home, compiler) -> None:
    compiler(script)
    monkeypatch.setattr(native, "library", build)
    assert "lost my way" in native.fault.__wrapped__()
    assert not files(home)


def test_a_compiler_that_is_no_program(home, compiler, tmp_path) -> None:
    compiler("")
    (tmp_path / "bin" / "c++").write_bytes(b"\0\1\2")
    with pytest.raises(NoKernelError, match=r"layout\.cpp"):
        build("layout", torch.float32)
    assert not files(home)


def test_a_compiler_that_writes_nonsense(home, compiler) -> None:
    compiler('case "$*" in *-dM*) exec $REAL "$@";; esac; for out; do :; done; echo nonsense > "$out"')
    with pytest.raises(NoKernelError, match="cannot be built or loaded"):
        build("layout", torch.float32)


def test_it_is_tried_once(monkeypatch, home, compiler, tmp_path) -> None:
    compiler(f"echo called >> {tmp_path}/log; exit 1")
    monkeypatch.setattr(native, "library", build)
    monkeypatch.setattr(native, "fault", cache(native.fault.__wrapped__))
    for _ in range(3):
        assert not native.usable(torch.zeros(16))
    assert (tmp_path / "log").read_text().splitlines() == ["called"]


@pytest.mark.usefixtures("kernels")
def test_it_is_built_once(home) -> None:
    build("layout", torch.float64)
    (one,) = files(home)
    before = one.stat().st_mtime_ns
    build("layout", torch.float64)
    assert files(home) == [one]
    assert one.stat().st_mtime_ns == before
    build("mish_norm", torch.float64, CHANNELS=16)
    build("mish_norm", torch.float64, CHANNELS=32)
    build("mish_norm", torch.float32, CHANNELS=32)
    assert len(files(home)) == 4


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_damaged_file_is_built_again(home, damage, monkeypatch, tmp_path) -> None:
    build("mish_norm", torch.float64, CHANNELS=16)
    (one,) = files(home)
    # A process does not open a file again that it has loaded.
    other = tmp_path / "other" / one.relative_to(home)
    other.parent.mkdir(parents=True)
    other.write_bytes(damage(one.read_bytes()))
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    x = torch.randn(3, 16, dtype=torch.float64)
    out, ones = torch.empty_like(x), torch.ones(16, dtype=torch.float64)
    call(build("mish_norm", torch.float64, CHANNELS=16).mish_norm, out, x, ones, ones, 3, threads())
    assert out.equal(mish_norm(x, ones, ones))


@pytest.mark.usefixtures("kernels")
def test_machines_that_share_a_home(home, monkeypatch) -> None:
    build("layout", torch.float32)
    monkeypatch.setattr(module, "_target", lambda compiler: b"another processor")
    build("layout", torch.float32)
    assert len(files(home)) == 2


@pytest.mark.usefixtures("kernels")
def test_the_instructions_are_part_of_the_name() -> None:
    compiler = next(path for path in map(shutil.which, ("c++", "g++", "clang++")) if path)
    text = module._target.__wrapped__(compiler)
    assert text == module._target.__wrapped__(compiler)
    assert b"__VERSION__" in text
    assert any(name in text for name in (b"__SSE2__", b"__ARM_NEON", b"__riscv", b"__ALTIVEC__"))


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parents[1]), *(path for path in sys.path if path)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | environment
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, env=variables)  # noqa: S603


@pytest.mark.usefixtures("kernels")
def test_two_processes_at_once_and_one_without_a_folder(home, tmp_path) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started = [start(STEP), start(STEP), start(STEP, HOME=str(no_folder), TMPDIR=str(temporary))]
    for process in started:
        out, errors = process.communicate(timeout=300)
        assert out.strip() == "None|1.0", errors
    assert len({path.name.rsplit("-", 1)[0] for path in files(home)}) > 3
    assert not [path for path in files(home) if path.name.startswith("tmp")]
    assert not [path for path in temporary.iterdir() if path.name.startswith("pyg_dim")]


def test_a_step_without_a_compiler(tmp_path) -> None:
    process = start(STEP, PATH=str(tmp_path))
    out, errors = process.communicate(timeout=300)
    assert "no C++ compiler" in out, errors
    assert out.strip().endswith("|1.0")
    assert "no C++ compiler" in errors  # it is logged


@pytest.mark.usefixtures("kernels")
def test_calls_of_several_threads_at_once() -> None:
    x, ones = torch.randn(64, 500, 16), torch.ones(16)
    expected = [mish_norm(one, ones, ones) for one in x]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: mish_norm(one, ones, ones), x)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("kernels")
def test_no_strides() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        module.pointer(torch.zeros(4, 4).T)
