"""Tests of the classifier score and the CLIP score."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tilewright.checks import format_value
from tilewright.errors import UserError
from tilewright.metrics.extractors import Extractor
from tilewright.metrics.scores import classifier_score, clip_score, load_clip_metric
from tilewright.viz.images import to_uint8


def extractor() -> Extractor:
    """Returns an extractor whose features are the logits."""
    identity = torch.nn.Identity()
    return Extractor("stand_in", 4, 8, "0", torch.device("cpu"), identity, classes=identity)


def expected_score(logits: np.ndarray) -> float:
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    divergence = (probabilities * np.log(probabilities / probabilities.mean(0))).sum(1)
    return float(np.exp(divergence.mean()))


def test_classifier_score_of_one_split() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 3
    mean, deviation = classifier_score(logits, extractor(), splits=1)
    assert mean == pytest.approx(expected_score(logits), rel=1e-6)
    assert deviation == 0


def test_classifier_score_is_the_number_of_classes_at_best_and_one_at_worst() -> None:
    certain = np.tile(np.eye(4) * 50, (10, 1))
    assert classifier_score(certain, extractor(), splits=1)[0] == pytest.approx(4)
    assert classifier_score(np.ones((10, 4)), extractor(), splits=2) == pytest.approx((1, 0))


def test_classifier_score_is_the_mean_over_shuffled_splits() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 4)) * 3
    before = torch.get_rng_state()
    mean, deviation = classifier_score(logits, extractor(), splits=4, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).numpy()
    scores = [expected_score(part) for part in np.split(logits[order], 4)]
    assert mean == pytest.approx(np.mean(scores), rel=1e-6)
    assert deviation == pytest.approx(np.std(scores), rel=1e-6)
    assert mean != classifier_score(logits, extractor(), splits=4, seed=4)[0]


@pytest.mark.parametrize(("count", "splits"), [(101, 10), (15, 7), (47, 3)])
def test_classifier_score_has_the_parts_of_salimans(count: int, splits: int) -> None:
    logits = np.random.default_rng(0).normal(size=(count, 4)) * 3
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    scores = []
    for i in range(splits):  # as in the code of Salimans et al. 2016
        part = logits[order][(i * count // splits) : ((i + 1) * count // splits)]
        scores.append(expected_score(part))
    mean, deviation = classifier_score(logits, extractor(), splits)
    assert mean == pytest.approx(np.mean(scores), rel=1e-6)
    assert deviation == pytest.approx(np.std(scores), rel=1e-6)


@pytest.mark.parametrize(("count", "splits"), [(1, 1), (0, 1), (3, 2), (19, 10)])
def test_parts_of_one_image_are_refused(count: int, splits: int) -> None:
    with pytest.raises(UserError, match=f"{splits} part.* needs {2 * splits} images.* got {count}"):
        classifier_score(np.ones((count, 4)), extractor(), splits)


@pytest.mark.parametrize("splits", [0, -1, 1.5, True])
def test_impossible_splits_are_refused(splits: float) -> None:
    with pytest.raises(UserError, match=f"^splits={format_value(splits)} is not possible"):
        classifier_score(np.ones((10, 4)), extractor(), splits)  # type: ignore[arg-type]


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        classifier_score(np.full((10, 4), np.nan), extractor(), 2)


def test_few_images_for_a_classifier_score_are_warned_about(caplog) -> None:
    classifier_score(np.random.default_rng(0).normal(size=(8, 4)), extractor(), splits=2)
    assert not caplog.records
    classifier_score(np.random.default_rng(0).normal(size=(7, 4)), extractor(), splits=2)
    assert "parts of 3 images, fewer than the 4 classes" in caplog.text


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))


CAPTIONS = ["a red ring", "two", "a star", "a caption of more letters than it reads", ""]


def test_clip_score_is_the_mean_cosine(clip: Path, images: Tensor) -> None:
    """Compares with the model's own forward pass, pair by pair."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    cosines = []
    for caption, image in zip(CAPTIONS, to_uint8(images), strict=True):
        inputs = processor(text=[caption], images=[image], truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        cosines.append(float(torch.cosine_similarity(output.text_embeds, output.image_embeds)))
    assert len({round(cosine, 6) for cosine in cosines}) == 5
    metric = load_clip_metric(clip)
    expected = max(0, 100 * sum(cosines) / 5)
    ours = clip_score(images, CAPTIONS, metric, batch_size=2)
    assert ours == pytest.approx(expected, rel=1e-4)
    # Each call resets the metric's state.
    assert clip_score(images, CAPTIONS, metric) == pytest.approx(ours, rel=1e-5)
    assert ours > 1


def test_a_missing_clip_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="cannot load a CLIP from") as error:
        load_clip_metric(tmp_path)
    assert "\n" not in str(error.value)


def test_a_clip_without_all_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"not a complete CLIP \(visual_projection\.weight is missing"
    ):
        load_clip_metric(tmp_path)


def test_another_model_than_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    import transformers

    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = transformers.BertConfig(**sizes, num_hidden_layers=1, vocab_size=600)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CLIP"):
        load_clip_metric(tmp_path)


def test_the_error_without_transformers_names_the_install_command(
    monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'tilewright\[clip\]'"):
        load_clip_metric(tmp_path)
