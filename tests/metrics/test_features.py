"""The Fréchet distance against computations of its own, and the folders that it reads."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image
from torch import Tensor

from tilewright.errors import UserError
from tilewright.metrics.extractors import Extractor, efficientnet_lite0
from tilewright.metrics.frechet import (
    FrechetStatistics,
    folder_statistics,
    frechet_distance,
    frechet_name,
    save_images,
)

D = 6


def means(pictures: Tensor) -> Tensor:
    """Six features: the mean of each channel in the upper and the lower half."""
    return torch.cat([half.mean(dim=(2, 3)) for half in pictures.chunk(2, dim=2)], dim=1)


def extractor(size: int = 299) -> Extractor:
    return Extractor("stand_in", D, size, "0123456789ab", torch.device("cpu"), means)


def statistics(features: np.ndarray) -> FrechetStatistics:
    return FrechetStatistics(features.mean(0), np.cov(features, rowvar=False), len(features))


def expected_distance(first: np.ndarray, second: np.ndarray) -> float:
    """From features `[N, D]`: tr (S S')^½ is the sum of the singular values of A B^T, where
    S = A^T A and S' = B^T B."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    a = (first - first.mean(0)) / np.sqrt(len(first) - 1)
    b = (second - second.mean(0)) / np.sqrt(len(second) - 1)
    shift = first.mean(0) - second.mean(0)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * cross)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(images: Tensor, tmp_path: Path) -> Path:
    save_images([images], tmp_path / "images")
    return tmp_path / "images"


def test_distance_agrees_with_singular_values() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(50, D)) @ rng.normal(size=(D, D))
    second = rng.normal(size=(40, D)) @ rng.normal(size=(D, D)) + 1
    distance = frechet_distance(statistics(first), statistics(second))
    assert distance == pytest.approx(expected_distance(first, second), rel=1e-8)


def test_distance_of_a_set_to_itself_is_nought_and_to_its_shift_the_square() -> None:
    features = np.random.default_rng(0).normal(size=(50, D))
    shift = np.arange(D)
    real = statistics(features)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(real, statistics(features + shift)) == pytest.approx(shift @ shift)


def test_distance_between_diagonal_gaussians() -> None:
    first, second = np.arange(1.0, D + 1), np.arange(D, 0.0, -1)
    real = FrechetStatistics(np.zeros(D), np.diag(first), 100)
    generated = FrechetStatistics(np.zeros(D), np.diag(second), 100)
    expected = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(real, generated) == pytest.approx(expected)


def test_statistics_are_those_of_the_pictures_resized(folder: Path) -> None:
    """Each channel resized by PIL in floats, the fractions kept, without clean-fid."""
    resized = []
    for path in sorted(folder.iterdir()):
        channels = np.asarray(Image.open(path)).astype(np.float32).transpose(2, 0, 1)
        planes = [Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC) for c in channels]
        resized.append(np.stack([np.asarray(plane).clip(0, 255) for plane in planes]))
    features = means(torch.tensor(np.stack(resized))).numpy()
    found = folder_statistics(folder, extractor(32), batch_size=5)
    np.testing.assert_allclose(found.mu, features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.sigma, np.cov(features, rowvar=False), rtol=1e-3, atol=1e-3)
    assert found.count == 12


