"""Goals of the CUDA kernels (`gpu/goals.py`), each next to its floor, an empty launch and its peers: a GPU only.

A row's op begins with `goal KEY:`, by which the verdict of a GPU run finds it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import eager_losses as eager
import pytest
import torch
from background_pool_peers import cumsum_search, installed, multinomial, torchrl_cuda_tree
from class_l1_nearest_peers import peers as nearest_peers
from detection_metrics_peers import Sets, batched_torch, torchmetrics
from gpu.goals import GOALS, Goal
from harness import Comparison, Run, compare, copy_bandwidth, empty_kernel, floor, in_graph, matmul_rate
from mahalanobis_peers import Logits, solve_and_mm
from test_background_pool import learnt_pool
from test_class_l1_nearest import operands as nearest_operands
from test_detection_metrics import public_call, sample
from test_logit_scores import eager as eager_scores
from test_mahalanobis_logits import forward_alone, forward_and_backward
from test_mahalanobis_logits import operands as mahalanobis_operands
from test_outlier_losses import compiled, forward_backward, make_batch, same_loss

from fastood.data import Augment
from fastood.losses import OutlierExposureLoss
from fastood.ops import ClassL1Index, logit_scores, mahalanobis_logits
from fastood.ops.detection_metrics import ranking_statistics, sort_scores

COPY_BYTES = 256 << 20


class Measurement(NamedTuple):
    """Providers of one goal, and the arguments of `compare` that belong to them."""

    providers: dict[str, Run]
    floor: float | None = None
    floor_is: str = ""
    cold: bool = True
    input_bytes: int | None = None


@pytest.fixture(autouse=True)
def _needs_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")


def graphs(calls: dict[str, Run]) -> dict[str, Run]:
    """Return the replays of the calls that a graph can hold; a call that waits for the device cannot be captured."""
    replays = {}
    for name, run in calls.items():
        try:
            replays[name] = in_graph(run)
        except RuntimeError as error:
            print(f"{name} cannot be captured: {error}", file=sys.stderr)
            if name == "fastood":
                raise
    return replays


def losses(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    rows, classes = shape
    dtype = getattr(torch, goal.dtype)
    batch = make_batch(rows, classes, device="cuda", dtype=dtype)
    ours = OutlierExposureLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    calls = {
        "fastood": (ours, (batch.logits, batch.targets)),
        "eager log_softmax": (eager.exposure_log_softmax, (batch.logits, batch.labels)),
    }
    if shape == goal.shape:
        calls["torch.compile"] = (compiled(eager.exposure_log_softmax), (batch.logits, batch.labels))
    runs = same_loss(calls)
    without_graph = forward_backward(ours, batch.logits, batch.targets)
    runs["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets)
    seconds, floor_is = floor("cuda", 3 * batch.logits.nbytes, 0)
    return Measurement(
        {**graphs(runs), "fastood, without a graph": without_graph},
        seconds,
        f"read, read, write: {floor_is}",
        input_bytes=batch.logits.nbytes,
    )


def pool_calls(size: int, batch_size: int, *, exact: bool) -> tuple[Run, torch.Tensor]:
    """Return draw and step as one call that a graph can hold, and the masses of the pool."""
    pool = learnt_pool(size, 1.0, "cuda")
    # A graph registers the default generator; others would have to be registered.
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    loss = torch.rand(batch_size, device="cuda")

    def step() -> None:
        index, _ = pool.sample(batch_size, generator=generator)
        pool.ascend(index, loss, lr=1e-3, mode="exact" if exact else "sparse")

    return step, pool.weights.sqrt().float()


def pool_step(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    size, batch_size = shape
    step, masses = pool_calls(size, batch_size, exact=False)
    new = masses[torch.randint(size, (batch_size,), device="cuda")]
    replays = graphs(
        {
            "fastood": step,
            "cumsum + searchsorted": cumsum_search(masses.clone(), batch_size, new),
            "empty kernel": empty_kernel,
        }
    )
    providers = {
        **replays,
        "fastood, without a graph": step,
        "multinomial, without a graph": multinomial(masses.clone(), batch_size, new),
    }
    if installed("torchrl", "torchrl's CUDA tree"):
        tree = torchrl_cuda_tree(masses, batch_size, new)
        if tree is not None:
            providers["torchrl CUDA tree, without a graph"] = tree
    return Measurement(providers, cold=False)


def pool_exact(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    size, batch_size = shape
    step, _ = pool_calls(size, batch_size, exact=True)
    streamed = torch.ones(2 * size, device="cuda")
    calls: dict[str, Run] = {"fastood": step, "streaming pass": lambda: streamed.add_(1.0)}
    # ω and velocity are read and written.
    seconds, floor_is = floor("cuda", 16 * size, 0)
    return Measurement({**graphs(calls), "fastood, without a graph": step}, seconds, floor_is)


def metrics(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    sets = sample(*shape, device="cuda")
    ours = public_call(sets)

    def statistics(sets: Sets = sets) -> object:
        return ranking_statistics(sort_scores(sets.id_scores), sort_scores(sets.ood_scores))

    providers: dict[str, Run] = {"fastood": ours, "batched torch": batched_torch(sets)}
    if installed("torchmetrics", "torchmetrics"):
        providers["torchmetrics"] = torchmetrics(sets)
    providers |= {f"fastood, {name}": run for name, run in graphs({"ops in a graph": statistics}).items()}
    seconds, floor_is = floor("cuda", 2 * sets.scores.nbytes, 0)
    return Measurement(
        providers, seconds, f"scores read and keys written once: {floor_is}", input_bytes=sets.scores.nbytes
    )


def head(
    shape: tuple[int, ...], runner: Callable[[Logits, tuple[torch.Tensor, ...]], Run], operations: int
) -> Measurement:
    rows, classes, dim = shape
    args = mahalanobis_operands(rows, classes, dim, "cuda")
    rate = matmul_rate("cuda")
    return Measurement(
        {"fastood": runner(mahalanobis_logits, args), "solve + mm": runner(solve_and_mm, args)},
        operations / rate,
        f"{operations} operations at the {rate / 1e9:.0f} GFLOP/s of torch.mm",
        input_bytes=sum(x.nbytes for x in args),
    )


def head_forward(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    rows, classes, dim = shape
    return head(shape, forward_alone, (rows + classes) * dim**2 + 2 * rows * classes * dim)


def head_backward(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    rows, classes, dim = shape
    return head(shape, forward_and_backward, 3 * (rows + classes) * dim**2 + 6 * rows * classes * dim)


def nearest(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    queries, num_keys, dim, classes = shape
    query, query_labels, keys, key_labels = nearest_operands((queries, num_keys, dim, classes), "cuda")
    index = ClassL1Index(keys, key_labels)
    searches = nearest_peers(keys, key_labels, gradient=False)
    providers: dict[str, Run] = {"fastood": lambda: index.nearest(query, query_labels)}
    providers |= {name: lambda search=search: search(query, query_labels) for name, search in searches.items()}
    by_bytes, bytes_are = floor("cuda", 4 * dim * num_keys * min(queries, classes) // classes, 0)
    # A multiply-add of torch.mm counts as two operations and is one instruction.
    instructions, rate = 2 * queries * num_keys * dim // classes, matmul_rate("cuda") / 2
    by_work = instructions / rate
    floor_is = (
        bytes_are if by_bytes > by_work else f"{instructions} instructions at the {rate / 1e9:.0f} per ns of torch.mm"
    )
    return Measurement(providers, max(by_bytes, by_work), floor_is, input_bytes=query.nbytes + keys.nbytes)


def scores(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    logits = torch.randn(*shape, device="cuda") * 3
    calls = {"eager": eager_scores}
    if shape == goal.shape:
        torch.compiler.reset()
        calls["torch.compile"] = torch.compile(eager_scores, dynamic=False)

    def without_gradient(call: Callable[[torch.Tensor, bool], object]) -> Run:
        def run() -> None:
            with torch.no_grad():
                call(logits, True)

        return run

    seconds, floor_is = floor("cuda", logits.nbytes, 0)
    providers: dict[str, Run] = {"fastood": lambda: logit_scores(logits, scores=None, gen_gamma=0.1)}
    providers |= {name: without_gradient(call) for name, call in calls.items()}
    return Measurement(providers, seconds, f"one read of the logits: {floor_is}", input_bytes=logits.nbytes)


def augment(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    from test_augment_images import CHANNELS, eager_batch

    pool, batch, size = shape
    images = torch.randint(256, (pool, CHANNELS, size, size), dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    augment = Augment(padding=size // 8, flip=True)
    index = torch.randint(pool, (batch,), generator=generator, device="cuda")
    draws = augment.draw(batch, height=size, generator=generator)
    seconds, floor_is = floor("cuda", 5 * batch * CHANNELS * size * size, 0)
    return Measurement(
        {
            "fastood": lambda: augment.apply(images, index, draws),
            "eager": lambda: eager_batch(images, index, draws, padding=size // 8),
            "empty kernel": empty_kernel,
        },
        seconds,
        f"five bytes a pixel: {floor_is}",
    )


def resampling_step(goal: Goal, shape: tuple[int, ...]) -> Measurement:
    from test_resampling_step import providers_of, task_of

    return Measurement(
        providers_of("wrn-16-1", task_of(scale=1 if shape == goal.shape else 50), "cuda", batch=shape[0])
    )


MEASURES: dict[str, Callable[[Goal, tuple[int, ...]], Measurement]] = {
    measure.__name__: measure
    for measure in (
        losses,
        pool_step,
        pool_exact,
        metrics,
        head_forward,
        head_backward,
        nearest,
        scores,
        augment,
        resampling_step,
    )
}


@pytest.mark.parametrize("name", ["copy on the device", "empty launch", "empty kernel in a graph"])
def test_floor(name: str, tiny: bool, budget: dict[str, float], record: Callable[[Comparison, Run], None]) -> None:
    """Measure lower bounds for every kernel on this GPU: a copy, a launch, and a launch from a graph."""
    size = 1 << 16 if tiny else COPY_BYTES
    if name == "copy on the device":
        source = torch.zeros(size, dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)

        def run() -> None:
            target.copy_(source)

        subject: Run = run
    else:
        subject = empty_kernel if name == "empty launch" else in_graph(empty_kernel)
    is_copy = name == "copy on the device"
    comparison = compare(
        f"floor: {name}",
        f"{size >> 10} KiB" if is_copy else "back to back",
        {"subject": subject},
        subject="subject",
        device="cuda",
        input_bytes=2 * size if is_copy else None,
        cold=is_copy,
        **budget,
    )
    record(comparison, subject)


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.key)
def test_goal(goal: Goal, tiny: bool, budget: dict[str, float], record: Callable[[Comparison, Run], None]) -> None:
    shape = goal.tiny if tiny else goal.shape
    if not tiny:
        copy_bandwidth("cuda", COPY_BYTES)  # measured before the goal's tensors take memory
    measured = MEASURES[goal.measure](goal, shape)
    comparison = compare(
        f"goal {goal.key}: {goal.work}",
        "x".join(map(str, shape)),
        measured.providers,
        subject="fastood",
        dtype=goal.dtype,
        device="cuda",
        floor=measured.floor,
        floor_is=measured.floor_is,
        input_bytes=measured.input_bytes,
        cold=measured.cold,
        **budget,
    )
    record(comparison, measured.providers["fastood"])
