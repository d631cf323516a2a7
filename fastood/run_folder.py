"""The folder that a run leaves: what lies where, and how it is written and read back."""

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

from fastood.config import RunConfig, differences, from_dict, to_dict
from fastood.files import save_tensors, write_atomically
from fastood.methods.checkpoint import CheckpointFolder
from fastood.methods.evaluation import ArmScores


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
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.json"
        self.scores = path / "scores.safetensors"
        self.pool = path / "pool.safetensors"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = CheckpointFolder(path / "checkpoints")

    def weights(self, arm: str) -> Path:
        """File of an arm's trained weights."""
        return self.path / "models" / f"{arm}.safetensors"

    def require_absent(self) -> None:
        """Refuse to begin a run where something lies already.

        Raises:
            FileExistsError: If the folder exists.
        """
        if self.path.exists():
            raise FileExistsError(
                f"the run folder {self.path} exists: go on with it by --resume, or choose another --name"
            )

    def require_same_config(self, config: RunConfig) -> None:
        """Refuse to resume a run under another configuration.

        Raises:
            FileNotFoundError: If there is no run here.
            ValueError: If a field differs; each is named with both values.
        """
        changed = differences(to_dict(self.read_config()), to_dict(config))
        if changed:
            raise ValueError(f"the run in {self.path} has another configuration (there → here): {'; '.join(changed)}")

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml, the first file of a run."""
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.config, text.encode())

    def read_config(self) -> RunConfig:
        """The configuration that the run was started with.

        Raises:
            FileNotFoundError: If there is no config.yaml.
            ValueError: If it holds an unknown field or a value out of range.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"no run in {self.path}: {self.config} does not exist")
        return from_dict(RunConfig, yaml.safe_load(self.config.read_text(encoding="utf-8")))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.metrics, text.encode())

    def read_metrics(self) -> dict[str, Any]:
        """The contents of metrics.json.

        Raises:
            FileNotFoundError: If the run has none yet.
        """
        if not self.metrics.exists():
            raise FileNotFoundError(f"{self.metrics} does not exist: the run has not come to its end")
        metrics: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
        return metrics

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
        """An arm's trained weights.

        Raises:
            FileNotFoundError: If the run has none yet.
        """
        return _read_tensors(self.weights(arm))

    def write_pool(self, state: dict[str, Tensor]) -> None:
        """Write the pool's learnt weights."""
        save_tensors(self.pool, state)

    def read_pool(self) -> dict[str, Tensor]:
        """The pool's learnt weights.

        Raises:
            FileNotFoundError: If the run has none yet.
        """
        return _read_tensors(self.pool)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the run has not come to its end")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors
