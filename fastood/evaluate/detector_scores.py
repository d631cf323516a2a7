"""Detectors fitted to what an arm's network says of the training images, and judged on the test images."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastood import __version__
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.data.images.augment import STD
from fastood.detectors import DETECTORS, ODIN, Detector, DetectorSuite
from fastood.detectors.bal import BoundaryAwareDetector
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.registry import Build, builder
from fastood.evaluate.arm_network import GRADIENT_ROWS, ArmNetwork, image_sets
from fastood.evaluate.outputs_cache import OutputsCache, fingerprint_of
from fastood.metrics import Protocol, delong_estimate, evaluate_detectors
from fastood.train.arm import Arm
from fastood.train.engine.failure import failed_arms
from fastood.train.results.sanity_checks import Kind, ranks_backwards, tied_scores
from fastood.train.run import Run
from fastood.train.run_folder import fingerprint
from fastood.train.trained_network import Outputs

JUDGED: Mapping[str, Build] = {**DETECTORS, "bal": builder("bal", BoundaryAwareDetector)}
"""Detectors by name: those of `fastood.detectors`, and BAL, which trains a GAN on the features."""
SCHEMA = 1
"""Version of the layout of detectors.json."""
CHOICE_IMAGES = 256
"""Images of either kind that ODIN's ε is chosen on."""
_FAILURES = (TypeError, ValueError, RuntimeError)
"""Errors of a detector that does not go with a network or its features, in linear algebra, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectorScores:
    """Scores by all detectors of the test images by one arm's network."""

    label: str
    """The arm's name in tables."""
    settings: dict[str, str]
    """Each detector with its settings, by name."""
    skipped: dict[str, str]
    """Why a detector does not go with this arm, by name."""
    id_scores: Tensor
    """float64 `[D, N]`, in the order of `settings`."""
    ood_scores: dict[str, Tensor]
    """float64 `[D, M]` of each OOD set."""


def score_detectors(run: Run, names: Sequence[str]) -> dict[str, DetectorScores]:
    """Score the test images of every arm with detectors, each image in one pass of the network for all of them.

    With ODIN it is that pass with gradients, and one more. Logits and features are kept in the run folder, so that the
    next call needs the network for ODIN alone.

    Args:
        run: The run.
        names: Of `JUDGED`.

    Returns:
        Scores by arm.

    Raises:
        FileNotFoundError: If the run has not come to its end.
        ValueError: If a name is unknown.
    """
    unknown = [name for name in names if name not in JUDGED]
    if unknown or len(names) == 0 or len(set(names)) < len(names):
        raise ValueError(f"detectors must be all, or one or more of {', '.join(JUDGED)}, each once, got {list(names)}")
    digests = fingerprint(run.task)
    failed = failed_arms(run.method, run.folder.read_failures())
    arms = [arm for arm in run.method.arms if arm.name not in failed]
    return {arm.name: _score_arm(run, arm, names, digests) for arm in arms}


def detectors_document(run: Run, scores: Mapping[str, DetectorScores]) -> dict[str, Any]:
    """The contents of detectors.json: metrics.json's, with detectors in place of the arms' own scores.

    Args:
        run: The run.
        scores: Of each arm.

    Returns:
        Plain values only; metrics as fractions. All draws are those of metrics.json. "warnings" only if there are any.
    """
    protocol = run.config.protocol
    document = {
        "schema": SCHEMA,
        "method": run.method.name,
        "seed": run.config.seed,
        "protocol": asdict(protocol),
        "arms": {arm: _document(found, protocol, run.config.seed) for arm, found in scores.items()},
    }
    warnings = [warning for arm, found in scores.items() for warning in detector_warnings(arm, found)]
    return {**document, "warnings": warnings} if warnings else document


def detector_warnings(arm: str, found: DetectorScores) -> list[dict[str, str]]:
    """Return what is wrong with the rankings of an arm's detectors: scores that are all tied, or sets ranked backwards.

    Args:
        arm: Name of the arm.
        found: Its scores.

    Returns:
        For each warning the arm, the detector, a kind, and a message; none for detectors that are well.
    """
    warnings = []
    for row, name in enumerate(found.settings):
        id_scores, ood_scores = found.id_scores[row], {of_set: part[row] for of_set, part in found.ood_scores.items()}
        texts: list[tuple[Kind, str | None]] = [("tied-scores", tied_scores(id_scores, ood_scores.values()))]
        for of_set, part in ood_scores.items():
            if min(len(id_scores), len(part)) > 1:
                texts.append(("ranks-backwards", _backwards(of_set, id_scores, part)))
        warnings += [
            {"arm": arm, "detector": name, "kind": kind, "message": text} for kind, text in texts if text is not None
        ]
    return warnings


def _backwards(name: str, id_scores: Tensor, ood_scores: Tensor) -> str | None:
    estimate = delong_estimate(id_scores, ood_scores)
    high = estimate.auroc + 1.96 * estimate.std
    return ranks_backwards(name, estimate.auroc, high, id_count=len(id_scores), ood_count=len(ood_scores))


