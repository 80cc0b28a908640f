"""Tests of features of image folders, of their cache, and of saved images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image
from torch import Tensor

from tilewright.errors import UserError
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import Extractor, load_efficientnet
from tilewright.metrics.features import folder_features, save_images
from tilewright.viz.images import to_uint8

D = 6


def means(images: Tensor) -> Tensor:
    """Returns six features: the mean of each channel in the upper and the lower half."""
    return torch.cat([half.mean(dim=(2, 3)) for half in images.chunk(2, dim=2)], dim=1)


def extractor(size: int = 299) -> Extractor:
    device = torch.device("cpu")
    return Extractor(
        "stand_in", D, size, "0123456789ab", device, means, classes=torch.nn.Identity()
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(images: Tensor, tmp_path: Path) -> Path:
    save_images([images], tmp_path / "images")
    return tmp_path / "images"


def test_images_are_resized_by_pil_without_rounding(folder: Path) -> None:
    """Compares with PIL's resize of each channel in floats, without clean-fid."""
    resized = []
    for path in sorted(folder.iterdir()):
        channels = np.asarray(Image.open(path)).astype(np.float32).transpose(2, 0, 1)
        planes = [Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC) for c in channels]
        resized.append(np.stack([np.asarray(plane).clip(0, 255) for plane in planes]))
    expected = means(torch.tensor(np.stack(resized))).numpy()
    features = folder_features(folder, extractor(32), batch_size=5)
    assert features.shape == (12, D)
    np.testing.assert_allclose(features, expected, rtol=1e-5)


def test_the_legacy_resize_is_bilinear_without_antialiasing(folder: Path, images: Tensor) -> None:
    levels = to_uint8(images).float()
    small = torch.nn.functional.interpolate(levels, size=(8, 8), mode="bilinear")
    features = folder_features(folder, extractor(8), resize="legacy_pytorch")
    np.testing.assert_allclose(features, means(small).numpy(), rtol=1e-5)
    assert not np.allclose(features, folder_features(folder, extractor(8)), rtol=1e-4)


def test_blur_is_a_gaussian_in_pixels_of_the_original_image(folder: Path, images: Tensor) -> None:
    """Compares with the filter as a matrix along each axis, with a mirrored border."""
    position, sigma = torch.arange(16), 1.5
    weights = torch.zeros(16, 16, dtype=torch.float64)
    for offset in range(-6, 7):  # up to four standard deviations
        source = (position + offset) % 32
        source = torch.where(source > 15, 31 - source, source)
        weights[position, source] += np.exp(-(offset**2) / (2 * sigma**2))
    weights = weights / weights.sum(dim=1, keepdim=True)
    blurred = weights @ to_uint8(images).double() @ weights.T
    features = folder_features(folder, extractor(16), blur=sigma)
    np.testing.assert_allclose(features, means(blurred).numpy(), rtol=1e-4)
    plain = folder_features(folder, extractor(16))
    np.testing.assert_array_equal(folder_features(folder, extractor(16), blur=0), plain)
    assert np.abs(features - plain).max() > 1


