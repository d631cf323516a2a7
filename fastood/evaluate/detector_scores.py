"""Scores of the test images by detectors that are fitted to the outputs of a run's networks."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastood import __version__
from fastood.common.distributed import exchange
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.data.images.augment import STD
from fastood.detectors import DETECTORS, ODIN, Detector, DetectorSuite
from fastood.detectors.bal import BoundaryAwareDetector
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.registry import Build, builder
from fastood.detectors.row_detector import CHUNK_ROWS
from fastood.evaluate.arm_network import GRADIENT_ROWS, ArmNetwork, image_sets
from fastood.evaluate.outputs_cache import OutputsCache, fingerprint_of
from fastood.train.arm import Arm
from fastood.train.engine.processes import any_process
from fastood.train.failed_stages import failed_arms
from fastood.train.run import Run
from fastood.train.run_folder import fingerprint
from fastood.train.shared_work import compute_shared, is_group_open, of_any
from fastood.train.trained_network import Outputs

AVAILABLE: Mapping[str, Build] = {**DETECTORS, "bal": builder("bal", BoundaryAwareDetector)}
"""Detectors by name: those of `fastood.detectors`, and BAL, which trains a GAN on the features."""
EPSILON_IMAGES = 256
"""In-distribution images, and as many background images, on which ODIN's ε is chosen."""
_FAILURES = (TypeError, ValueError, RuntimeError)
"""Errors of a detector that does not fit a network or its features, errors of linear algebra included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectorScores:
    """Scores of the test images by D detectors on the network of one arm."""

    label: str
    """Name of the arm in tables."""
    settings: dict[str, str]
    """Settings of each detector, as its `repr`, by its name."""
    skipped: dict[str, str]
    """Reason why a detector was skipped for this arm, by its name."""
    id_scores: Tensor
    """float64 `[D, N]`, in the order of `settings`."""
    ood_scores: dict[str, Tensor]
    """float64 `[D, M]` of each OOD set by its name."""


def score_detectors(run: Run, names: Sequence[str]) -> dict[str, DetectorScores]:
    """Score the test images of every arm with detectors; each image passes the network once for all of them.

    With ODIN, that pass computes gradients and a second pass follows. Logits and features are cached in the run folder,
    so that the next call needs the network for ODIN only. Several processes share passes and scores; each fits every
    detector to the outputs of all training images, so that its state has the bits of one process.

    Args:
        run: The run.
        names: Names of detectors, from `AVAILABLE`.

    Returns:
        Scores of each arm by its name.

    Raises:
        FileNotFoundError: If the run is not complete.
        ValueError: If a name is unknown or repeated, or if there are none.
    """
    unknown = [name for name in names if name not in AVAILABLE]
    if unknown or len(names) == 0 or len(set(names)) < len(names):
        raise ValueError(
            f"detectors must be all, or one or more of {', '.join(AVAILABLE)}, each once, got {list(names)}"
        )
    digests = fingerprint(run.task)
    failed = failed_arms(run.method, run.failures())
    arms = [arm for arm in run.method.arms if arm.name not in failed]
    return {arm.name: _score_arm(run, arm, names, digests) for arm in arms}


def _score_arm(run: Run, arm: Arm, names: Sequence[str], digests: Mapping[str, str]) -> DetectorScores:
    task = arm.task(run.task)
    module = run.network(arm)
    weights = {name: weight.cpu().clone() for name, weight in module.state_dict().items()}
    network = run.trained(module)
    dependencies = {
        "images": dict(digests) if task is run.task else fingerprint(task),
        "precision": run.config.precision,
        "device": network.device.type,
        "version": __version__,
    }
    cache = OutputsCache(
        run.folder.path / "features" / f"{arm.name}.safetensors", fingerprint_of(dependencies, weights)
    )
    cached = cache.read()
    if any_process(cached is None, run.fabric):
        # All take part in the passes, or none.
        cached = None
    no_scores = torch.empty(0, len(task.id_test), dtype=torch.float64)
    try:
        model = ArmNetwork(network, task.num_classes)
        train = model.outputs(task.id_train) if cached is None else cached["id_train"]
    except (TypeError, ValueError) as error:
        reasons = dict.fromkeys(names, str(error))
        return DetectorScores(label=arm.label, settings={}, skipped=reasons, id_scores=no_scores, ood_scores={})
    fitted, skipped = fitted_detectors(model, names, train, task.id_train.labels)
    odin = fitted.get("odin")
    if isinstance(odin, ODIN):
        try:
            _choose_epsilon(odin, model, task, run.config.seed)
        except _FAILURES as error:
            skipped["odin"] = str(error)
    skipped = of_any(skipped, run.fabric)
    fitted = {name: detector for name, detector in fitted.items() if name not in skipped}
    if isinstance(odin, ODIN) and is_group_open(run.fabric):
        # Machines that round differently may choose differently: all take the step of the first process.
        odin.epsilon = exchange(odin.epsilon, device=network.device)[0]
    outputs: dict[str, Outputs] = {"id_train": train}
    scores: dict[str, dict[str, Tensor]] = {}
    suite = DetectorSuite(model, fitted) if fitted else None
    for name, images in image_sets(task).items():
        if name == "id_train":
            continue
        perturbed: Mapping[str, Tensor] = {}
        if suite is not None and "odin" in fitted:
            # ODIN needs the network in any case: its pass gives the outputs of all other detectors, too.
            outputs[name], perturbed = model.outputs_and_perturbed(images, suite)
        else:
            outputs[name] = model.outputs(images) if cached is None else cached[name]
        if suite is not None:
            scores[name] = _scores(suite, outputs[name], perturbed, run.fabric)
    if cached is None and run.is_first:
        cache.write(outputs)
    failed = {} if suite is None else suite.failed
    scored = [name for name in fitted if name not in failed]
    # A detector that failed on one set is left out of all: its mean over the sets would be of other sets.
    stacked = {name: torch.stack([of_set[d] for d in scored]) for name, of_set in scores.items() if scored}
    return DetectorScores(
        label=arm.label,
        settings={name: repr(fitted[name]) for name in scored},
        skipped=skipped | {name: str(error) for name, error in failed.items()},
        id_scores=stacked.pop("id_test", no_scores),
        ood_scores={name.removeprefix("ood/"): of_set for name, of_set in stacked.items()},
    )


def fitted_detectors(
    model: ArmNetwork, names: Sequence[str], train: Outputs, labels: Tensor
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Fit detectors to the outputs of the training images.

    Args:
        model: The network of an arm.
        names: Names of detectors, from `AVAILABLE`.
        train: Logits and features of the N training images.
        labels: int64 `[N]`.

    Returns:
        The fitted detectors by name, and the reasons why others cannot be used with this network.
    """
    fitted, skipped = {}, {}
    device = model.network.device
    inputs = {"logits": train.logits.to(device), "features": train.features.to(device)}
    for name in names:
        try:
            detector = AVAILABLE[name](model)
            # These detectors apply the whole head, whose reject classes `ArmNetwork` leaves out.
            if isinstance(detector, HeadDetector) and model.num_reject > 0:
                raise ValueError(
                    f"its head has {model.num_reject} reject classes beside the {model.num_classes} classes"
                )
            if detector.needs_fit:
                detector.fit_features(inputs[detector.reads], labels.to(device))
        except _FAILURES as error:
            skipped[name] = str(error)
        else:
            fitted[name] = detector
    return fitted, skipped


