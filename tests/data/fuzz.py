"""Inputs for the import that are broken in every way we could think of; also run on its own, see ``--help``."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import resource
import signal
import struct
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import ase.io
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CIFS = [
    str(CifWriter(SALT)),
    str(CifWriter(CSCL)),
    str(CifWriter(SALT, symprec=0.01)),
    str(CifWriter(SALT)).replace("  1\n  Cl  Cl5", "  0.5\n  Cl  Cl5"),
    str(CifWriter(CSCL)) + str(CifWriter(SALT, symprec=0.01)),
]
NUMBERS = ["1e999", "-1e308", "nan", "inf", "9" * 400, "-0.5", "1e-300", "0", "?", ".", "5(", "0x10", "1_0", "٣", ""]
WORDS = ["loop_", "data_", "_atom_site_label", "'", '"', ";", "\n;\n", "#", "\x00", "\ufeff", "save_", "_cell_length_a"]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Some damage to a text."""
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(9)
        place = rng.randrange(len(data) + 1)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + rng.randbytes(rng.randint(1, 40)) + data[place + rng.randint(0, 40) :]
        elif kind == 2:
            fields = data.split(b" ")
            fields[rng.randrange(len(fields))] = rng.choice(NUMBERS).encode()
            data = b" ".join(fields)
        elif kind == 3:
            data = data[:place] + rng.choice(WORDS).encode() + data[place:]
        elif kind == 4:
            lines = data.split(b"\n")
            chosen = rng.randrange(len(lines))
            lines[chosen:chosen] = [rng.choice(lines)] * rng.choice([1, 2, 300])
            data = b"\n".join(lines)
        elif kind == 5:
            data = data.decode("utf-8", "replace").encode(
                rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"]), "replace"
            )
        elif kind == 6:
            data = data.replace(
                rng.choice([b"0.5", b"1", b"90", b"."]), rng.choice(NUMBERS).encode(), rng.randint(1, 9)
            )
        elif kind == 7:
            data = data.replace(b"  1\n", rng.choice([b"  -1\n", b"  2\n", b"  0.3\n", b"\n"]), rng.randint(1, 9))
        else:
            data = data[:place] + rng.choice([b"'a", b"(", b"[", b"{", b" ", b"\n", b"9", b"x,"]) * rng.choice(
                [10, 50_000]
            )
    return data


def some_cif(rng: random.Random) -> bytes:
    text = rng.choice(CIFS).encode()
    return text if rng.random() < 0.2 else mutate(rng, text)


def make_cif(rng: random.Random, folder: Path) -> Path:
    (folder / "x.cif").write_bytes(mutate(rng, rng.choice(CIFS).encode()))
    return folder / "x.cif"


def make_folder(rng: random.Random, folder: Path) -> Path:
    for name in "abc":
        (folder / f"{name}.cif").write_bytes(some_cif(rng))
    (folder / "id_prop.csv").write_bytes(mutate(rng, b"id,gap (eV)\na,1.5\nb,2.5\nc,3.5\n"))
    return folder


def make_json(rng: random.Random, folder: Path) -> Path:
    rows = [[s.as_dict(), rng.choice([1.0, None, 10**400, "wide", True])] for s in rng.choices([SALT, CSCL], k=3)]
    data = json.dumps({"index": ["a", "b", "c"], "columns": ["structure", "gap"], "data": rows}).encode()
    if rng.random() < 0.9:
        data = mutate(rng, data)
    if rng.random() < 0.4:
        data = gzip.compress(data)
        data = mutate(rng, data) if rng.random() < 0.5 else data
    (folder / "x.json").write_bytes(data)
    return folder / "x.json"


def make_csv(rng: random.Random, folder: Path) -> Path:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["material_id", "cif", "gap (eV)"])
    for name in "abcd":
        writer.writerow([name, some_cif(rng).decode("latin-1"), rng.choice(NUMBERS)])
    data = file.getvalue().encode()
    (folder / "x.csv").write_bytes(mutate(rng, data) if rng.random() < 0.8 else data)
    return folder / "x.csv"


def make_extxyz(rng: random.Random, folder: Path) -> Path:
    file = io.StringIO()
    ase.io.write(
        file, [bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("MgO", "rocksalt", a=4.2)] * 2, format="extxyz"
    )
    data = mutate(rng, file.getvalue().encode())
    if rng.random() < 0.2:
        data = b"99999999999999\n" + data
    (folder / "x.extxyz").write_bytes(data)
    return folder / "x.extxyz"