@pytest.mark.filterwarnings("ignore:.*`disp`:DeprecationWarning")
def test_figure_is_clean_fids_own(folder: Path, images: Tensor, tmp_path: Path) -> None:
    save_images([images.flip(0)[:8] * 0.8], tmp_path / "darker")
    ours = frechet_distance(
        folder_statistics(folder, extractor()), folder_statistics(tmp_path / "darker", extractor())
    )
    theirs = fid.compute_fid(
        str(folder),
        str(tmp_path / "darker"),
        custom_feat_extractor=means,
        device=torch.device("cpu"),
        num_workers=0,
        use_dataparallel=False,
        verbose=False,
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours > 1


@pytest.mark.slow
def test_real_network_end_to_end(folder: Path, images: Tensor, tmp_path: Path) -> None:
    save_images([images * 0.5], tmp_path / "darker")
    network = efficientnet_lite0("cpu")
    real = folder_statistics(folder, network)
    darker = folder_statistics(tmp_path / "darker", network)
    features = []
    for path in (folder, tmp_path / "darker"):
        pictures = [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]
        batch = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float()
        batch = torch.nn.functional.interpolate(
            batch, size=(224, 224), mode="bicubic", antialias=True
        )
        features.append(network.network(batch.clamp(0, 255)).numpy())
    # The two resizes differ a little, hence the tolerance.
    assert frechet_distance(real, darker) == pytest.approx(expected_distance(*features), rel=0.02)


def test_cache_is_used_while_the_bytes_are_the_same(folder: Path, tmp_path: Path) -> None:
    calls = []

    def counted(pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return means(pictures)

    network = replace(extractor(32), network=counted)
    cache = tmp_path / "cache"
    uncached = folder_statistics(folder, network)
    first = folder_statistics(folder, network, cache=cache)
    assert calls == [12, 12]
    kept = folder_statistics(folder.rename(tmp_path / "elsewhere"), network, cache=cache)
    assert calls == [12, 12]
    for found in (first, kept):
        np.testing.assert_array_equal(found.mu, uncached.mu)
        np.testing.assert_array_equal(found.sigma, uncached.sigma)
        assert found.count == 12
    folder = tmp_path / "elsewhere"
    folder_statistics(folder, network, resize="legacy_pytorch", cache=cache)
    folder_statistics(folder, replace(network, digest="other"), cache=cache)
    assert calls == [12] * 4
    Image.new("RGB", (16, 16), "red").save(folder / "00003.png")
    changed = folder_statistics(folder, network, cache=cache)
    assert calls == [12] * 5
    assert not np.array_equal(changed.mu, uncached.mu)
    (folder / "00003.png").unlink()
    assert folder_statistics(folder, network, cache=cache).count == 11
    assert len(list(cache.iterdir())) == 5


def test_a_figure_does_not_disturb_a_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its random numbers, nor its progress bar; nor does its precision touch the figure."""
    before = torch.get_rng_state()
    network = replace(extractor(32), network=lambda x: x.flatten(1)[:, :D] @ torch.eye(D))
    plain = folder_statistics(folder, network)
    assert torch.equal(before, torch.get_rng_state())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = folder_statistics(folder, network)
    np.testing.assert_array_equal(plain.mu, mixed.mu)
    frechet_distance(plain, mixed)
    assert capfd.readouterr() == ("", "")


def test_saved_pictures_are_rounded_and_numbered(tmp_path: Path) -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 99.5, 254.6, 255.0, 300.0, -4.0]) / 255
    images = levels.expand(2, 3, 1, 8)
    grey = Image.new("L", (4, 4), 7)
    assert save_images([images, grey, images[:1].bfloat16()], tmp_path / "a") == 4
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png"]
    picture = np.asarray(Image.open(tmp_path / "a" / "00001.png"))
    assert picture[0, :, 0].tolist() == [0, 0, 1, 100, 255, 255, 255, 0]
    assert (np.asarray(Image.open(tmp_path / "a" / "00002.png")) == np.full((4, 4, 3), 7)).all()


def test_pictures_left_from_before_are_not_counted_in(folder: Path, images: Tensor) -> None:
    with pytest.raises(UserError, match="already holds pictures"):
        save_images([images], folder)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8)])
def test_other_shapes_and_types_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want float \[B, 3, H, W\]"):
        save_images([torch.rand(shape)], tmp_path / "a")
    with pytest.raises(ValueError, match="uint8"):
        save_images([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], tmp_path / "b")


def test_folders_that_cannot_be_measured_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere holds 0 pictures"):
        folder_statistics(tmp_path / "nowhere", extractor())
    with pytest.raises(UserError, match="unknown resize 'cubic'"):
        folder_statistics(folder, extractor(), resize="cubic")
    (folder / "00005.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"cannot be read.*00005\.png"):
        folder_statistics(folder, extractor())


def test_too_few_pictures_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    enough, few = statistics(rng.normal(size=(D, D))), statistics(rng.normal(size=(D - 1, D)))
    frechet_distance(enough, enough)
    assert not caplog.records
    for _ in range(2):
        frechet_distance(enough, few)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "6 real and 5 generated images, fewer than the 6 features" in record.getMessage()


def test_only_inceptions_distance_is_called_fid() -> None:
    assert frechet_name(replace(extractor(), name="inception")) == "fid"
    assert frechet_name(replace(extractor(), name="efficientnet_lite0")) == "fd_efficientnet_lite0"
