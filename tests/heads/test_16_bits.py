"""Heads of networks cast to 16 bits: computed in float32 on the rounded parameters, trained as `nn.Linear` is."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastood.heads import CholeskyMahalanobisHead, DecomposedConfidenceHead, HypersphereHead, PrototypeHead

WIDTH, CLASSES = 6, 3


def mahalanobis(covariance: str) -> Callable[[], nn.Module]:
    rank = 2 if covariance == "low_rank" else None
    return lambda: CholeskyMahalanobisHead(WIDTH, CLASSES, covariance=covariance, rank=rank)  # type: ignore[arg-type]


HEADS: dict[str, Callable[[], nn.Module]] = {
    "full": mahalanobis("full"),
    "diagonal": mahalanobis("diagonal"),
    "low_rank": mahalanobis("low_rank"),
    "prototypes": lambda: PrototypeHead(WIDTH, CLASSES, per_class=2, init_scale=1.0),
    "inner": lambda: DecomposedConfidenceHead(WIDTH, CLASSES, similarity="inner"),
    "euclidean": lambda: DecomposedConfidenceHead(WIDTH, CLASSES, similarity="euclidean"),
    "cosine": lambda: DecomposedConfidenceHead(WIDTH, CLASSES, similarity="cosine"),
    "linear": lambda: nn.Linear(WIDTH, CLASSES),
}
heads = pytest.mark.parametrize("name", HEADS)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@dtypes
@heads
def test_forward_is_that_of_the_rounded_parameters(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cast = HEADS[name]().to(dtype)
    wide = copy.deepcopy(cast).float()
    features = torch.randn(5, WIDTH).to(dtype)
    for mode in (True, False):
        found, want = cast.train(mode)(features), wide.train(mode)(features.float())
        if name == "linear":
            assert found.dtype == dtype
            continue
        assert found.dtype == torch.float32
        # BatchNorm's averages are rounded, as those of a BatchNorm in 16 bits are.
        torch.testing.assert_close(found, want, rtol=1e-2 if name in ("inner", "euclidean", "cosine") else 0, atol=0)


@dtypes
@heads
def test_trains_like_a_linear_layer(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), HEADS[name]()).to(dtype)
    wide = copy.deepcopy(model[1]).float()
    x, y = torch.randn(12, 5).to(dtype), torch.arange(12) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
    nn.functional.cross_entropy(wide(model[0](x).detach().float()), y).backward()
    for found, want in zip(model[1].parameters(), wide.parameters(), strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.float(), want.grad, rtol=2e-2, atol=2e-3)
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
    assert loss < first


@dtypes
@heads
@pytest.mark.parametrize("cast", [True, False])
def test_autocast_around_the_head_changes_nothing(name: str, cast: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if name == "linear":
        return
    head = HEADS[name]().to(dtype if cast else torch.float32).eval()
    features = torch.randn(5, WIDTH).to(dtype if cast else torch.float32).requires_grad_()
    want = head(features)
    with torch.autocast("cpu", dtype=dtype):
        found = head(features)
    assert torch.equal(found, want)
    found.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == features.dtype


@heads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compile(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    head, features = HEADS[name]().to(dtype).eval(), torch.randn(5, WIDTH).to(dtype)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), head(features))
    want = torch.autograd.grad(head(features).sum(), list(head.parameters()), allow_unused=True)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(features).sum(), list(head.parameters()), allow_unused=True), want
    )


@dtypes
def test_what_else_a_head_says(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for covariance in ("full", "diagonal", "low_rank"):
        head = mahalanobis(covariance)().to(dtype)
        wide = copy.deepcopy(head).float()
        assert isinstance(head, CholeskyMahalanobisHead)
        assert isinstance(wide, CholeskyMahalanobisHead)
        assert torch.equal(head.log_det(), wide.log_det())
        assert torch.equal(head.scale_tril, wide.scale_tril)
        assert head.condition_number() == pytest.approx(wide.condition_number(), rel=1e-6)
        head.limit_condition_(1.001)
        head.reset_parameters(torch.Generator().manual_seed(0))
        features = torch.randn(4, WIDTH).to(dtype)
        assert torch.equal(head.confidence(features), head(features).amax(1).exp())
    sphere = HypersphereHead(WIDTH).fit(torch.randn(9, WIDTH)).to(dtype)
    features = torch.randn(4, WIDTH).to(dtype)
    found = sphere(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (features.double() - sphere.center.double()).square().sum(1).float())


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(2, WIDTH - 1), ValueError, r"features must be \[N, 6\]"),
        (torch.zeros(2, 1), ValueError, r"features must be \[N, 6\]"),
        (torch.zeros(WIDTH), ValueError, r"features must be \[N, 6\]"),
        (torch.zeros(2, WIDTH, dtype=torch.int64), TypeError, "features must be .*got torch.int64"),
        (torch.zeros(2, WIDTH, dtype=torch.complex64), TypeError, "features must be .*got torch.complex64"),
        (torch.zeros(2, WIDTH).to(torch.float8_e4m3fn), TypeError, "features must be .*got torch.float8_e4m3fn"),
        ([[0.0] * WIDTH], TypeError, r"features must be a torch\.Tensor, got list"),
        (torch.zeros(2, WIDTH, device="meta"), ValueError, "must be on"),
    ],
)
def test_features_that_do_not_fit(features: Tensor, error: type[Exception], message: str) -> None:
    sphere = HypersphereHead(WIDTH).fit(torch.randn(9, WIDTH))
    for head in (sphere, *(make() for name, make in HEADS.items() if name != "linear")):
        with pytest.raises(error, match=message):
            head(features)
        if isinstance(head, DecomposedConfidenceHead):
            for call in (head.gate_logits, head.class_scores):
                with pytest.raises(error, match=message):
                    call(features)


def test_double_features_need_a_double_head() -> None:
    for name, make in HEADS.items():
        if name == "linear":
            continue
        with pytest.raises(TypeError, match=r"must be torch\.float"):
            make()(torch.zeros(2, WIDTH).double())
        assert make().eval().double()(torch.zeros(2, WIDTH).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale_tril": torch.eye(WIDTH, dtype=torch.complex64)}, TypeError, "scale_tril must be float64"),
        ({"scale_tril": torch.full((WIDTH, WIDTH), torch.nan)}, ValueError, "scale_tril must be finite"),
        ({"scale_tril": -torch.eye(WIDTH)}, ValueError, "scale_tril must have a diagonal above 0, got -1"),
        ({"scale_tril": [[1.0]]}, TypeError, r"scale_tril must be a torch\.Tensor, got list"),
        ({"center": torch.full((WIDTH,), torch.nan)}, ValueError, "center must be finite"),
        ({"center": torch.zeros(WIDTH, dtype=torch.complex64)}, TypeError, "center must be float64"),
        ({"scale_tril": torch.eye(WIDTH), "feature_scale": torch.nan}, ValueError, "feature_scale must be above 0"),
        (
            {"scale_tril": torch.eye(WIDTH), "feature_scale": "x"},
            TypeError,
            "feature_scale must be a real number, got 'x'",
        ),
    ],
)
def test_what_a_linear_layer_is_not_turned_into(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    linear = nn.Linear(WIDTH, CLASSES)
    with pytest.raises(error, match=message):
        CholeskyMahalanobisHead.from_linear(linear, **change)  # type: ignore[arg-type]
    linear.bias.data[1] = torch.inf
    with pytest.raises(ValueError, match=r"linear\.bias must be finite"):
        CholeskyMahalanobisHead.from_linear(linear)


@pytest.mark.parametrize(
    ("logits", "error"),
    [
        (torch.zeros(2, 3, 4, 5), ValueError),
        (torch.zeros(3), ValueError),
        (torch.zeros(()), ValueError),
        (torch.zeros(2, 0), ValueError),
        (torch.zeros(2, CLASSES + 1), ValueError),
        (torch.zeros(2, CLASSES, dtype=torch.complex64), TypeError),
        ([], TypeError),
    ],
)
def test_confidence_of_what_are_no_logits(logits: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="logits must be"):
        CholeskyMahalanobisHead(WIDTH, CLASSES).confidence(logits=logits)
