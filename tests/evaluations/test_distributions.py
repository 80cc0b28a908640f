"""fid, kid, is and clip_score of pictures whose features are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image

from tilewright.errors import UserError
from tilewright.evaluations import clip_score, distributions, results, samples
from tilewright.evaluations.clip_score import ClipScore
from tilewright.evaluations.distributions import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
)
from tilewright.metrics.distances import kernel_distance
from tilewright.metrics.extractors import Extractor
from tilewright.metrics.scores import classifier_score

COUNT = 24


def features(pictures):
    """The mean of each channel in both halves."""
    return torch.cat([half.mean(dim=(2, 3)) for half in pictures.chunk(2, dim=2)], dim=1)


def random_images(seed, low=0.0):
    return low + (1 - low) * torch.rand(
        COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(seed)
    )


class Data:
    def __init__(self, folder):
        self.cache = folder / "codes"

    def examples(self, split, count):
        return [(image, "a red ring") for image in random_images(0)][:count]


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs an evaluation at a seed; its results."""

    class Model:
        def images(self, captions, *, sampling, seed):
            return random_images(seed + 1, low=0.3)[: len(captions), None]

    device = torch.device("cpu")
    extractor = Extractor("means", 6, 16, "0123", device, features, classes=lambda x: x / 20)
    monkeypatch.setattr(samples.TextToImage, "from_run", lambda run, device: Model())
    monkeypatch.setattr(distributions, "find_extractor", lambda *_: extractor)
    samples.draw.cache_clear()

    def run(evaluation, seed=0):
        folder = tmp_path / "eval"
        return evaluation(tmp_path, Data(tmp_path), seed=seed, device="cpu", folder=folder)

    return run


def folder_features(folder):
    """Of pictures of the network's own size, as they lie there."""
    pictures = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    return features(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()).numpy()


@pytest.mark.filterwarnings("ignore:.*`disp`:DeprecationWarning")
def test_fid_is_clean_fids_on_the_folders_that_it_leaves(measure, monkeypatch, tmp_path):
    large = replace(distributions.find_extractor(), size=299)  # clean-fid resizes to nothing else
    monkeypatch.setattr(distributions, "find_extractor", lambda *_: large)
    (result,) = measure(FrechetInceptionDistance())
    theirs = fid.compute_fid(
        str(tmp_path / "eval" / "real"),
        str(tmp_path / "eval" / "generated"),
        custom_feat_extractor=features,
        device=torch.device("cpu"),
        num_workers=0,
        use_dataparallel=False,
        verbose=False,
    )
    assert result.value == pytest.approx(theirs, rel=1e-6)
    assert result.value > 100
    assert (result.metric, result.split, result.images) == ("fd_means", "validation", COUNT)
    assert (tmp_path / "eval" / "samples.png").is_file()
    assert not (tmp_path / "eval" / "blur.png").exists()


def test_every_figure_says_how_it_came_about(measure):
    for evaluation in (FrechetInceptionDistance, KernelInceptionDistance, InceptionScore):
        for result in measure(evaluation(resize="legacy_pytorch", images=10)):
            own = {"extractor": "means", "extractor_digest": "0123", "resize": "legacy_pytorch"}
            assert own.items() <= result.settings.items()
            assert result.settings["temperature"] == 1
            assert result.images == 10


def test_blurred_pictures_make_a_curve(measure, tmp_path):
    curve = measure(FrechetInceptionDistance(blur=[0, 1, 4]))
    assert [result.settings["blur"] for result in curve] == [0, 1, 4]
    assert (tmp_path / "eval" / "blur.png").is_file()
    (sharp,) = measure(FrechetInceptionDistance())
    assert curve[0].value == sharp.value
    assert len({result.value for result in curve}) == 3


def test_kid_is_the_kernel_distance_of_the_folders(measure, tmp_path):
    (result,) = measure(KernelInceptionDistance(subsets=3, subset_size=10), seed=2)
    pair = [folder_features(tmp_path / "eval" / name) for name in ("real", "generated")]
    expected = kernel_distance(*pair, subsets=3, subset_size=10, seed=2)
    assert result.value == pytest.approx(expected, rel=1e-4)
    assert (result.metric, result.settings["subset_size"]) == ("kd_means", 10)


def test_inception_score_of_drawn_pictures_stands_beside_that_of_real_ones(measure, tmp_path):
    scores = measure(InceptionScore(splits=2))
    assert [result.settings["pictures"] for result in scores] == ["generated", "real"]
    for result in scores:
        logits = folder_features(tmp_path / "eval" / result.settings["pictures"])
        how = distributions.find_extractor()
        mean, deviation = classifier_score(logits, how, splits=2)
        assert result.metric == "cs_means"
        assert result.value == pytest.approx(mean, rel=1e-5)
        assert result.settings["spread"] == pytest.approx(
            [mean - deviation, mean + deviation], abs=1e-4
        )


def test_the_same_again_is_the_same_file(measure, tmp_path):
    """Also where pictures and features are made anew."""

    def record(name, seed):
        samples.draw.cache_clear()
        found = []
        for evaluation in (
            FrechetInceptionDistance(blur=[0, 2]),
            KernelInceptionDistance(subsets=3, subset_size=10),
            InceptionScore(splits=2),
        ):
            found += measure(evaluation, seed)
        return results.write(found, tmp_path / name, seed=seed).read_bytes()

    first = record("a", 1)
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    assert record("b", 1) == first
    assert record("c", 2) != first


def test_clip_score_of_drawn_and_real_pictures(measure, monkeypatch):
    class Clip:
        model = torch.nn.Linear(2, 2)

    def scored(images, captions, clip):
        assert captions == ["a red ring"] * 5
        assert isinstance(clip, Clip)
        return float(images.mean())

    monkeypatch.setattr(clip_score, "load_clip", lambda clip, device: Clip())
    monkeypatch.setattr(clip_score, "clip_score", scored)
    drawn, real = measure(ClipScore("some/clip", images=5))
    assert (drawn.settings["pictures"], real.settings["pictures"]) == ("generated", "real")
    assert drawn.value == pytest.approx(float(random_images(1, low=0.3)[:5].mean()))
    assert real.value == pytest.approx(float(random_images(0)[:5].mean()))
    assert real.settings["extractor"] == "some/clip"
    assert len(real.settings["extractor_digest"]) == 16
    assert json.dumps(real.settings)


def test_clip_score_without_a_clip_says_so_before_it_draws(measure, monkeypatch):
    def never(*_):
        raise AssertionError("it drew")

    monkeypatch.setattr(samples.TextToImage, "from_run", never)
    with pytest.raises(UserError, match=r"metric\.clip=PATH"):
        measure(ClipScore(None))
