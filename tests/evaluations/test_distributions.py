"""Tests of the metrics fid, kid, is and clip_score on images with known features."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image

from tilewright.errors import UserError
from tilewright.evaluations import clip_score, features, generation, results
from tilewright.evaluations.clip_score import ClipScore
from tilewright.evaluations.distributions import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
)
from tilewright.evaluations.features import FeatureSettings
from tilewright.metrics.distances import kernel_distance
from tilewright.metrics.extractors import Extractor
from tilewright.metrics.scores import classifier_score

COUNT = 24


def channel_means(images):
    """Returns the mean of each channel in the upper and the lower half."""
    return torch.cat([half.mean(dim=(2, 3)) for half in images.chunk(2, dim=2)], dim=1)


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
    """Runs an evaluation and returns its results."""

    class Model:
        def generate(self, captions, *, sampling, seed):
            images = random_images(seed + 1, low=0.3)[: len(captions), None]
            return SimpleNamespace(images=images)

    device = torch.device("cpu")
    extractor = Extractor("means", 6, 16, "0123", device, channel_means, classes=lambda x: x / 20)
    monkeypatch.setattr(generation.TextToImage, "from_run", lambda run, device: Model())
    monkeypatch.setattr(features, "load_extractor", lambda *_: extractor)
    monkeypatch.setattr(generation.runs, "trained_steps", lambda run: 7)
    generation._generate.cache_clear()

    def run(evaluation, seed=0):
        folder = tmp_path / "eval"
        return evaluation(tmp_path, Data(tmp_path), seed=seed, device="cpu", folder=folder)

    return run


def folder_features(folder):
    """Returns the features of a folder of images that have the network's size."""
    images = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    return channel_means(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()).numpy()


@pytest.mark.filterwarnings("ignore:.*`disp`:DeprecationWarning")
def test_fid_equals_clean_fids_on_the_written_folders(measure, monkeypatch, tmp_path):
    large = replace(features.load_extractor(), size=299)  # the only size of clean-fid
    monkeypatch.setattr(features, "load_extractor", lambda *_: large)
    (result,) = measure(FrechetInceptionDistance())
    theirs = fid.compute_fid(
        str(tmp_path / "eval" / "real"),
        str(tmp_path / "eval" / "generated"),
        custom_feat_extractor=channel_means,
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


def test_every_result_has_its_settings(measure):
    shared = {"features": FeatureSettings(resize="legacy_pytorch"), "images": 10}
    for evaluation in (FrechetInceptionDistance, KernelInceptionDistance, InceptionScore):
        for result in measure(evaluation(**shared)):
            settings = {
                "extractor": "means",
                "extractor_digest": "0123",
                "resize": "legacy_pytorch",
            }
            assert settings.items() <= result.settings.items()
            assert result.settings["temperature"] == 1
            assert result.images == 10


def test_several_blurs_give_a_curve(measure, tmp_path):
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


def test_inception_score_is_measured_for_generated_and_real_images(measure, tmp_path):
    scores = measure(InceptionScore(splits=2))
    assert [result.settings["image_set"] for result in scores] == ["generated", "real"]
    for result in scores:
        logits = folder_features(tmp_path / "eval" / result.settings["image_set"])
        mean, deviation = classifier_score(logits, features.load_extractor(), splits=2)
        assert result.metric == "cs_means"
        assert result.value == pytest.approx(mean, rel=1e-5)
        assert result.settings["spread"] == pytest.approx(
            [mean - deviation, mean + deviation], abs=1e-4
        )


def test_a_repeated_evaluation_writes_the_same_file(measure, tmp_path):
    """The images are generated and the features are computed again."""

    def record(name, seed):
        generation._generate.cache_clear()
        measured = []
        for evaluation in (
            FrechetInceptionDistance(blur=[0, 2]),
            KernelInceptionDistance(subsets=3, subset_size=10),
            InceptionScore(splits=2),
        ):
            measured += measure(evaluation, seed)
        return results.write_results(measured, tmp_path / name, seed=seed).read_bytes()

    first = record("a", 1)
    shutil.rmtree(tmp_path / "features")
    assert record("b", 1) == first
    assert record("c", 2) != first


def test_clip_score_of_generated_and_real_images(measure, monkeypatch):
    class Clip:
        model = torch.nn.Linear(2, 2)

    def mean_pixel(images, captions, clip):
        assert captions == ["a red ring"] * 5
        assert isinstance(clip, Clip)
        return float(images.mean())

    monkeypatch.setattr(clip_score, "load_clip_metric", lambda clip, device: Clip())
    monkeypatch.setattr(clip_score, "clip_score", mean_pixel)
    generated, real = measure(ClipScore("some/clip", images=5))
    assert (generated.settings["image_set"], real.settings["image_set"]) == ("generated", "real")
    assert generated.value == pytest.approx(float(random_images(1, low=0.3)[:5].mean()))
    assert real.value == pytest.approx(float(random_images(0)[:5].mean()))
    assert real.settings["extractor"] == "some/clip"
    assert len(real.settings["extractor_digest"]) == 16
    assert json.dumps(real.settings)


def test_clip_score_without_a_clip_fails_before_generation(measure, monkeypatch):
    def fail(*_):
        raise AssertionError("images were generated")

    monkeypatch.setattr(generation.TextToImage, "from_run", fail)
    with pytest.raises(UserError, match=r"metric\.clip=PATH"):
        measure(ClipScore(None))