def _document(found: DetectorScores, protocol: Protocol, seed: int) -> dict[str, Any]:
    results = []
    if found.settings:
        draws = named_generator(seed, "protocol")
        results = evaluate_detectors(found.id_scores, found.ood_scores, protocol=protocol, generator=draws)
    detectors = {}
    for (name, settings), of_sets in zip(found.settings.items(), results, strict=True):
        detectors[name] = {
            "settings": settings,
            "ood": {of_set: {**result.as_dict(), "seed": seed} for of_set, result in of_sets.items()},
            "mean": {
                metric: fmean(result.metrics()[metric].mean for result in of_sets.values())
                for metric in ("auroc", "aupr", "fpr95")
            },
        }
    return {"label": found.label, "detectors": detectors, "skipped": found.skipped}


def _score_arm(run: Run, arm: Arm, names: Sequence[str], digests: Mapping[str, str]) -> DetectorScores:
    task = arm.task(run.task)
    module = run.network(arm)
    weights = run.folder.read_weights(arm.name)
    network = run.trained(module)
    said = {
        "images": dict(digests) if task is run.task else fingerprint(task),
        "precision": run.config.precision,
        "device": network.device.type,
        "version": __version__,
    }
    cache = OutputsCache(run.folder.path / "features" / f"{arm.name}.safetensors", fingerprint_of(said, weights))
    known = cache.read()
    none = torch.empty(0, len(task.id_test), dtype=torch.float64)
    try:
        model = ArmNetwork(network, task.num_classes)
        train = model.outputs(task.id_train) if known is None else known["id_train"]
    except (TypeError, ValueError) as error:
        why = dict.fromkeys(names, str(error))
        return DetectorScores(label=arm.label, settings={}, skipped=why, id_scores=none, ood_scores={})
    fitted, skipped = fitted_detectors(model, names, train, task.id_train.labels)
    if "odin" in fitted and len(task.background) == 0:
        del fitted["odin"]
        skipped["odin"] = "its step is chosen with background images, of which the run has none (data.background none)"
    odin = fitted.get("odin")
    if isinstance(odin, ODIN):
        try:
            _choose_step(odin, model, task, run.config.seed)
        except _FAILURES as error:
            skipped["odin"] = str(error)
            del fitted["odin"]
    outputs: dict[str, Outputs] = {"id_train": train}
    scores: dict[str, dict[str, Tensor]] = {}
    suite = DetectorSuite(model, fitted) if fitted else None
    for name, images in image_sets(task).items():
        if name == "id_train":
            continue
        of_moved: Mapping[str, Tensor] = {}
        if suite is not None and "odin" in fitted:
            outputs[name], of_moved = model.outputs_and_moved(images, suite)
        else:
            outputs[name] = model.outputs(images) if known is None else known[name]
        if suite is not None:
            scores[name] = _scores(suite, outputs[name], of_moved, network.device)
    if known is None:
        cache.write(outputs)
    failed = {} if suite is None else suite.failed
    judged = [name for name in fitted if name not in failed]
    # A detector that failed on one set is left out of all.
    stacked = {name: torch.stack([of_set[d] for d in judged]) for name, of_set in scores.items() if judged}
    return DetectorScores(
        label=arm.label,
        settings={name: repr(fitted[name]) for name in judged},
        skipped=skipped | {name: str(error) for name, error in failed.items()},
        id_scores=stacked.pop("id_test", none),
        ood_scores={name.removeprefix("ood/"): of_set for name, of_set in stacked.items()},
    )


def fitted_detectors(
    model: ArmNetwork, names: Sequence[str], train: Outputs, labels: Tensor
) -> tuple[dict[str, Detector], dict[str, str]]:
    """Detectors that go with the model, and why others do not."""
    fitted, skipped = {}, {}
    device = model.network.device
    reading = {"logits": train.logits.to(device), "features": train.features.to(device)}
    for name in names:
        try:
            detector = JUDGED[name](model)
            if isinstance(detector, HeadDetector) and model.num_reject > 0:
                raise ValueError(
                    f"its head has {model.num_reject} reject classes beside the {model.num_classes} classes"
                )
            if detector.needs_fit:
                detector.fit_features(reading[detector.reads], labels.to(device))
        except _FAILURES as error:
            skipped[name] = str(error)
        else:
            fitted[name] = detector
    return fitted, skipped


def _choose_step(detector: ODIN, model: ArmNetwork, task: DetectionTask, seed: int) -> None:
    """Choose ε on training images and background images: the test sets have no say."""
    detector.input_std = (STD,) * task.id_train.images.shape[1]
    batches: list[tuple[Tensor, Tensor]] = []
    for name, images in (("in-distribution", task.id_train), ("background", task.background)):
        order = torch.randperm(len(images), generator=named_generator(seed, "odin", name))
        some = images.subset(order[:CHOICE_IMAGES])
        batches += zip(model.gradient_batches(some), torch.split(some.labels, GRADIENT_ROWS), strict=True)
    detector.choose_epsilon(batches)


def _scores(
    suite: DetectorSuite, outputs: Outputs, of_moved: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Return scores float64 `[N]` on the CPU by name, of the detectors that have not failed."""
    found = dict(of_moved)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "detector .* is left out", RuntimeWarning)  # which the table's notes say
        found |= suite.predict_outputs(outputs.features.to(device), outputs.logits.to(device))
    return {name: scores.double().cpu() for name, scores in found.items()}