def make_poscar(rng: random.Random, folder: Path) -> Path:
    data = SALT.to(fmt="poscar").encode()
    data = mutate(rng, data) if rng.random() < 0.8 else data
    if rng.random() < 0.2:
        data = data.replace(b"4 4", rng.choice([b"999999999 4", b"-4 4", b"1e9 4", b"4"]))
    (folder / "POSCAR").write_bytes(data)
    return folder / "POSCAR"


NAMES = [
    "a.cif",
    "b/a.cif",
    "../up.cif",
    "/etc/x.cif",
    "C:\\x.cif",
    "..\\x.cif",
    ".cif",
    "é" * 90 + ".cif",
    "n.txt",
]


def make_zip(rng: random.Random, folder: Path) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name in rng.sample(NAMES, 5):
            archive.writestr(name, some_cif(rng))
        if rng.random() < 0.3:
            archive.writestr("bomb.cif", b" " * rng.choice([2**20, 2**24]), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.4:
        # A size that is not true: two gigabytes, in the directory or in front of the member.
        signature, offset = rng.choice([(b"PK\x01\x02", 24), (b"PK\x03\x04", 22)])
        place = data.index(signature) + offset
        data[place : place + 4] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(bytes(data) if rng.random() < 0.5 else mutate(rng, bytes(data)))
    return path


def make_tar(rng: random.Random, folder: Path) -> Path:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in rng.sample(NAMES, 5):
            info = tarfile.TarInfo(name.replace("\x00", "0"))
            content = some_cif(rng)
            info.size = len(content)
            if rng.random() < 0.2:
                info.type, info.linkname, info.size = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), "/etc/passwd", 0
            archive.addfile(info, io.BytesIO(content))
    data = file.getvalue()
    if rng.random() < 0.3:
        huge = tarfile.TarInfo("huge.cif")
        huge.size = 2**31
        if rng.random() < 0.3:
            huge.type = tarfile.XHDTYPE
        data = data[: -2 * 512] + huge.tobuf() + data
    if rng.random() < 0.5:
        data = mutate(rng, data)
    if rng.random() < 0.5:
        data = gzip.compress(data + bytes(rng.choice([0, 2**25])))
        data = mutate(rng, data) if rng.random() < 0.4 else data
    (folder / "x.tar").write_bytes(data)
    return folder / "x.tar"


MAKERS = [make_cif] * 5 + [
    make_folder,
    make_json,
    make_json,
    make_csv,
    make_csv,
    make_extxyz,
    make_poscar,
    make_zip,
    make_tar,
]


def try_input(seed: int, folder: Path) -> tuple[str, str]:
    """Make an input and import it.

    Returns:
        How it was made, and what came of it: "read", or why it was refused as a whole.

    Raises:
        AssertionError: something was left out without a reason, or the counts do not add up.
    """
    rng = random.Random(seed)
    maker = MAKERS[seed % len(MAKERS)]
    source = maker(rng, folder)
    try:
        raw, report = read_crystals(open_sources([source]), ImportOptions(50))
    except (ValueError, FileNotFoundError) as error:
        return maker.__name__, "refused" if str(source.parent) in str(error) else f"refused without its name: {error}"
    assert len(raw.ids) == report.num_kept
    assert all(item.id and item.reason for item in report.left_out)
    json.dumps([item.id for item in report.left_out]).encode()
    assert {path.parent for path in folder.rglob("*")} <= {folder}
    return maker.__name__, "read" if report.num_kept else "nothing left"


class LateError(BaseException):
    """Not to be caught by what catches the errors of parsers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of addresses beyond those of the start")
    parser.add_argument("--seconds", type=int, default=10, help="for each input")
    chosen = parser.parse_args()

    def late(*_: object) -> None:
        raise LateError(f"more than {chosen.seconds} s")

    with tempfile.TemporaryDirectory() as name:
        try_input(0, Path(name))  # imports what is needed
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(chosen.memory * 2**30),) * 2)
    signal.signal(signal.SIGALRM, late)
    results, slowest, failures = Counter(), (0.0, 0), []
    for seed in range(chosen.first, chosen.first + chosen.inputs):
        with tempfile.TemporaryDirectory() as name:
            start = time.perf_counter()
            signal.alarm(chosen.seconds)
            try:
                results[try_input(seed, Path(name))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {error}"[:300], flush=True)
            signal.alarm(0)
            slowest = max(slowest, (time.perf_counter() - start, seed))
    for (maker, result), count in sorted(results.items()):
        print(f"{maker:12} {result:13} {count:5}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{chosen.inputs} inputs, {len(failures)} failures {failures[:20]}")
    print(f"slowest {slowest[0]:.1f} s (seed {slowest[1]}), peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
