"""Lists of image files as editors and spreadsheets leave them."""

import os
from pathlib import Path

import pytest

from fastood.data.sources.image_lists import read_list


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images beside the list, and another in which the program runs."""
    for name in ("beside/a.png", "beside/b.png", "here/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "beside"


def names(folder: Path, content: bytes, **options: Path) -> list[str]:
    (folder / "some.txt").write_bytes(content)
    return [os.path.relpath(file, folder) for file in read_list(folder / "some.txt", option="ood", **options)]


@pytest.mark.parametrize(
    "content",
    [
        b"a.png\nb.png\n",
        b"a.png\nb.png",
        b"\xef\xbb\xbfa.png\nb.png\n",
        b"a.png\r\nb.png\r\n",
        b"\n\r\n  \t\na.png\n\nb.png\n\n",
        b"a.png   \n  b.png\t\r\n",
        b"# two of them\na.png\n# b comes last\nb.png\n",
    ],
)
def test_every_spelling_of_a_list_is_read(folder: Path, content: bytes):
    assert names(folder, content) == ["a.png", "b.png"]


def test_line_separators_and_blanks_in_names_are_kept(folder: Path):
    odd = ["two\u2028lines.png", "next\x85line.png", " blank .png ", "#1.png", "page\x0cbreak.png"]
    for name in odd:
        (folder / name).write_bytes(b"")
    assert names(folder, "\n".join(odd).encode()) == odd


def test_relative_paths_count_from_the_list_and_else_from_the_folder_given(folder: Path, tmp_path: Path):
    assert names(folder, b"c.png") == [os.path.relpath("c.png", folder)]
    assert read_list(folder / "some.txt", option="ood") == ("c.png",), "as the program that wrote it saw it"
    assert names(folder, b"c.png", root=tmp_path / "here") == ["../here/c.png"]
    assert names(folder, b"missing.png") == ["missing.png"]
    (Path.cwd() / "a.png").write_bytes(b"")
    assert names(folder, b"a.png\nc.png") == ["a.png", "c.png"], "one folder for all lines"
    assert names(folder, f"{folder}/a.png\n{tmp_path}/here/c.png".encode()) == ["a.png", "../here/c.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png\n".encode("utf-16"), "must list one path per line in UTF-8, got UTF-16: save it as UTF-8"),
        ("a.png\n".encode("utf-16-le"), "must list one path per line in UTF-8, got a file with zero bytes"),
        ("ä.png\n".encode("latin-1"), r"must list one path per line in UTF-8, got .*\\xe4.png, where no file is"),
    ],
)
def test_other_encodings_are_refused(folder: Path, content: bytes, message: str):
    with pytest.raises(ValueError, match=rf"data.ood: .*some.txt {message}"):
        names(folder, content)


def test_names_of_bytes_that_are_no_utf8_are_read(folder: Path):
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb"):  # noqa: PTH123
        pass
    assert names(folder, b"caf\xe9.png") == ["caf\udce9.png"]
