"""Options of the data that a run trains and is evaluated on."""

import math
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

from fastood.data.embedded.image_sets import EMBEDDED_OOD, EmbeddedConfig
from fastood.data.images.noise import NOISES, NoiseSpace
from fastood.data.sources.overlap import overlap_lists
from fastood.data.sources.source_spec import SourceSpec, parse_named_spec, parse_spec

_WITH_CLASSES = ("folder", "packed", "torchvision", "set")
"""Kinds of sources with named classes."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources of the images, and the size and channels that they are fitted to.

    A source is one of: embedded (digits, letters, photographs; no download), the name of a data set under --data.root
    (cifar10, tiny-imagenet, …: `python -m fastood.data list`), folder:PATH (of PATH/CLASS/IMAGE), torchvision:NAME,
    list:FILE (one image path per line), packed:PATH (written by `python -m fastood.data pack`; mapped, not decoded),
    npy:IMAGES.npy[,LABELS.npy] (uint8 `[N, H, W]` or `[N, H, W, C]`, integers `[N]`). Background and OOD sets may also
    be gaussian, uniform, rademacher or blobs (noise), and folders without class folders. A leading ~ in a path is the
    home folder. The background may be none, for methods that train without it.

    Raises:
        ValueError: If a source is unknown or used twice, or a value is out of range.

    Example:
        >>> DataConfig(in_dist="cifar10", background="folder:pictures", ood=("svhn", "noise=gaussian")).size
        32
    """

    in_dist: str = "embedded"
    """In-distribution training images, with labels.
    embedded: scikit-learn's digits, no download.
    NAME: the training part of a data set under --data.root, e.g. cifar10; `python -m fastood.data list` shows all.
    folder:PATH: a tree PATH/CLASS/IMAGE.
    torchvision:NAME: a data set by its name in torchvision, e.g. CIFAR10.
    npy:IMAGES.npy,LABELS.npy: uint8 `[N, H, W]` or `[N, H, W, C]`, and integers `[N]`.
    packed:PATH: a labelled pool, written by `python -m fastood.data pack`."""
    in_dist_test: str | None = None
    """In-distribution test images. Default: the test part of the data set, or test_fraction of every class."""
    background: str = "auto"
    """Background pool: any source of in_dist, where labels are not needed, or list:FILE or noise.
    packed:PATH: stays in its file at any size; its images must have the size and channels of the task.
    none: no images, for methods that train without them.
    auto: embedded for the embedded digits, else none."""
    ood: tuple[str, ...] = ("embedded",)
    """OOD test sets: any number of NAME=SOURCE, names of data sets or noise, or embedded for the six sets of the
    embedded digits. Data sets are represented by their test parts."""
    exclude_overlap: str | None = None
    """Leave out the background classes that repeat in-distribution classes, by a list of fastood/data/sources/overlap,
    e.g. tiny-imagenet-vs-cifar10; also for a folder with such classes."""
    blend: float | None = None
    """Weight, in (0, 1), of an in-distribution training image that is blended into each background image, which makes
    outliers more similar to the in-distribution images. Mohseni et al. 2020 use 0.1 for ImageNet and CIFAR. None: no
    blending. Not for packed pools and other images that stay in their files."""
    test_fraction: float = 1 / 3
    """Fraction of every class held out for testing if in_dist has no test set."""
    image_size: int | None = None
    """Rows and columns; the shorter edge is resized to this, then the centre is cropped, once before training.
    Default: 16 for the embedded digits, else 32."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB). Default: that of in_dist, RGB for a folder."""
    root: Path = Path("data")
    """Folder of the named data sets, in torchvision's layout."""
    list_root: Path | None = None
    """Base folder of relative paths in list:FILE if the first of them is not in the folder of the list.
    Default: the working folder in which the run began."""
    download: bool = False
    """Let torchvision fetch datasets that are missing under the root."""
    noise_size: int = 10_000
    """Images in a set of noise; the paper's code draws 10,000."""
    decode: Literal["auto", "memory", "stream"] = "auto"
    """When image files and packed pools of JPEGs are decoded; the pixels are equal.
    memory: all before training. stream: each image whenever it is used (`python -m fastood.data pack` decodes once).
    auto: stream for sets that take more than decode_budget_gb when decoded; the whole set counts, for any number of
    processes."""
    decode_budget_gb: float = 2.0
    """Limit in GB (10⁹ bytes) of the decoded images of one set that auto keeps in memory, and of the images of a packed
    pool that exclude_overlap copies into memory."""
    noise_space: NoiseSpace = "normalized"
    """Space that noise is drawn in; papers differ, and results are comparable only within one space.
    normalized: ±1 of normalised images, pixels 64…191 (CIFAR tables). pixel: 0…255 (MNIST, SVHN tables).
    The noise of the embedded sets is always normalized."""
    loader: Literal["auto", "resident", "dataloader", "dali"] = "auto"
    """Loader of the training images; the pixels are equal except for image files that DALI decodes.
    resident: from the memory of the device. dataloader: by worker processes. dali: by NVIDIA DALI, an extra.
    auto: dataloader if a set is decoded on use, resident if all sets fit into half of the memory, else dali if
    installed, else dataloader."""
    prefetch_depth: int | None = None
    """Training batches that dataloader and dali prepare ahead. The sampler's weights lag by this many steps, at the
    beginning by fewer.
    Default: 0 for resident, 2 for the others."""
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    """The embedded digits, letters and photographs."""

    def __post_init__(self) -> None:
        for name, low in (("image_size", 8), ("noise_size", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"data.{name} must be {low} or larger, got {value}")
        if self.decode not in ("auto", "memory", "stream"):
            raise ValueError(f"data.decode must be one of auto, memory, stream, got {self.decode!r}")
        if not 0 <= self.decode_budget_gb < math.inf:
            raise ValueError(f"data.decode_budget_gb must be finite and 0 or larger, got {self.decode_budget_gb}")
        if self.decode == "stream" and self.loader == "resident":
            raise ValueError("data.loader resident keeps decoded images, got data.decode stream: choose one of them")
        if self.noise_space not in get_args(NoiseSpace):
            raise ValueError(f"data.noise_space must be one of normalized, pixel, got {self.noise_space!r}")
        if self.loader not in ("auto", "resident", "dataloader", "dali"):
            raise ValueError(f"data.loader must be one of auto, resident, dataloader, dali, got {self.loader!r}")
        if self.prefetch_depth is not None and self.prefetch_depth < 0:
            raise ValueError(f"data.prefetch_depth must be 0 or larger, got {self.prefetch_depth}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}")
        if self.blend is not None and not 0 < self.blend < 1:
            raise ValueError(f"data.blend must be in (0, 1), or None, got {self.blend}")
        if self.blend is not None and self.background_spec.kind in ("packed", "none"):
            kind = "a packed data.background" if self.background_spec.kind == "packed" else "data.background none"
            raise ValueError(f"data.blend must be None for {kind}, got {self.blend}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"data.test_fraction must be in (0, 1), got {self.test_fraction}")
        self._check_in_distribution()
        self._check_embedded_and_names()
        self._check_overlap()
        if self.exclude_overlap is not None and self.exclude_overlap not in overlap_lists():
            names = ", ".join(overlap_lists())
            raise ValueError(f"data.exclude_overlap must be one of {names}, got {self.exclude_overlap!r}")
        if self.exclude_overlap is not None and self.background_spec.kind not in _WITH_CLASSES:
            raise ValueError(
                f"data.exclude_overlap needs a data.background with named classes, got {str(self.background_spec)!r}"
            )

    @property
    def size(self) -> int:
        """Rows and columns of every image."""
        if self.image_size is not None:
            return self.image_size
        return 16 if self.in_dist_spec.kind == "embedded" else 32

    @property
    def in_dist_spec(self) -> SourceSpec:
        """`in_dist`, parsed."""
        return parse_spec(self.in_dist, field="in_dist")

    @property
    def in_dist_test_spec(self) -> SourceSpec | None:
        """`in_dist_test`, parsed."""
        return None if self.in_dist_test is None else parse_spec(self.in_dist_test, field="in_dist_test")

    @property
    def background_spec(self) -> SourceSpec:
        """`background`, parsed; auto is replaced by its source."""
        if self.background == "auto":
            return SourceSpec("embedded" if self.in_dist_spec.kind == "embedded" else "none")
        return parse_spec(self.background, field="background")

    @property
    def ood_specs(self) -> tuple[tuple[str, SourceSpec], ...]:
        """`ood`, parsed: names (empty for embedded) and sources."""
        return tuple(parse_named_spec(text, field="ood") for text in self.ood)

    @property
    def kinds(self) -> frozenset[str]:
        """`SourceSpec.kind` of all sources."""
        specs = (self.in_dist_spec, self.in_dist_test_spec, self.background_spec, *(spec for _, spec in self.ood_specs))
        return frozenset(spec.kind for spec in specs if spec is not None)

    def _check_in_distribution(self) -> None:
        test = self.in_dist_test_spec
        for name, spec in (
            ("in_dist", self.in_dist_spec),
            ("in_dist_test", test),
            *(("ood", s) for _, s in self.ood_specs),
        ):
            if spec is not None and spec.kind == "none":
                raise ValueError(f"data.{name} must name images, got none; data.background alone may be none")
        for name, spec in (("in_dist", self.in_dist_spec), ("in_dist_test", test)):
            if spec is None:
                continue
            if spec.kind in NOISES:
                raise ValueError(f"data.{name} must have labels, got {spec.kind!r}, which is noise")
            if spec.kind == "list":
                raise ValueError(f"data.{name} must have labels, got a list of files, list:{spec.argument}")
            if spec.kind == "npy" and len(spec.paths) != 2:
                raise ValueError(f"data.{name} must have labels: npy:IMAGES.npy,LABELS.npy, got npy:{spec.argument}")
        if test is not None and not test.has_test_part and test.overlaps(self.in_dist_spec):
            raise ValueError(f"data.in_dist_test must not repeat data.in_dist, got {self.in_dist_test!r}")

    def _check_embedded_and_names(self) -> None:
        if not self.ood:
            raise ValueError("data.ood must name at least one set, got none")
        names = [name for name, _ in self.ood_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"data.ood must have different names, got {names}")
        embedded = [name for name in EMBEDDED_OOD if "" in names and name in names]
        if embedded:
            raise ValueError(f"data.ood: {embedded[0]!r} is the name of an embedded set already")
        if self.in_dist_spec.kind == "embedded":
            named = [
                text
                for text, (name, spec) in zip(self.ood, self.ood_specs, strict=True)
                if name and spec.kind == "embedded"
            ]
            if named:
                raise ValueError(f"data.ood: {named[0]!r} must be embedded, without a name")
            if self.in_dist_test not in (None, "embedded"):
                raise ValueError(
                    f"data.in_dist_test must be left out with data.in_dist='embedded', got {self.in_dist_test!r}"
                )
            return
        for name, spec in (
            ("in_dist_test", self.in_dist_test_spec),
            ("background", self.background_spec),
            *(("ood", spec) for _, spec in self.ood_specs),
        ):
            if spec is not None and spec.kind == "embedded":
                raise ValueError(
                    f"data.{name}: 'embedded' belongs to data.in_dist='embedded' alone; with "
                    f"data.in_dist={self.in_dist!r} give --data.{name.replace('_', '-')} "
                    f"{'NAME=folder:PATH' if name == 'ood' else 'folder:PATH'} or another source"
                )

    def _check_overlap(self) -> None:
        parts = [("data.in_dist", self.in_dist_spec), ("data.background", self.background_spec)]
        parts += [(f"data.ood {name!r}", spec) for name, spec in self.ood_specs]
        if self.in_dist_test_spec is not None:
            parts += [("data.in_dist_test", self.in_dist_test_spec)]
        for (first, spec), (second, other) in combinations(parts, 2):
            if (first, second) == ("data.in_dist", "data.in_dist_test") or not spec.overlaps(other):
                continue
            if spec.kind in NOISES:
                # Their images differ, but an OOD set drawn like the background does not measure generalisation.
                raise ValueError(f"{first} and {second} must not be of one kind of noise, both are {spec}")
            raise ValueError(f"{first} and {second} must not share images, {_both(spec, other)}")


def _both(first: SourceSpec, second: SourceSpec) -> str:
    return f"both are {first}" if first == second else f"got {first} and {second}"