def _choose_epsilon(detector: ODIN, model: ArmNetwork, task: DetectionTask, seed: int) -> None:
    """Choose ODIN's ε on training and background images; test sets take no part."""
    if len(task.background) == 0:
        raise ValueError("its step is chosen with background images, of which the run has none (data.background none)")
    detector.input_std = (STD,) * task.id_train.images.shape[1]
    batches: list[tuple[Tensor, Tensor]] = []
    for name, images in (("in-distribution", task.id_train), ("background", task.background)):
        order = torch.randperm(len(images), generator=named_generator(seed, "odin", name))
        some = images.subset(order[:EPSILON_IMAGES])
        batches += zip(model.gradient_batches(some), torch.split(some.labels, GRADIENT_ROWS), strict=True)
    detector.choose_epsilon(batches)


def _scores(
    suite: DetectorSuite, outputs: Outputs, perturbed: Mapping[str, Tensor], fabric: Fabric
) -> dict[str, Tensor]:
    """Return scores float64 `[N]` on the CPU, by name, of the detectors that have failed in no process."""
    _leave_out(suite, fabric)
    names = [name for name in suite.detectors if name not in suite.failed and name not in perturbed]

    def of_part(part: range) -> list[Tensor]:
        # Whole chunks, because the bits of a matrix product depend on its number of rows.
        rows = slice(part.start * CHUNK_ROWS, part.stop * CHUNK_ROWS)
        features, logits = (of_all[rows].to(fabric.device) for of_all in (outputs.features, outputs.logits))
        with warnings.catch_warnings():
            # The notes below the table name the detectors that are left out.
            warnings.filterwarnings("ignore", "detector .* is left out", RuntimeWarning)
            found = suite.predict_outputs(features, logits)
        # A detector that has just failed is left out below; its scores only keep the number of results.
        absent = torch.full((len(features),), torch.nan, dtype=torch.float64)
        return [found.get(name, absent).double().cpu() for name in names]

    chunks = max(1, math.ceil(len(outputs.logits) / CHUNK_ROWS))
    found = dict(zip(names, compute_shared(chunks, of_part, fabric), strict=True)) if names else {}
    _leave_out(suite, fabric)
    return {
        name: of_detector.double().cpu()
        for name, of_detector in {**perturbed, **found}.items()
        if name not in suite.failed
    }


def _leave_out(suite: DetectorSuite, fabric: Fabric) -> None:
    """Mark detectors that have failed in any process as failed."""
    reasons = of_any({name: str(error) for name, error in suite.failed.items()}, fabric)
    for name, reason in reasons.items():
        suite.failed.setdefault(name, RuntimeError(reason))
