"""Folder of a run: paths, and how its files are written and read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastood.common.files import remove_temporaries, save_tensors, write_atomically
from fastood.common.locking import LOCK_NAME, hold_lock
from fastood.data import DetectionTask
from fastood.train.config import RunConfig, from_dict, to_dict
from fastood.train.engine.checkpoint import CheckpointFolder, summary
from fastood.train.engine.failure import StageFailure
from fastood.train.methods.pool_weights import BACKGROUND_KEY
from fastood.train.results.scoring import ArmScores

CONFIG_NAME = "config.yaml"
"""First file of a run: a folder that has it holds a run."""
_LARGEST_TEXT = 1 << 28
"""Bytes of a file of text that is still read."""


def fingerprint(task: DetectionTask) -> dict[str, str]:
    """Return the SHA-256 of every set's images, labels and sources, by the set's name, from `ImageSet.sha256`.

    For a slice of the background it is that of the whole, so that it is equal for any number of processes.

    Example:
        >>> from fastood.data import DataConfig, load_task
        >>> list(fingerprint(load_task(DataConfig(), seed=0)))[:4]
        ['id_train', 'id_test', 'background', 'ood/held-out digits']
    """
    digests = {"id_train": task.id_train.sha256(), "id_test": task.id_test.sha256()}
    digests["background"] = task.background_digest()
    return digests | {f"ood/{name}": images.sha256() for name, images in task.ood.items()}


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder.

    Example:
        >>> run = RunFolder(Path("runs/trial"))
        >>> run.weights("full").as_posix(), run.metrics.as_posix()
        ('runs/trial/models/full.safetensors', 'runs/trial/metrics.json')
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_NAME
        self.data = path / "data.json"
        self.data_summary = path / "data_summary.json"
        self.metrics = path / "metrics.json"
        self.failures = path / "failed.json"
        self.scores = path / "scores.safetensors"
        self.pool = path / "pool.safetensors"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "curves.json"
        self.environment = path / "environment.json"
        self.checkpoints = CheckpointFolder(path / "checkpoints")

    def weights(self, arm: str) -> Path:
        """Return the path of an arm's trained weights."""
        return self.path / "models" / f"{arm}.safetensors"

    @contextmanager
    def lock(self, *, exist_ok: bool = True) -> Iterator[None]:
        """Keep other processes from writing this run (`fastood.common.locking.hold_lock`).

        Args:
            exist_ok: Whether the folder may exist.

        Raises:
            FileExistsError: If the folder exists and may not.
            BlockingIOError: If another process is writing this run.
            OSError: If the folder cannot be written.
        """
        if not exist_ok and self.path.exists():
            raise self._exists()
        with hold_lock(self.path, doing="writing this run", exist_ok=exist_ok):
            yield

    def _exists(self) -> FileExistsError:
        return FileExistsError(f"the run folder {self.path} exists: resume it with --resume, or choose another --name")

    def begun_config(self, *, resume: bool) -> RunConfig | None:
        """Return the config of the run to resume, or None if a run is to begin here.

        Args:
            resume: Resume the run in the folder; begin it if there is none.

        Raises:
            FileExistsError: If the folder exists and `resume` is false, or it holds files but no run to resume.
            ValueError: If config.yaml is damaged.
        """
        if resume and self.config.exists():
            return self.read_config()
        if resume and self.path.exists():
            # A process that was killed while it wrote config.yaml leaves its temporary file.
            remove_temporaries(self.path, self.config.name)
        names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        # The lock is this process's own.
        if not resume and self.path.exists() and names != {LOCK_NAME}:
            raise self._exists()
        if names - {LOCK_NAME}:
            raise FileExistsError(f"the folder {self.path} holds files but no run to resume: choose another --name")
        return None

    def write_beginning(self, config: RunConfig, *, digests: dict[str, str], data_summary: dict[str, Any]) -> None:
        """Write config.yaml, data.json and data_summary.json, and remove partial files of a killed process.

        The images of a resumed run must be those that it began with.

        Args:
            config: The config.
            digests: Digests of the run's images, as `fingerprint` returns them.
            data_summary: Numbers of images and classes that were read, and of files left out.

        Raises:
            OSError: If a file cannot be written.
            ValueError: If the folder's data.json has other images.
        """
        if self.data.exists():
            self.require_same_data(digests)
        remove_temporaries(self.path)
        self.write_config(config)
        _write_json(self.data, digests)
        _write_json(self.data_summary, data_summary)

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml, the first file of a run."""
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.config, text.encode())

    def read_config(self) -> RunConfig:
        """Return the config with which the run was started.

        Raises:
            FileNotFoundError: If there is no config.yaml.
            ValueError: If it cannot be read, or holds an unknown field or a value out of range.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"no run in {self.path}: {self.config} does not exist")
        try:
            values = yaml.safe_load(_read_text(self.config))
            if not isinstance(values, dict):
                raise ValueError(f"it must hold fields, got {type(values).__name__}")
            return from_dict(RunConfig, values)
        except (RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{self.config} is damaged: {error}") from None

    def require_same_data(self, digests: dict[str, str]) -> None:
        """Check that images are those that the run began with.

        Raises:
            FileNotFoundError: If there is no data.json.
            ValueError: If the images or labels of a set differ; each such set is named.
        """
        if not self.data.exists():
            raise FileNotFoundError(f"{self.data} does not exist: the images of the run are not known")
        before = _read_json(self.data)
        changed = [name for name in {**before, **digests} if before.get(name) != digests.get(name)]
        if changed:
            raise ValueError(f"the run in {self.path} had other images or labels in {', '.join(changed)}")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        _write_json(self.metrics, metrics)

    def read_metrics(self) -> dict[str, Any]:
        """Return the contents of metrics.json.

        Raises:
            FileNotFoundError: If the run is not finished.
            ValueError: If it is damaged.
        """
        if not self.metrics.exists():
            raise FileNotFoundError(f"{self.metrics} does not exist: the run is not finished")
        return _read_json(self.metrics)

    def write_failures(self, failures: Mapping[str, StageFailure]) -> None:
        """Write failed.json: stages that failed, which a resumed run reports and does not repeat."""
        plain = {stage: asdict(failure) for stage, failure in failures.items()}
        _write_json(self.failures, plain)

    def read_failures(self) -> dict[str, StageFailure]:
        """Return the stages of the run that failed, by name.

        Raises:
            ValueError: If failed.json is damaged.
        """
        if not self.failures.exists():
            return {}
        try:
            found = {name: StageFailure(**values) for name, values in _read_json(self.failures).items()}
        except TypeError as error:
            raise ValueError(f"{self.failures} is damaged: {error}") from None
        return found

    def write_scores(self, scores: dict[str, ArmScores]) -> None:
        """Write scores.safetensors, named "<arm>/id" and "<arm>/ood/<set>"."""
        tensors: dict[str, Tensor] = {}
        for arm, result in scores.items():
            tensors[f"{arm}/id"] = result.id_scores
            tensors |= {f"{arm}/ood/{name}": values for name, values in result.ood_scores.items()}
        save_tensors(self.scores, tensors)

    def write_weights(self, arm: str, weights: dict[str, Tensor]) -> None:
        """Write an arm's trained weights."""
        save_tensors(self.weights(arm), weights)

    def read_weights(self, arm: str) -> dict[str, Tensor]:
        """Return an arm's trained weights.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        return _read_tensors(self.weights(arm))

    def write_pool(self, state: dict[str, Tensor], *, background: str) -> None:
        """Write the pool's learnt weights, and how it came to them.

        Args:
            state: Tensors by name.
            background: SHA-256 of the images that the weights belong to, from `ImageSet.sha256`.
        """
        save_tensors(self.pool, state, {BACKGROUND_KEY: background})

    def read_pool(self) -> dict[str, Tensor]:
        """Return the pool's learnt weights.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        return _read_tensors(self.pool)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn PyTorch's errors about a file's tensors into errors that name the file.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape or type.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} does not belong to this run, or is damaged: {summary(error)}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the run is not finished")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise OSError(error.errno, f"cannot read {path}: {error.strerror or error}") from None
    return tensors


def _read_text(path: Path) -> str:
    """Return the text of a file of a run; raise ValueError for devices, pipes and files too large to be one."""
    if not path.is_file() or path.stat().st_size > _LARGEST_TEXT:
        raise ValueError(f"it must be a file of at most {_LARGEST_TEXT:,} bytes")
    return path.read_text(encoding="utf-8")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold fields, got {type(values).__name__}")
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return values
