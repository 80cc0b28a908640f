"""Tests of a source with a checker of its own in every place that uses checkers."""

import io
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from tilewright.callbacks import AlignmentCallback
from tilewright.callbacks import alignment as alignment_callback
from tilewright.data import CaptionedImages, CenterCrop
from tilewright.errors import UserError
from tilewright.evaluations import (
    Alignment,
    BestOf,
    Reconstruction,
    best_of,
    generation,
    reconstruction,
)

SIDE = 16
BRIGHT, DARK = "a bright image", "a dark image"


class BrightnessChecker:
    """Compares the mean of the pixels with what a caption says about it."""

    def matches(self, image, caption):
        assert image.shape == (3, SIDE, SIDE)
        return (image.mean() > 0.5).item() == (caption == BRIGHT)

    def category(self, caption):
        return caption.removeprefix("a ")


class PlainSource:
    """Six white images and two black ones in each split."""

    def load(self):
        features = Features({"image": Image(), "caption": Value("string")})
        rows = [self.row(255, BRIGHT)] * 6 + [self.row(0, DARK)] * 2
        return DatasetDict(
            {split: Dataset.from_list(rows, features) for split in ("train", "validation")}
        )

    @staticmethod
    def row(level, caption):
        file = io.BytesIO()
        PILImage.new("RGB", (SIDE, SIDE), (level,) * 3).save(file, "PNG")
        return {"image": {"bytes": file.getvalue(), "path": None}, "caption": caption}


class BrightnessSource(PlainSource):
    checker = BrightnessChecker()


class WhiteModel:
    """Text-to-image model that generates white images; the ranker of the test prefers black."""

    def generate(self, captions, n=1, **settings):
        return SimpleNamespace(images=torch.ones(len(captions), n, 3, SIDE, SIDE))

    def check_supports(self, sampling, ranker):
        pass

    def sample_tokens(self, captions, n, **settings):
        """Candidate 0 is white and all others are black."""
        return (torch.arange(n) == 0).long().view(1, n, 1, 1).repeat(len(captions), 1, 1, 1)

    def decode(self, tokens, batch_size):
        return tokens.float()[:, :, None].expand(-1, -1, 3, SIDE, SIDE)

    def score(self, ranker, captions, tokens, batch_size):
        return -tokens[:, :, 0, 0].float()


class WhiteVAE:
    """dVAE that reconstructs every image as a white one."""

    image_size, num_tokens = SIDE, 4

    def encode(self, images):
        return torch.zeros(len(images), 2, 2, dtype=torch.long)

    def decode(self, tokens):
        return torch.ones(len(tokens), 3, SIDE, SIDE)


def make_data(source, folder):
    crop = CenterCrop(SIDE)
    return CaptionedImages(source, SIDE, 4, crop, crop, cache=folder / "codes")


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Runs an evaluation with models that make white images; returns metric values."""
    for module in (generation, best_of):
        monkeypatch.setattr(module.TextToImage, "from_run", lambda run, device: WhiteModel())
    monkeypatch.setattr(reconstruction.runs, "load_network", lambda run, device: WhiteVAE())
    monkeypatch.setattr(generation.runs, "trained_steps", lambda run: 7)
    generation._generate.cache_clear()

    def evaluate(evaluation, source):
        data = make_data(source, tmp_path)
        folder = tmp_path / "eval"
        return evaluation(tmp_path, data, seed=0, device="cpu", folder=folder)

    return evaluate


def test_metric_alignment_counts_by_the_checkers_categories(evaluate):
    results = evaluate(Alignment(["validation"]), BrightnessSource())
    values = {result.settings["category"]: (result.value, result.images) for result in results}
    assert values == {"bright image": (1.0, 6), "dark image": (0.0, 2)}


def test_metric_best_of_measures_the_chosen_candidates(evaluate):
    results = evaluate(BestOf(SimpleNamespace(), [1, 2], ["validation"]), BrightnessSource())
    values = {(r.settings["best_of"], r.settings["category"]): r.value for r in results}
    assert values == {
        (1, "bright image"): 1.0,
        (1, "dark image"): 0.0,
        (2, "bright image"): 0.0,
        (2, "dark image"): 1.0,
    }


def test_metric_reconstruction_includes_the_alignment_of_reconstructions(evaluate):
    results = evaluate(Reconstruction(["validation"], frechet=False), BrightnessSource())
    assert {result.metric: result.value for result in results}["alignment"] == 6 / 8


def test_the_callback_logs_the_checkers_categories(monkeypatch, tmp_path):
    model = WhiteModel()
    monkeypatch.setattr(
        alignment_callback.TextToImage, "from_trainer", lambda trainer, module: model
    )
    monkeypatch.setattr(alignment_callback, "gathered_weights", lambda *_: torch.no_grad())
    logged = {}
    module = SimpleNamespace(log_dict=lambda values, **_: logged.update(values))
    data = make_data(BrightnessSource(), tmp_path)
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data)
    callback = AlignmentCallback()
    callback.setup(trainer, module, "fit")
    callback.measure(trainer, module)
    assert logged == {
        "alignment/validation/bright image": 1.0,
        "alignment/validation/dark image": 0.0,
    }


def test_metric_alignment_refuses_a_source_without_a_checker(evaluate):
    with pytest.raises(UserError, match=r"metric=alignment needs .* PlainSource .* data=shapes"):
        evaluate(Alignment(["validation"]), PlainSource())
