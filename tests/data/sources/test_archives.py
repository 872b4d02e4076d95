import gzip
import io
import stat
import struct
import tarfile
import zipfile

import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

CSCL = str(Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(fmt="cif")).encode()


def read(path):
    return read_crystals(open_sources([path]), ImportOptions(50))


def reasons(report):
    return {item.id: item.reason for item in report.left_out}


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data) if info.isfile() else 0
            archive.addfile(info, io.BytesIO(data))
    return path


GOOD = {"cifs/b.cif": CSCL, "cifs/a.CIF": CSCL, "cifs/notes.txt": b"no crystal", "__MACOSX/cifs/._b.cif": b"\x00\x05"}


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_members_are_read_in_the_order_of_the_archive(tmp_path, ending):
    path = tmp_path / f"all.{ending}"
    if ending == "zip":
        write_zip(path, GOOD)
    else:
        write_tar(path, GOOD, {"tar": "w:", "bz2": "w:bz2", "xz": "w:xz"}.get(ending.split(".")[-1], "w:gz"))
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["b", "a"]
    assert raw.z.tolist() == [55, 17] * 2
    assert not report.left_out
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_files_of_the_same_name_are_told_apart_by_their_folder(tmp_path, write):
    raw, report = read(write(tmp_path / "x.zip", {"one/a.cif": CSCL, "two/a.cif": CSCL, "c.cif": CSCL}))
    assert raw.ids.to_pylist() == ["one/a", "two/a", "c"]
    assert report.notes == ["files of the same name: identifiers are places in the archive"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_paths_that_lead_out_of_the_archive_are_not_read(tmp_path, write):
    raw, _ = read(write(tmp_path / "hidden.zip", {".cif": CSCL}))
    assert raw.ids.to_pylist() == [".cif"]
    names = ["../up.cif", "/etc/root.cif", "in/../../out.cif", "C:\\drive.cif", "C:/drive2.cif", "..\\back.cif"]
    raw, report = read(write(tmp_path / "x.zip", {"good.cif": CSCL} | dict.fromkeys(names, CSCL)))
    assert raw.ids.to_pylist() == ["good"]
    assert report.counts() == {"unsafe path in an archive": len(names)}


def test_links_and_devices_are_not_followed(tmp_path):
    (tmp_path / "secret.cif").write_bytes(CSCL)
    link = tarfile.TarInfo("link.cif")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.cif")
    hard = tarfile.TarInfo("hard.cif")
    hard.type, hard.linkname = tarfile.LNKTYPE, "good.cif"
    device = tarfile.TarInfo("device.cif")
    device.type = tarfile.CHRTYPE
    path = write_tar(tmp_path / "x.tar", {"good.cif": CSCL, link: b"", hard: b"", device: b""}, "w:")
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["good"]
    assert reasons(report) == dict.fromkeys(["link", "hard", "device"], "link or device in an archive")

    info = zipfile.ZipInfo("link.cif")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, str(tmp_path / "secret.cif"))
        archive.writestr("good.cif", CSCL)
    raw, report = read(tmp_path / "x.zip")
    assert raw.ids.to_pylist() == ["good"]
    assert reasons(report) == {"link": "link or device in an archive"}


def test_declared_and_real_sizes_are_limited(tmp_path):
    bomb = CSCL + b"# " + b" " * (9 * 2**20)
    for path in (
        write_zip(tmp_path / "x.zip", {"bomb.cif": bomb, "good.cif": CSCL}),
        write_tar(tmp_path / "x.tar.gz", {"bomb.cif": bomb, "good.cif": CSCL}),
    ):
        raw, report = read(path)
        assert raw.ids.to_pylist() == ["good"]
        assert reasons(report) == {"bomb": "too large for one crystal"}


def test_a_member_that_declares_two_gigabytes(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"huge.cif": CSCL, "good.cif": CSCL})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(data)
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["good"]
    assert reasons(report) == {"huge": "too large for one crystal"}

    huge = tarfile.TarInfo("huge.cif")
    huge.size = 2**31
    (tmp_path / "y.tar").write_bytes(huge.tobuf() + CSCL)
    raw, report = read(tmp_path / "y.tar")
    assert len(raw.ids) == 0
    assert report.counts() == {"too large for one crystal": 1, "archive damaged from here on": 1}


def test_an_archive_that_expands_without_reason_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pyg_dim.data.sources.streams.FREE", 10_000)
    members = {f"{k}.cif": CSCL + b" " * 2**20 for k in range(9)}
    _, report = read(write_zip(tmp_path / "x.zip", members | {"last.cif": CSCL}))
    assert 0 < report.counts()["archive expands without reason"] < 9
    _, report = read(write_tar(tmp_path / "x.tar.gz", members | {"last.cif": CSCL}))
    assert report.counts()["archive damaged from here on"] == 1
    assert "expands to more than 200 times its size" in str(report)


def test_damage_spoils_one_member_of_a_zip_and_the_rest_of_a_tar(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.cif": CSCL, "b.cif": CSCL}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["b"]
    assert reasons(report) == {"a": "damaged member of an archive"}

    members = {f"{k}.cif": CSCL for k in range(5)}
    path = write_tar(tmp_path / "x.tar", members, "w:")
    path.write_bytes(path.read_bytes()[:2600])
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["0"]
    assert reasons(report) == {str(path): "archive damaged from here on"}
    assert "at 1.cif" in report.left_out[0].detail


def test_what_is_no_archive_or_has_no_crystal(tmp_path):
    for name, content in (("x.zip", b"PK\x03\x04broken"), ("x.tar.gz", gzip.compress(b"no tar" * 200)), ("y.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a readable"):
            read(tmp_path / name)
    write_zip(tmp_path / "z.zip", {"notes.txt": b"nothing"})
    with pytest.raises(ValueError, match=r"z\.zip holds no CIF or POSCAR"):
        read(tmp_path / "z.zip")


def test_encrypted_members_are_reported(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"locked.cif": CSCL, "good.cif": CSCL})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    path.write_bytes(data)
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["good"]
    assert reasons(report) == {"locked": "encrypted member of an archive"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_are_unpacked_without_a_limit_are_refused(tmp_path, method):
    path = write_zip(tmp_path / "x.zip", {"bomb.cif": CSCL}, method)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("good.cif", CSCL)
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["good"]
    assert reasons(report) == {"bomb": "unusual compression in an archive"}
