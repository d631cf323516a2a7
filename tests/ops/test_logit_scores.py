import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastood.ops import logit_scores
from fastood.ops.logit_scores import SCORES
from fastood.ops.reference import logit_scores as reference
from tests.support.op_samples import DTYPES, SCORE_SAMPLES, ScoreSample

INF, NAN = math.inf, math.nan


def eager(logits: Tensor, gen_gamma: float = 0.1) -> dict[str, Tensor]:
    """What people write today, in the dtype of the logits; the maximum softmax as log-odds, of the others' sum."""
    log_f = torch.log_softmax(logits, 1)
    f = log_f.exp()
    largest, where = logits.max(1, keepdim=True)
    others = logits.scatter(1, where, -INF)
    return {
        "msp": torch.logsumexp(others, 1) - largest.squeeze(1),
        "max_logit": -largest.squeeze(1),
        "energy": -torch.logsumexp(logits, 1),
        "entropy": -(f * log_f).sum(1),
        "kl_uniform": log_f.mean(1) + math.log(logits.shape[1]),
        "gen": (f * (1 - f)).pow(gen_gamma).sum(1),
    }


def assert_close(got: Tensor, want: Tensor, tolerance: float, scale: Tensor | float = 1.0) -> None:
    """Errors below `tolerance` of the value or of `scale`, whichever is larger; infinities are equal."""
    error = torch.where(got.double() == want, 0, (got.double() - want).abs())
    allowed = tolerance * torch.maximum(want.abs().clamp(max=1e300), torch.as_tensor(scale).to(want))
    assert bool((error <= allowed).all()), f"{float((error / allowed).max()):.3g} times the error allowed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", SCORE_SAMPLES, ids=str)
def test_matches_float64_reference(sample: ScoreSample, dtype: torch.dtype, device: str) -> None:
    logits = sample.make(device, dtype)
    got = logit_scores(logits, **sample.settings)
    want = reference.logit_scores(logits, **sample.settings)
    assert list(got) == [*SCORES, *(["reject"] if sample.num_reject else [])]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    # Where a score is a difference of logits, a rounding of theirs counts.
    scale = logits.double().abs().amax(1) if logits.numel() else torch.ones(())
    for name, score in got.items():
        assert score.shape == (sample.rows,)
        assert score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(score, want[name], tolerance, 1.0 if name in ("entropy", "gen") else scale.clamp_min(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_error_at_most_twice_that_of_pytorch(dtype: torch.dtype, spread: float, classes: int, device: str) -> None:
    logits = ScoreSample(64, classes, spread=spread).make(device, dtype)
    want = reference.logit_scores(logits)
    theirs, ours = eager(logits), logit_scores(logits)
    for name in SCORES:
        their_error = (theirs[name].double() - want[name]).abs().max()
        assert (ours[name].double() - want[name]).abs().max() <= 2 * their_error + 1e-7 * want[name].abs().max()


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_confident_rows_keep_their_digits(classes: int, device: str) -> None:
    """Float32 softmax is exactly 1 for all of these; msp orders any margins, entropy and gen to where they end."""
    margin = torch.linspace(24, 80, 61, device=device)
    logits = torch.zeros(61, classes, device=device)
    logits[:, classes // 2] = margin
    assert (logits.softmax(1).amax(1) == 1).all()
    odds = (classes - 1) * torch.exp(-margin.double())
    scores = logit_scores(logits)
    assert_close(scores["msp"], math.log(classes - 1) - margin.double(), 1e-6)
    assert_close(scores["entropy"], odds * (1 + margin.double()), 1e-5, 0.0)
    largest = (odds * (1 - odds)).pow(0.1)
    assert_close(scores["gen"], largest + (classes - 1) * (odds / (classes - 1)).pow(0.1), 1e-5, 0.0)
    far = logit_scores(logits * 1e6)["msp"]
    assert (far.diff() < 0).all()


@pytest.mark.parametrize("classes", [2, 10, 300, 1000])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 1.0, 5.0])
def test_kl_uniform_keeps_its_digits_near_the_uniform_point(
    classes: int, offset: float, spread: float, device: str
) -> None:
    logits = ScoreSample(64, classes, spread=spread).make(device, torch.float32) + offset
    v = logits.double()
    exact = torch.log1p(torch.expm1(v - v.mean(1, keepdim=True)).mean(1))
    assert_close(logit_scores(logits)["kl_uniform"], -exact, 1e-5, 0.0)


@pytest.mark.parametrize("classes", [5, 300])
def test_gen_top_counts_ties_exactly(classes: int, device: str) -> None:
    logits = torch.zeros(3, classes, device=device)
    logits[1, 2] = 1.0
    logits[2, :3] = torch.tensor([2.0, 1.0, 1.0])
    for top in (1, 2, 3, 4, classes):
        want = reference.logit_scores(logits, gen_top=top)["gen"]
        assert_close(logit_scores(logits, gen_top=top)["gen"], want, 2e-6)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0])
