import json
from pathlib import Path

import numpy as np
import pytest

from fastood.data.__main__ import main
from fastood.data.packed import writer as packing
from fastood.data.packed.packed_pool import open_packed
from tests.support.packed_pool_samples import flip_byte, write_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tree(tmp_path / "tree", per_class=12)


def test_pack_info_verify(tree, capsys):
    assert main(["pack", "folder:tree", "pool", "--size", "16", "--channels", "1", "--threads", "2"]) == 0
    assert "25 images, 0.0 MiB: pool" in capsys.readouterr().out
    assert main(["info", "pool"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for row in ("packed from │ folder:tree", "images │ 25", "pixels, 1×16×16", "exact duplicates │ 1", "classes │ 2"):
        assert row in shown
    assert main(["verify", "pool"]) == 0
    assert capsys.readouterr().out == "pool: 25 images, all intact\n"
    flip_byte(Path("pool/images.npy"), 128)
    assert main(["verify", "pool"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("damaged: image 0 has sha256 ")
    assert shown.endswith("pool: 25 images, 1 damaged\n")


def test_a_pool_of_files_is_packed_again_at_one_size(tree):
    assert main(["pack", "folder:tree", "files", "--store", "jpeg"]) == 0
    assert main(["pack", "packed:files", "pool", "--size", "16"]) == 0
    assert main(["pack", "folder:tree", "direct", "--size", "16"]) == 0
    assert Path("pool/images.npy").read_bytes() == Path("direct/images.npy").read_bytes()


def test_skipped_images_are_listed(tree, capsys):
    for i in range(12):
        (tree / f"ant/{i:03}.jpg").write_bytes(b"no image")
        (tree / f"bee/{i:03}.jpg").write_bytes(b"no image")
    assert main(["pack", "folder:tree", "pool"]) == 0
    assert main(["info", "pool"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("skipped: 4 more; info --skipped lists them") == 2
    assert "skipped: image 0: unreadable image tree/ant/000.jpg" in shown
    assert main(["info", "pool", "--skipped"]) == 0
    assert capsys.readouterr().out.count("skipped: image") == 24


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pack", "folder:none", "pool"], "error: source: there is no folder none"),
        (["pack", "gaussian", "pool"], "error: source must be read from files"),
        (["pack", "somewhere", "pool"], "error: source: unknown source 'somewhere'"),
        (["pack", "torchvision:CIFAR10", "pool", "--root", "none"], "there is no folder none"),
        (["pack", "npy:bad.npy", "pool"], "error: source: bad.npy is not an .npy array"),
        (["pack", "folder:tree", "taken"], "error: taken exists"),
        (["pack", "folder:tree", "pool", "--strict"], "unreadable image tree/bee/004.jpg"),
        (["info", "none"], "error: there is no packed pool none"),
        (["verify", "tree"], "error: tree is not a packed pool"),
    ],
)
def test_errors_are_one_line(tree, capsys, args, message):
    Path("taken").mkdir()
    Path("bad.npy").write_bytes(b"no array")
    (tree / "bee/004.jpg").write_bytes(b"no image")
    assert main(args) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert message in shown


def test_interrupt_keeps_what_there_is(tree, capsys, monkeypatch):
    def interrupt(partial, plan, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_header", interrupt)
        assert main(["pack", "folder:tree", "pool"]) == 130
    assert "repeat the command to resume" in capsys.readouterr().err
    assert sorted(entry.name for entry in Path().iterdir()) == ["pool.partial", "tree"]
    assert main(["pack", "folder:tree", "pool"]) == 0
    assert len(open_packed(Path("pool"))) == 25


def test_verify_counts_what_it_does_not_show(tree, capsys):
    np.save("x.npy", np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8))
    assert main(["pack", "npy:x.npy", "pool", "--size", "8"]) == 0
    for i in range(30):
        flip_byte(Path("pool/images.npy"), 128 + 64 * i)
    assert main(["verify", "pool"]) == 1
    assert "and 10 more\npool: 30 images, 30 damaged\n" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", {}),
        ("sha256", {}),
        ("sha256", {"../tree/ant/000.jpg": "0"}),
        ("bytes", []),
        ("class_names", None),
        ("images", "many"),
        ("store", "boxes"),
        ("skipped", 3),
    ],
)
def test_a_damaged_description_is_named(tree, capsys, store, field, value):
    assert main(["pack", "folder:tree", "pool", "--store", store]) == 0
    header = json.loads(Path("pool/pool.json").read_bytes())
    del header[field]
    for damaged in (header, {**header, field: value}):
        Path("pool/pool.json").write_text(json.dumps(damaged))
        for command in ("info", "verify"):
            assert main([command, "pool"]) == 1
            assert "pool.json is damaged: " in capsys.readouterr().err.splitlines()[-1]


def test_indices_that_lead_out_of_a_pool_are_named(tree, capsys):
    assert main(["pack", "folder:tree", "pool", "--store", "jpeg"]) == 0
    whole = {name: np.load(f"pool/{name}.npy") for name in ("labels", "offsets")}
    for name, place, value, message in (
        ("labels", 3, 2, "labels.npy is damaged: labels must be in -1…1, got 0…2"),
        ("labels", 0, -2, "labels.npy is damaged: labels must be in -1…1, got -2…1"),
        ("offsets", 4, 10**9, "offsets.npy is damaged: offsets must ascend from 0 to"),
        ("offsets", 0, 1, "offsets.npy is damaged: offsets must ascend from 0 to"),
    ):
        array = whole[name].copy()
        array[place] = value
        # In place: the file keeps its header and its size.
        mapped = np.load(f"pool/{name}.npy", mmap_mode="r+")
        mapped[:] = array
        mapped.flush()
        assert main(["info", "pool"]) == 1
        assert message in capsys.readouterr().err
        mapped[:] = whole[name]
        mapped.flush()
    assert main(["verify", "pool"]) == 0


def test_control_codes_do_not_reach_the_terminal(tree, capsys):
    (tree / "ant\x1b[31m").mkdir()
    (tree / "ant\x1b[31m" / "0.jpg").write_bytes(b"no image")
    Path("bad\x1b[31m.txt").write_text("nowhere\x1b[31m.png\n")
    assert main(["pack", "folder:tree", "pool"]) == 0
    assert main(["info", "pool", "--skipped"]) == 0
    assert main(["pack", "list:bad\x1b[31m.txt", "other"]) == 1
    assert main(["pack", "list:none\x1b[31m.txt", "other"]) == 1
    shown = capsys.readouterr()
    assert "\x1b[31m" not in shown.out + shown.err
    assert r"ant\x1b[31m/0.jpg" in shown.out
