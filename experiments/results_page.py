"""Write docs/results.md from the committed runs over seeds: `python experiments/results_page.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from boundary_section import boundary_section
from compact import mean_and_std, per_cent, read_results

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"

SECTIONS = {
    "resample-embedded": (
        "Background resampling on the embedded digits",
        "Li & Vasconcelos 2020 with a small network: none, a random, the resampled and the full background.",
    ),
    "resample-cifar10-gamma10": (
        "Background resampling on CIFAR-10, with Tiny ImageNet as background, γ = 10 %",
        "Li & Vasconcelos 2020, table 2a in shape: the same arms, a sixteenth of the paper's schedule, a CNN of three "
        "convolutions for its WRN-40-4, 88,000 images of Tiny ImageNet (without the classes that repeat CIFAR-10's) "
        "for its 1.28 million of ILSVRC, all images coded as JPEG alike; scenes stand in for Places. The paper has 10 "
        "% resampled beside the full background; here it is ahead of it, as the paper's is on CIFAR-100 and Tiny "
        "ImageNet. The classes that end with the largest weights are trolleybus, seashore, school bus and steel arch "
        "bridge. γ of 10 % and of 1 % share the seeds, so that pre-training and weights are the same.",
    ),
    "resample-cifar10-gamma1": (
        "Background resampling on CIFAR-10, with Tiny ImageNet as background, γ = 1 %",
        "As above, with 880 images.",
    ),
    "ice-embedded": (
        "ICE on the embedded digits",
        "Wu et al. 2023, fine-tuned from one network trained without background, beside outlier exposure and "
        "energy training on the same images, in the same order and with as many steps. The paper does not give "
        "ICE's weight λ: 0.3 was chosen by the AUROC of seeds 0 and 1 on these very OOD sets (0.01, 0.03, 0.1, "
        "0.3, 1, 3 gave 97.4, 98.3, 98.5, 98.6, 98.5, 95.7), so that this table flatters ICE by what such a "
        "choice is worth; on MNIST below it was not chosen again.",
    ),
    "ice-parts-embedded": (
        "What ICE is made of",
        "Arms of Wu et al. 2023, table 3, on the same task: ICE, without the likelihood of in-distribution images"
        " (ICE⁻), with sigmoids in place of Gaussian likelihoods, and energy training of the same Gaussian head. "
        "Cross-entropy does not mind all likelihoods falling alike, and the background's term makes them fall: "
        "ICE⁻ ends below chance here, and far behind in the paper.",
    ),
    "ice-mnist": (
        "ICE on MNIST, with EMNIST letters as outliers",
        "As above. The schedule is shorter than the paper's and the network smaller: the table compares its rows with "
        "one another, not with the paper's CIFAR-10.",
    ),
    "gcpl-embedded": (
        "Convolutional prototypes on the embedded digits",
        "Yang et al. 2018 with the weights of Pei et al. 2022, beside cross-entropy of a linear head on the same "
        "images, in the same order and with as many steps. One network with prototypes, scored by the distance to the "
        "nearest and by the maximum softmax.",
    ),
    "bal-embedded": (
        "Boundary aware learning on the embedded digits",
        "Pei et al. 2022 with the library's defaults, which nothing of this task has chosen, beside the maximum "
        "softmax and ODIN of the same frozen network. Trained without background.",
    ),
    "godin-embedded": (
        "Generalised ODIN on the embedded digits",
        "Hsu et al. 2020, the cosine network scored by h; ε chosen on a tenth of the training images, which no arm is "
        "trained on. On this small network it is behind the maximum softmax, most of all on held-out digits; the "
        "paper's are DenseNets and WideResNets.",
    ),
    "aec-embedded": (
        "Autoencoder on the embedded digits",
        "Denouden et al. 2018 as in Pei et al. 2022: the reconstruction error alone, and with the Mahalanobis distance "
        "of the latent vector. All arms have the classifier of the first one.",
    ),
    "deep-svdd-embedded": (
        "Deep SVDD on the embedded digits",
        "Ruff et al. 2018: a network for each class, a LeNet without biases whatever the line below says, judged by "
        "the test images of the other classes alone. Its accuracy means nothing: there is one class.",
    ),
    "reject-mnist": (
        "Reject classes on MNIST, with EMNIST letters as outliers",
        "Mohseni et al. 2020, beside the maximum softmax of a network without outliers (baseline) and outlier "
        "exposure, all from one network trained on MNIST alone, with as many steps and the paper's batches of 64 "
        "digits and 320 letters, dropout of 0.1 and step size of 0.01 along a cosine, which begins anew with the "
        "second step. What differs: two and three epochs for the two steps, not ten and ten; LeNet-5 for the "
        "paper's unnamed network of two convolutions, which errs on 1.33 per cent; random crops. Five alphabets of "
        "Omniglot and Gaussian noise stand in the place of K-MNIST, which was not at hand. On the paper's two sets "
        "reject classes come to within 0.2 points of its FPR95 and outlier exposure below it, the two level with "
        "one another, not reject classes ahead; the baseline is much worse on notMNIST than the paper's. Reject "
        "classes cost accuracy here: 97.59, 97.88 and, of the seed that also detects worst, 93.03, where the "
        "baseline has 99.",
    ),
}
"""Heading and introduction of each file in experiments/results, in the order of the page."""

MOHSENI_TABLE_1 = {
    "notmnist": {"fpr95": (17.11, 0.25, 0.0), "auroc": (95.98, 99.86, 99.99), "aupr": (95.75, 99.86, 99.99)},
    "fashion-mnist": {"fpr95": (2.96, 0.99, 0.0), "auroc": (99.30, 99.83, 100.0), "aupr": (99.19, 99.83, 100.0)},
}
"""Per cent in the paper for the arms msp, oe and reject, by OOD set and metric."""

PAPER = {"reject-mnist": MOHSENI_TABLE_1}
"""Table of the paper, by file, where the paper has the same rows."""

METRICS = {"accuracy": "accuracy ↑", "auroc": "AUROC ↑", "aupr": "AUPR ↑", "fpr95": "FPR95 ↓"}


def _unused(method: dict[str, Any]) -> set[str]:
    """Return the names of schedules that a method's way of training does not use, where it has two ways."""
    ways = {"fine-tune": {"scratch"}, "from-scratch": {"pretrain", "finetune"}}
    way = method.get("training")
    return ways.get(way, set()) if isinstance(way, str) else set()