def test_gen_gamma(gamma: float, device: str) -> None:
    logits = ScoreSample(40, 20, spread=3).make(device, torch.float32)
    got = logit_scores(logits, gen_gamma=gamma, gen_top=5, scores=["gen"])["gen"]
    assert_close(got, reference.logit_scores(logits, gen_gamma=gamma, gen_top=5)["gen"], 2e-6)


@pytest.mark.parametrize("scores", [["msp"], ["max_logit"], ["gen", "energy"], ["reject"], ["kl_uniform", "reject"]])
@pytest.mark.parametrize("classes", [10, 300])
def test_a_score_does_not_depend_on_what_else_is_asked_for(scores: list[str], classes: int, device: str) -> None:
    logits = ScoreSample(21, classes, num_reject=3, gen_top=5).make(device, torch.float32)
    everything = logit_scores(logits, num_reject=3, gen_top=5)
    some = logit_scores(logits, num_reject=3, gen_top=5, scores=scores)
    assert set(some) == set(scores)
    assert all(torch.equal(score, everything[name]) for name, score in some.items())


@pytest.mark.parametrize("columns", [3, 300])
def test_special_rows(columns: int, device: str) -> None:
    def padded(*values: float) -> list[float]:
        return [*values, *[-INF] * (columns - len(values))]

    rows = [padded(1.0, 0.0), padded(4.0), padded(), padded(0.0, NAN), padded(0.0, INF), padded(3e38, -3e38, 0.0)]
    for dtype in (torch.float32, torch.float64):
        scores = logit_scores(torch.tensor(rows, device=device, dtype=dtype), gen_top=None)
        want = reference.logit_scores(torch.tensor([[1.0, 0.0]]))
        for name in SCORES:
            masked, alone, *bad, huge = scores[name].tolist()
            assert all(math.isnan(value) for value in bad), name
            assert masked == (-INF if name == "kl_uniform" else pytest.approx(want[name].item(), rel=1e-6)), name
            assert (
                alone == {"msp": -INF, "max_logit": -4, "energy": -4, "entropy": 0, "kl_uniform": -INF, "gen": 0}[name]
            )
            assert not math.isnan(huge)
    with_ties = logit_scores(torch.tensor([padded(1.0, 0.0)], device=device), gen_top=columns - 1)
    assert with_ties["gen"].item() == pytest.approx(want["gen"].item(), rel=1e-6)


@pytest.mark.parametrize("columns", [2, 300])
def test_special_reject_classes(columns: int, device: str) -> None:
    rest = torch.zeros(5, columns, device=device)
    rest[4] = NAN
    reject = torch.tensor([[-INF, -INF], [NAN, 0.0], [INF, 0.0], [-INF, 1.0], [-INF, -INF]], device=device)
    scores = logit_scores(torch.cat([rest, reject], 1), num_reject=2)
    masked, *bad, one, broken = scores["reject"].tolist()
    assert masked == -INF
    assert all(math.isnan(value) for value in (*bad, broken))
    assert one == pytest.approx(1 - math.log(columns), rel=1e-6)
    # The other scores do not read the reject classes.
    alone = logit_scores(rest)
    assert all(torch.equal(scores[name][:4], alone[name][:4]) for name in SCORES)


def test_one_class(device: str) -> None:
    scores = logit_scores(torch.tensor([[3.0], [-50.0]], device=device))
    assert {name: score.tolist() for name, score in scores.items()} == {
        "msp": [-INF, -INF],
        "max_logit": [-3, 50],
        "energy": [-3, 50],
        "entropy": [0, 0],
        "kl_uniform": [0, 0],
        "gen": [0, 0],
    }


