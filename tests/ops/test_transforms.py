"""torch.func, forward mode, checkpointing and inference mode over losses, scores and Mahalanobis logits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastood.losses import DeepSVDDLoss, MixedBatchLoss, PrototypeLoss
from fastood.ops import logit_scores
from fastood.ops.mahalanobis_logits import mahalanobis_logits
from tests.support.loss_modules import LOSS_MODULES, Batch, LossModule, by_the_paper, mixed_batch

modules = pytest.mark.parametrize("module", LOSS_MODULES, ids=str)
reductions = pytest.mark.parametrize("reduction", ["weighted_mean", "mean", "sum"])


def of_logits(module: LossModule, batch: Batch, **settings: object) -> Callable[[Tensor], Tensor]:
    criterion = module.make(**settings)
    return lambda logits: module.call(criterion, replace(batch, logits=logits), True)


@modules
@reductions
def test_grad_is_that_of_autograd(module: LossModule, reduction: str) -> None:
    batch = mixed_batch(rows=8)
    loss = of_logits(module, batch, reduction=reduction)
    leaf = batch.logits.clone().requires_grad_()
    want = loss(leaf)
    want.backward()
    gradient, value = torch.func.grad_and_value(loss)(batch.logits)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(gradient, leaf.grad)
    torch.testing.assert_close(torch.func.jacrev(loss)(batch.logits), leaf.grad)
    torch.testing.assert_close(torch.func.jacfwd(loss)(batch.logits), leaf.grad)
    tangent = torch.ones_like(leaf)
    torch.testing.assert_close(torch.func.jvp(loss, (batch.logits,), (tangent,))[1], leaf.grad.sum())


@modules
def test_hessian_is_that_of_autograd(module: LossModule) -> None:
    batch = mixed_batch(rows=3)
    loss = of_logits(module, batch)
    want = torch.autograd.functional.hessian(loss, batch.logits)
    torch.testing.assert_close(torch.func.hessian(loss)(batch.logits), want)


@modules
def test_vmap_is_a_loop(module: LossModule) -> None:
    """Per-sample gradients among others: a batch of batches, targets and weights with them."""
    batches = [mixed_batch(seed, rows=6) for seed in range(3)]
    criterion = module.make()

    def loss(*tensors: Tensor) -> Tensor:
        return module.call(criterion, Batch(*tensors), True)

    stacked = [torch.stack(values) for values in zip(*(vars(batch).values() for batch in batches), strict=True)]
    want = torch.stack([loss(*vars(batch).values()) for batch in batches])
    torch.testing.assert_close(torch.func.vmap(loss)(*stacked), want)
    gradients = torch.func.vmap(torch.func.grad(loss))(*stacked)
    for batch, gradient in zip(batches, gradients, strict=True):
        leaf = batch.logits.clone().requires_grad_()
        loss(leaf, *list(vars(batch).values())[1:]).backward()
        torch.testing.assert_close(gradient, leaf.grad)


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_under_grad_are_those_of_autograd(module: LossModule, dtype: torch.dtype) -> None:
    batch = mixed_batch(rows=6).to(dtype)
    batch = replace(batch, uniform01=torch.zeros_like(batch.uniform01))
    gradient, value = torch.func.grad_and_value(of_logits(module, batch))(batch.logits)
    assert gradient.dtype == dtype
    assert value.dtype == torch.float32


@modules
def test_functional_call_trains_a_head(module: LossModule) -> None:
    head = torch.nn.Linear(5, 7, dtype=torch.float64)
    batch = mixed_batch(rows=8)
    criterion = module.make()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = -torch.func.functional_call(head, parameters, (batch.features,)).square()
        return module.call(criterion, replace(batch, logits=logits))

    found = torch.func.grad(loss)(dict(head.named_parameters()))
    loss(dict(head.named_parameters())).backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@modules
def test_forward_mode(module: LossModule) -> None:
    batch = mixed_batch(rows=8)
    loss = of_logits(module, batch)
    tangent = torch.linspace(-1, 1, batch.logits.numel(), dtype=torch.float64).reshape(batch.logits.shape)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(loss(forward_ad.make_dual(batch.logits, tangent))).tangent
    leaf = batch.logits.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(got, (leaf.grad * tangent).sum())


@modules
def test_checkpointing_and_inference_mode(module: LossModule) -> None:
    batch = mixed_batch(rows=8, dtype=torch.float32)
    loss = of_logits(module, batch)
    leaf = batch.logits.clone().requires_grad_()
    want = loss(leaf)
    want.backward()
    again = batch.logits.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(loss, again, use_reentrant=False).backward()
    assert torch.equal(again.grad, leaf.grad)
    with torch.inference_mode():
        assert torch.equal(loss(batch.logits.clone()), want)
        criterion = module.make(reduction="sum")
        if isinstance(criterion, MixedBatchLoss):
            module.call(criterion, batch, True, "value_and_grad")


@modules
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_within_a_compiled_function(module: LossModule, backend: str) -> None:
    batch = mixed_batch(rows=8)
    gradient = torch.func.grad(of_logits(module, batch))
    torch._dynamo.reset()
    got = torch.compile(gradient, backend=backend)(batch.logits)
    torch.testing.assert_close(got, gradient(batch.logits))


def test_targets_out_of_range_are_refused_under_a_transform() -> None:
    module = LOSS_MODULES[0]
    batch = mixed_batch(rows=4)
    batch.targets[0] = 7
    with pytest.raises(ValueError, match=r"^targets must be below K = 7"):
        torch.func.grad(of_logits(module, batch))(batch.logits)


@modules
def test_means_under_vmap_are_the_papers(module: LossModule) -> None:
    """Against the formulas rather than the kernels: one batch among two, with rows of one kind alone."""
    batch = mixed_batch(rows=6)
    batch = replace(batch, targets=torch.full_like(batch.targets, -1))
    loss = of_logits(module, batch)
    want, _ = by_the_paper(module, batch, True, "weighted_mean")
    got = torch.func.vmap(loss)(torch.stack([batch.logits, batch.logits]))
    torch.testing.assert_close(got, torch.stack([want, want]))


def test_other_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 4, generator=generator)
    prototypes = torch.randn(2, 3, 4, generator=generator)
    targets = torch.tensor([0, 1, -1, 1, 0, -1])

    def prototype_loss(z: Tensor) -> Tensor:
        return PrototypeLoss()(z, prototypes, targets)

    def svdd_loss(z: Tensor) -> Tensor:
        return DeepSVDDLoss(0.5)(z.square().sum(1), torch.tensor(1.0))

    for loss in (prototype_loss, svdd_loss):
        leaf = features.clone().requires_grad_()
        torch.stack([loss(z) for z in leaf]).sum().backward()
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(features), leaf.grad)


def test_scores_under_vmap_are_a_loop() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    got = torch.func.vmap(lambda v: logit_scores(v, num_reject=2))(logits)
    for name, values in got.items():
        assert torch.equal(values, torch.stack([logit_scores(v, num_reject=2)[name] for v in logits]))
    rows = torch.func.vmap(lambda v: logit_scores(v, scores=["energy"])["energy"], in_dims=1, out_dims=1)(logits)
    assert torch.equal(rows, logit_scores(logits.reshape(15, 7), scores=["energy"])["energy"].reshape(3, 5))


@pytest.mark.parametrize("diagonal", [False, True])
def test_mahalanobis_logits(diagonal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    means = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    scale = scale if diagonal else torch.diag(scale) + 0.1 * torch.ones(3, 3, dtype=torch.float64).tril(-1)

    def loss(z: Tensor, m: Tensor, tril: Tensor) -> Tensor:
        return mahalanobis_logits(z, m, tril).square().sum()

    for argument in range(3):
        leaves = [x.clone().requires_grad_() for x in (features[0], means, scale)]
        loss(*leaves).backward()
        got = torch.func.grad(loss, argnums=argument)(features[0], means, scale)
        torch.testing.assert_close(got, leaves[argument].grad)
    got = torch.func.vmap(loss, in_dims=(0, None, None))(features, means, scale)
    torch.testing.assert_close(got, torch.stack([loss(z, means, scale) for z in features]))
    got = torch.func.jacfwd(lambda z: mahalanobis_logits(z, means, scale))(features[0])
    torch.testing.assert_close(got, torch.func.jacrev(lambda z: mahalanobis_logits(z, means, scale))(features[0]))
    single = torch.func.grad(loss)(features[0].bfloat16(), means.float(), scale.float())
    assert single.dtype == torch.bfloat16