def of_set(runs: list[dict[str, Any]], arm: str, name: str, metric: str) -> dict[str, float]:
    """Compute mean and standard deviation over the seeds of one metric of an arm on an OOD set."""
    values = [run["arms"][arm]["ood"][name][metric][0] for run in runs]
    return mean_and_std(values)


def paper_table(
    runs: list[dict[str, Any]], paper: dict[str, dict[str, tuple[float, ...]]], labels: list[str]
) -> list[str]:
    """Return the lines of a paper's table, with our numbers in the same cells."""
    lines = [f"| the paper → ours | | {' | '.join(labels)} |", "|---" * (len(labels) + 2) + "|"]
    for ood, metrics in paper.items():
        for metric, values in metrics.items():
            cells = (
                f"{value:g} → {per_cent(of_set(runs, arm, ood, metric))}"
                for arm, value in zip(runs[0]["arms"], values, strict=True)
            )
            lines.append(f"| {ood} | {METRICS[metric]} | {' | '.join(cells)} |")
    return lines


def section(name: str) -> list[str]:
    """Return the lines of one file's section."""
    heading, text = SECTIONS[name]
    content = read_results(RESULTS / f"{name}.json")
    runs, summary, config = content["runs"], content["summary"], content["config"]
    protocol, method = config["protocol"], config["method"]
    schedules = ", ".join(
        f"{key} {value['epochs']}"
        for key, value in method.items()
        if isinstance(value, dict) and "epochs" in value and key not in _unused(method)
    )
    lines = [
        f"## {heading}",
        "",
        text,
        "",
        f"{len(runs)} seeds; {config['model']['name']}; epochs: {schedules}; protocol {protocol['name']}, "
        f"{protocol['positive'].upper()} positive. [All numbers](../experiments/results/{name}.json).",
        "",
        f"| mean over {len(next(iter(runs[0]['arms'].values()))['ood'])} OOD sets | {' | '.join(METRICS.values())} |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for arm in summary["arms"].values():
        lines.append(f"| {arm['label']} | {' | '.join(per_cent(arm[metric]) for metric in METRICS)} |")
    labels = [arm["label"] for arm in summary["arms"].values()]
    for metric in ("auroc", "fpr95"):
        lines += ["", f"| {METRICS[metric]} | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
        for ood in next(iter(runs[0]["arms"].values()))["ood"]:
            cells = (per_cent(of_set(runs, arm, ood, metric)) for arm in summary["arms"])
            lines.append(f"| {ood} | {' | '.join(cells)} |")
    if name in PAPER:
        lines += ["", *paper_table(runs, PAPER[name], labels)]
    return [*lines, ""]


def page() -> str:
    """Return the page as the files in experiments/results make it."""
    lines = [
        "# Results",
        "",
        "Written by `python experiments/results_page.py` from the JSON in [experiments](../experiments/README.md), "
        "which `python experiments/seeds.py` measured. Per cent, mean ± sample standard deviation over training seeds; "
        "bootstrap intervals over the test images are in the JSON.",
        "",
    ]
    for name in SECTIONS:
        if (RESULTS / f"{name}.json").exists():
            lines += section(name)
    lines += boundary_section()
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="by default docs/results.md of this tree")
    out = parser.parse_args().out
    out.write_text(page(), encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