@pytest.mark.parametrize("classes", [31, 300])
def test_nothing_depends_on_the_number_of_threads(classes: int) -> None:
    logits = ScoreSample(20001, classes, num_reject=2).make("cpu", torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(logit_scores(logits, num_reject=2, gen_top=7))
    finally:
        torch.set_num_threads(threads)
    part = logit_scores(logits[77:91], num_reject=2, gen_top=7)
    for name, score in results[0].items():
        assert all(torch.equal(score, other[name]) for other in results[1:])
        assert torch.equal(score[77:91], part[name])


def test_large_shapes(device: str) -> None:
    """A 21,841-class head, 100,000 classes, and a million rows."""
    for rows, classes in ((3, 21_841), (2, 100_000), (1 << 20, 2)):
        logits = ScoreSample(rows, classes, spread=2).make(device, torch.float32)
        want = reference.logit_scores(logits, gen_top=100)
        for name, score in logit_scores(logits, gen_top=100).items():
            assert_close(score, want[name], 2e-6)


class Head(torch.nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return logit_scores(x * 2, num_reject=2, gen_top=4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: str) -> None:
    logits = torch.randn(12, 10, device=device, requires_grad=True)
    want = Head()(logits)
    got = torch.compile(Head(), fullgraph=True, backend=backend)(logits)
    torch.testing.assert_close(got, want)
    assert not any(score.requires_grad for score in (*got.values(), *want.values()))


def test_export(device: str) -> None:
    logits = torch.randn(12, 10, device=device)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(Head(), (logits,), dynamic_shapes=({0: batch},))
    for part in (logits, logits[:5]):
        torch.testing.assert_close(exported.module()(part), Head()(part))


def test_autocast_keeps_scores_in_float32(device: str) -> None:
    x, weight = torch.randn(8, 6, device=device), torch.randn(6, 10, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = x @ weight
        scores = logit_scores(logits)
    assert logits.dtype == torch.bfloat16
    assert all(score.dtype == torch.float32 for score in scores.values())


def test_fake_cuda_tensors_need_no_gpu() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        scores = logit_scores(torch.empty(8, 10, device="cuda", dtype=torch.bfloat16), scores=["msp", "gen"])
    assert {(s.device.type, s.dtype, s.shape) for s in scores.values()} == {("cuda", torch.float32, (8,))}


@pytest.mark.needs_cuda
@pytest.mark.parametrize("sample", SCORE_SAMPLES, ids=str)
def test_cuda_equals_cpu_and_repeats_bit_for_bit(sample: ScoreSample) -> None:
    logits = sample.make("cuda", torch.float32)
    first, second = (logit_scores(logits, **sample.settings) for _ in range(2))
    want = logit_scores(logits.cpu(), **sample.settings)
    for name in want:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name].cpu(), want[name], rtol=1e-5, atol=1e-6 * max(1, sample.spread))


@pytest.mark.needs_cuda
def test_cuda_graph_replay() -> None:
    logits = torch.randn(256, 2000, device="cuda")
    logit_scores(logits, gen_top=100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = logit_scores(logits, gen_top=100)
    logits.copy_(torch.randn(256, 2000) * 3)
    graph.replay()
    torch.testing.assert_close(scores, logit_scores(logits, gen_top=100))


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str) -> None:
    """The copies of the CPU kernels for older machines, in a process of their own: the choice is made once."""
    script = (
        "import torch, fastood; from fastood.ops import logit_scores\n"
        "from fastood.ops.reference import logit_scores as reference\n"
        f"assert fastood.build_info()['cpu_capability'] in ('baseline', '{capability}')\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for shape in [(33, 10), (5, 1000)]:\n"
        "    x = torch.randn(shape, generator=g); want = reference.logit_scores(x, num_reject=3, gen_top=5)\n"
        "    for name, score in logit_scores(x, num_reject=3, gen_top=5).items():\n"
        "        torch.testing.assert_close(score.double(), want[name], rtol=1e-5, atol=1e-6)\n"
    )
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [[1.0]]}, TypeError, "logits must be a torch.Tensor, got list"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits must be float64.*got torch.int64"),
        ({"logits": torch.zeros(3, 0)}, ValueError, r"K >= 1, got shape \(3, 0\)"),
        ({"num_reject": 3}, ValueError, "num_reject must be at least 0 and below 3, .* got 3"),
        ({"num_reject": -1}, ValueError, "num_reject must be at least 0 .* got -1"),
        ({"gen_gamma": 0.0}, ValueError, "gen_gamma must be finite and > 0, got 0.0"),
        ({"gen_gamma": NAN}, ValueError, "gen_gamma must be finite and > 0, got nan"),
        ({"gen_top": 0}, ValueError, "gen_top must be an int >= 1, got 0"),
        ({"num_reject": 1.0}, TypeError, "num_reject must be an int, got 1.0"),
        ({"gen_gamma": 10**400}, ValueError, "gen_gamma must be finite and > 0, got an int of 401 digits"),
        ({"gen_gamma": "x"}, TypeError, "gen_gamma must be a number, got 'x'"),
        ({"gen_top": [1]}, TypeError, r"gen_top must be an int >= 1, got \[1\]"),
        ({"scores": torch.ones(2)}, TypeError, "scores must be a sequence of names, got Tensor"),
        ({"scores": 5}, TypeError, "scores must be a sequence of names, got int"),
        ({"logits": torch.eye(3).to_sparse()}, TypeError, "logits must be a dense tensor, got layout torch.sparse_coo"),
        ({"scores": "msp"}, TypeError, "scores must be a sequence of names, got the string 'msp'"),
        ({"scores": []}, ValueError, "scores must be one or more of msp, .*, gen, got none"),
        ({"scores": ["msp", "odin"]}, ValueError, r"scores must be one or more of msp, .*, gen, got \['odin'\]"),
        ({"scores": ["reject"]}, ValueError, '"reject" where there are no reject classes: num_reject is 0'),
    ],
)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logit_scores(**{"logits": torch.zeros(2, 3), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0.1, 0), "scores must be a mask of 7 bits, one of them set, got 0"),
        ((128, 0, 0.1, 0), "scores must be a mask of 7 bits, .* got 128"),
        ((64, 0, 0.1, 0), "the reject score needs reject classes"),
        ((1, 3, 0.1, 0), "num_reject must be at least 0 and below 3, .* got 3"),
        ((1, 0, 0.0, 0), "gen_gamma must be above 0, got 0"),
        ((1, 0, 0.1, -1), "gen_top must be at least 0, got -1"),
    ],
)
def test_the_op_itself_refuses(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastood.logit_scores(torch.zeros(2, 3), *arguments)
