import numpy as np
import pytest

from fastood.data import DataConfig, load_task
from fastood.data.sources.named_sets import NAMED_SETS
from fastood.data.sources.source_spec import KNOWN_SPECS, parse_named_spec, parse_spec
from fastood.data.sources.torchvision_sets import TORCHVISION_SETS

OWN = {"in_dist": "torchvision:MNIST", "background": "folder:pool", "ood": ("noise=uniform",)}


def test_specs_parse():
    assert parse_spec("folder:a:b", field="ood").argument == "a:b"
    assert parse_spec("npy:x.npy,y.npy", field="in_dist").paths == ("x.npy", "y.npy")
    assert [parse_spec(text, field="ood").name for text in ("folder:a/cats", "npy:b/dogs.npy", "gaussian")] == [
        "cats",
        "dogs",
        "gaussian noise",
    ]
    name, spec = parse_named_spec("my set=folder:a=b", field="ood")
    assert (name, spec.kind, spec.argument) == ("my set", "folder", "a=b")


@pytest.mark.parametrize(
    "text", ["", "digits", "CIFAR10", "cifar10:train", "Folder:a", "gaussian:", "uniform:3", "embedded:greek"]
)
def test_unknown_sources_are_answered_with_what_is_known(text):
    with pytest.raises(ValueError) as error:
        parse_spec(text, field="background")
    assert str(error.value) == f"data.background: unknown source {text!r}; known: {KNOWN_SPECS}"


def test_every_named_set_is_known_by_one_source():
    specs = [parse_spec(name, field="ood") for name in NAMED_SETS]
    assert len(set(specs)) == len(specs)
    assert {spec.argument for spec in specs if spec.kind == "torchvision"} == set(TORCHVISION_SETS)


def test_named_sets_and_noise_name_themselves_as_ood_sets():
    config = DataConfig(in_dist="mnist", background="uniform", ood=("fashion-mnist", "blobs", "letters=emnist-letters"))
    assert [name for name, _ in config.ood_specs] == ["fashion-mnist", "blobs", "letters"]
    with pytest.raises(ValueError, match=r"data.in_dist and data.ood 'mnist' must not share images"):
        DataConfig(in_dist="torchvision:MNIST", background="uniform", ood=("mnist",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:CIFAR", r"unknown torchvision set 'CIFAR'; known: MNIST, .*CIFAR10, "),
        ("torchvision:", "unknown torchvision set ''"),
        ("folder:", "'folder:' must have the form folder:PATH"),
        ("npy:", r"must have the form npy:IMAGES.npy\[,LABELS.npy\]"),
        ("npy:a.npy,", "must have the form npy"),
        ("npy:a.npy,b.npy,c.npy", "must have the form npy"),
    ],
)
def test_malformed_sources(text, message):
    with pytest.raises(ValueError, match=f"data.in_dist: .*{message}"):
        parse_spec(text, field="in_dist")


@pytest.mark.parametrize("text", ["=gaussian", "a/b=gaussian", "folder:a=b", "torchvision:SVHN"])
def test_ood_sets_need_names(text):
    with pytest.raises(ValueError, match=r"data.ood: .* must have the form NAME=SOURCE"):
        DataConfig(ood=(text,))


def test_defaults_follow_the_in_distribution():
    assert DataConfig().size == 16
    assert DataConfig(**OWN).size == 32
    assert DataConfig(**OWN, image_size=28).size == 28