@pytest.mark.filterwarnings("ignore:.*`disp`:DeprecationWarning")
@pytest.mark.parametrize("blur", [0, 2])
def test_fid_of_folders_equals_clean_fids(
    folder: Path, images: Tensor, tmp_path: Path, blur: float
) -> None:
    from scipy.ndimage import gaussian_filter

    def blurred(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image.astype(np.float32), (blur, blur, 0)) if blur else image

    darker = tmp_path / "darker"
    save_images([images.flip(0)[:8] * 0.8], darker)
    ours = frechet_distance(*(folder_features(f, extractor(), blur=blur) for f in (folder, darker)))
    theirs = fid.compute_fid(
        str(folder),
        str(darker),
        custom_feat_extractor=means,
        custom_image_tranform=blurred,
        device=torch.device("cpu"),
        num_workers=0,
        use_dataparallel=False,
        verbose=False,
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours > 1


@pytest.mark.slow
def test_features_of_the_real_network(folder: Path, images: Tensor) -> None:
    network = load_efficientnet("efficientnet_lite0", "cpu")
    batch = torch.nn.functional.interpolate(
        to_uint8(images).float(), size=(224, 224), mode="bicubic", antialias=True
    )
    expected = network.network(batch.clamp(0, 255)).numpy()
    features = folder_features(folder, network)
    # torch's resize differs slightly from PIL's.
    assert np.linalg.norm(features - expected) < 0.02 * np.linalg.norm(expected)


def test_cached_features_are_used_for_equal_files_and_settings(
    folder: Path, tmp_path: Path
) -> None:
    calls = []

    def counted(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return means(batch)

    network = replace(extractor(32), network=counted)
    cache = tmp_path / "cache"
    uncached = folder_features(folder, network)
    first = folder_features(folder, network, cache=cache)
    assert calls == [12, 12]
    cached = folder_features(folder.rename(tmp_path / "elsewhere"), network, cache=cache)
    assert calls == [12, 12]
    for features in (first, cached):
        np.testing.assert_array_equal(features, uncached)
    folder = tmp_path / "elsewhere"
    folder_features(folder, network, resize="legacy_pytorch", cache=cache)
    folder_features(folder, network, blur=1, cache=cache)
    folder_features(folder, replace(network, digest="other"), cache=cache)
    assert calls == [12] * 5
    Image.new("RGB", (16, 16), "red").save(folder / "00003.png")
    changed = folder_features(folder, network, cache=cache)
    assert calls == [12] * 6
    assert not np.array_equal(changed, uncached)
    (folder / "00003.png").unlink()
    assert len(folder_features(folder, network, cache=cache)) == 11
    assert len(list(cache.iterdir())) == 6


def test_extraction_does_not_disturb_a_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The random state is kept, nothing is printed, and autocast does not change the features."""
    before = torch.get_rng_state()
    network = replace(extractor(32), network=lambda x: x.flatten(1)[:, :D] @ torch.eye(D))
    plain = folder_features(folder, network)
    assert torch.equal(before, torch.get_rng_state())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = folder_features(folder, network)
    np.testing.assert_array_equal(plain, mixed)
    frechet_distance(plain, mixed)
    assert capfd.readouterr() == ("", "")


def test_saved_images_are_rounded_and_numbered(tmp_path: Path) -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 99.5, 254.6, 255.0, 300.0, -4.0]) / 255
    images = levels.expand(2, 3, 1, 8)
    gray = Image.new("L", (4, 4), 7)
    assert save_images([images, gray, images[:1].bfloat16()], tmp_path / "a") == 4
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png"]
    pixels = np.asarray(Image.open(tmp_path / "a" / "00001.png"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 100, 255, 255, 255, 0]
    assert (np.asarray(Image.open(tmp_path / "a" / "00002.png")) == np.full((4, 4, 3), 7)).all()


def test_a_folder_that_has_images_is_refused(folder: Path, images: Tensor) -> None:
    with pytest.raises(UserError, match="already has images"):
        save_images([images], folder)


def test_features_are_sorted_by_the_number_of_the_image(tmp_path: Path) -> None:
    numbers = [9, 10, 10001, 100000]  # as text, 100000 comes first
    for level, number in enumerate(numbers):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / f"{number:05d}.png")
    features = folder_features(tmp_path, extractor(8))
    assert features[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8)])
def test_other_shapes_and_dtypes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected float \[B, 3, H, W\]"):
        save_images([torch.rand(shape)], tmp_path / "a")
    with pytest.raises(ValueError, match="uint8"):
        save_images([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], tmp_path / "b")


def test_invalid_folders_and_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere has no images"):
        folder_features(tmp_path / "nowhere", extractor())
    with pytest.raises(UserError, match="resize='cubic' is unknown"):
        folder_features(folder, extractor(), resize="cubic")
    with pytest.raises(UserError, match="blur=-1 is not possible"):
        folder_features(folder, extractor(), blur=-1)
    (folder / "00005.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read an image in .*00005\.png"):
        folder_features(folder, extractor())
