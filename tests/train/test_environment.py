"""Where a run came from: sessions beside metrics.json, and no place of the sender's disk."""

import json
import socket
from pathlib import Path

import pytest
import torch

from fastood.train.environment import begin_session, end_session, read_sessions, without_location


def test_a_run_has_a_session_for_every_time_it_was_begun(tmp_path: Path):
    path = tmp_path / "environment.json"
    end_session(path)
    assert not path.exists()
    begin_session(path, command="python -m fastood.train msp", device="cpu")
    begin_session(path, command="python -m fastood.train msp --resume", device="cpu", processes=2)
    end_session(path)
    first, last = read_sessions(path)
    assert first["seconds"] is None
    assert last["seconds"] >= 0
    assert last["processes"] == 2
    assert last["torch"] == torch.__version__
    assert last["threads"] == torch.get_num_threads()
    assert socket.gethostname() not in last["device_name"]
    assert json.loads(path.read_text())["schema"] == 1


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"schema": 9, "sessions": [{}]}', '{"schema": 1}', '{"schema": 1, "sessions": 5}'),
        *('{"schema": 1, "sessions": [5]}', '{"schema": 1, "sessions": [{"began": "2026-01-01T00:00:00+00:00"}]}'),
        '{"schema": 1, "sessions": {"a": 1}}',
    ],
)
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: str):
    path = tmp_path / "environment.json"
    path.write_text(content)
    assert read_sessions(path) == []
    begin_session(path, command="x", device="cpu")
    end_session(path)
    assert len(read_sessions(path)) == 1
    changed = [read_sessions(path)[0] | {"threads": "two"}]
    path.write_text(json.dumps({"schema": 1, "sessions": changed}))
    assert read_sessions(path) == []


def test_places_are_relative_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "alice" / "work"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    for value, shown in {
        f"{here}/data": "data",
        f"{tmp_path}/alice/other": "~/other",
        f"{tmp_path}/alice": "~",
        "/srv/big/imagenet": "…/imagenet",
        "/": "…",
        f"--data.in-dist=folder:{here}/cats": "--data.in-dist=folder:cats",
        f"stripes=npy:{here}/a.npy,/srv/b.npy": "stripes=npy:a.npy,…/b.npy",
        "relative/path": "relative/path",
        "γ = 1/3": "γ = 1/3",
        "https://example.org/a": "https://example.org/a",
    }.items():
        assert without_location(value) == shown
    assert without_location({"a": [1, None, True, "/srv/x"]}) == {"a": [1, None, True, "…/x"]}
    # In the folder of everybody's homes a relative path would name the user.
    monkeypatch.chdir(tmp_path)
    assert without_location(f"{tmp_path}/alice/other") == "~/other"