def test_embedded_task_takes_more_sets():
    config = DataConfig(background="npy:pool.npy", ood=("embedded", "more=folder:a", "noise=gaussian"))
    assert [name for name, _ in config.ood_specs] == ["", "more", "noise"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "data.image_size must be 8 or larger, got 7"),
        ({"noise_size": 0}, "data.noise_size must be 1 or larger, got 0"),
        ({"channels": 4}, "data.channels must be 1 or 3, got 4"),
        ({"test_fraction": 0}, r"data.test_fraction must be in \(0, 1\), got 0"),
        ({"loader": "disk"}, "data.loader must be one of auto, resident, dataloader, dali, got 'disk'"),
        ({"noise_space": "grey"}, "data.noise_space must be one of normalized, pixel, got 'grey'"),
        ({"prefetch_depth": -1}, "data.prefetch_depth must be 0 or larger, got -1"),
        ({"test_fraction": 1.0}, r"data.test_fraction must be in \(0, 1\), got 1.0"),
        ({"in_dist": "gaussian"}, "data.in_dist must have labels, got 'gaussian'"),
        ({"in_dist": "npy:a.npy"}, "data.in_dist must have labels: npy:IMAGES.npy,LABELS.npy, got npy:a.npy"),
        ({"in_dist_test": "npy:a.npy"}, "data.in_dist_test must have labels"),
        ({"in_dist_test": "uniform"}, "data.in_dist_test must have labels"),
        ({"in_dist": "folder:a", "in_dist_test": "folder:a"}, "data.in_dist_test must not repeat data.in_dist"),
        ({"ood": ()}, "data.ood must name at least one set"),
        ({"ood": ("a=gaussian", "a=uniform")}, "data.ood must have different names"),
        ({"background": "embedded"}, "data.background: 'embedded' belongs to data.in_dist='embedded'"),
        ({"ood": ("embedded",)}, "data.ood: 'embedded' belongs to"),
        ({"ood": ("x=embedded",)}, "data.ood: 'embedded' belongs to"),
        ({"background": "torchvision:MNIST"}, "data.in_dist and data.background must not share images"),
        (
            {"background": "uniform"},
            "data.background and data.ood 'noise' must not be of one kind of noise, both are uniform$",
        ),
        ({"ood": ("x=folder:pool/part",)}, "data.background and data.ood 'x' must not share images"),
        ({"ood": ("x=folder:other/../pool",)}, "data.background and data.ood 'x' must not share images"),
        ({"ood": ("x=torchvision:MNIST",)}, "data.in_dist and data.ood 'x' must not share images"),
        ({"in_dist_test": "folder:t", "ood": ("x=folder:t",)}, "data.ood 'x' and data.in_dist_test must not share"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**(OWN | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_dist_test": "folder:a"}, "data.in_dist_test must be left out with data.in_dist='embedded'"),
        ({"ood": ("embedded", "symbols=gaussian")}, "'symbols' is the name of an embedded set already"),
        ({"ood": ("x=embedded",)}, "data.ood: 'x=embedded' must be embedded, without a name"),
    ],
)
def test_embedded_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_the_small_sets_of_omniglot_share_images_with_it_and_with_each_other():
    whole, first, second = (parse_spec(f"omniglot{part}", field="ood") for part in ("", "-small1", "-small2"))
    assert first.overlaps(second)
    assert first.overlaps(whole)
    assert whole.overlaps(second)
    assert not first.overlaps(parse_spec("mnist", field="ood"))
    assert not first.overlaps(parse_spec("folder:omniglot", field="ood"))
    assert not parse_spec("isun", field="ood").overlaps(parse_spec("lsun-resize", field="ood"))


def test_two_npy_sets_with_the_same_images_overlap_whatever_their_labels():
    first = parse_spec("npy:a.npy", field="background")
    assert first.overlaps(parse_spec("npy:./a.npy,b.npy", field="ood"))
    assert not first.overlaps(parse_spec("npy:b.npy", field="ood"))
    assert not parse_spec("folder:pool", field="background").overlaps(parse_spec("folder:pool2", field="ood"))


def test_a_label_out_of_all_proportion_is_refused_before_memory_is(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 1, 10**11]))
    spec = f"npy:{tmp_path / 'images.npy'},{tmp_path / 'labels.npy'}"
    config = DataConfig(in_dist=spec, background="uniform", ood=("g=gaussian",))
    with pytest.raises(ValueError, match=r"data.in_dist must have labels below its 3 images, got 100000000000"):
        load_task(config, seed=0)
