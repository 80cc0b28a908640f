"""From a folder of pictures to features, and the cache between."""

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
from tilewright.metrics.extractors import Extractor, efficientnet_lite0
from tilewright.metrics.features import folder_features, save_images
from tilewright.viz.images import to_levels

D = 6


def means(pictures: Tensor) -> Tensor:
    """Six features: the mean of each channel in the upper and the lower half."""
    return torch.cat([half.mean(dim=(2, 3)) for half in pictures.chunk(2, dim=2)], dim=1)


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


def test_features_are_those_of_the_pictures_resized(folder: Path) -> None:
    """Each channel resized by PIL in floats, the fractions kept, without clean-fid."""
    resized = []
    for path in sorted(folder.iterdir()):
        channels = np.asarray(Image.open(path)).astype(np.float32).transpose(2, 0, 1)
        planes = [Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC) for c in channels]
        resized.append(np.stack([np.asarray(plane).clip(0, 255) for plane in planes]))
    expected = means(torch.tensor(np.stack(resized))).numpy()
    found = folder_features(folder, extractor(32), batch_size=5)
    assert found.shape == (12, D)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_legacy_resize_is_bilinear_without_antialiasing(folder: Path, images: Tensor) -> None:
    levels = to_levels(images).float()
    small = torch.nn.functional.interpolate(levels, size=(8, 8), mode="bilinear")
    found = folder_features(folder, extractor(8), resize="legacy_pytorch")
    np.testing.assert_allclose(found, means(small).numpy(), rtol=1e-5)
    assert not np.allclose(found, folder_features(folder, extractor(8)), rtol=1e-4)


def test_a_blur_is_a_gaussian_in_the_pictures_own_pixels(folder: Path, images: Tensor) -> None:
    """By the matrix of the filter along each axis, the border mirrored, at the network's size."""
    place, sigma = torch.arange(16), 1.5
    weights = torch.zeros(16, 16, dtype=torch.float64)
    for offset in range(-6, 7):  # up to four standard deviations
        source = (place + offset) % 32
        source = torch.where(source > 15, 31 - source, source)
        weights[place, source] += np.exp(-(offset**2) / (2 * sigma**2))
    weights = weights / weights.sum(dim=1, keepdim=True)
    blurred = weights @ to_levels(images).double() @ weights.T
    found = folder_features(folder, extractor(16), blur=sigma)
    np.testing.assert_allclose(found, means(blurred).numpy(), rtol=1e-4)
    plain = folder_features(folder, extractor(16))
    np.testing.assert_array_equal(folder_features(folder, extractor(16), blur=0), plain)
    assert np.abs(found - plain).max() > 1


@pytest.mark.filterwarnings("ignore:.*`disp`:DeprecationWarning")
@pytest.mark.parametrize("blur", [0, 2])
def test_the_fid_of_folders_is_clean_fids_own(
    folder: Path, images: Tensor, tmp_path: Path, blur: float
) -> None:
    from scipy.ndimage import gaussian_filter

    def blurred(picture: np.ndarray) -> np.ndarray:
        return gaussian_filter(picture.astype(np.float32), (blur, blur, 0)) if blur else picture

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
def test_real_network_end_to_end(folder: Path, images: Tensor) -> None:
    network = efficientnet_lite0("cpu")
    batch = torch.nn.functional.interpolate(
        to_levels(images).float(), size=(224, 224), mode="bicubic", antialias=True
    )
    expected = network.network(batch.clamp(0, 255)).numpy()
    found = folder_features(folder, network)
    # The two resizes differ a little, hence the tolerance.
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_cache_is_used_while_the_bytes_are_the_same(folder: Path, tmp_path: Path) -> None:
    calls = []

    def counted(pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return means(pictures)

    network = replace(extractor(32), network=counted)
    cache = tmp_path / "cache"
    uncached = folder_features(folder, network)
    first = folder_features(folder, network, cache=cache)
    assert calls == [12, 12]
    kept = folder_features(folder.rename(tmp_path / "elsewhere"), network, cache=cache)
    assert calls == [12, 12]
    for found in (first, kept):
        np.testing.assert_array_equal(found, uncached)
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


def test_a_figure_does_not_disturb_a_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its random numbers, nor its progress bar; nor does its precision touch the figure."""
    before = torch.get_rng_state()
    network = replace(extractor(32), network=lambda x: x.flatten(1)[:, :D] @ torch.eye(D))
    plain = folder_features(folder, network)
    assert torch.equal(before, torch.get_rng_state())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = folder_features(folder, network)
    np.testing.assert_array_equal(plain, mixed)
    frechet_distance(plain, mixed)
    assert capfd.readouterr() == ("", "")


def test_saved_pictures_are_rounded_and_numbered(tmp_path: Path) -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 99.5, 254.6, 255.0, 300.0, -4.0]) / 255
    images = levels.expand(2, 3, 1, 8)
    gray = Image.new("L", (4, 4), 7)
    assert save_images([images, gray, images[:1].bfloat16()], tmp_path / "a") == 4
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
    with pytest.raises(UserError, match="nowhere holds no pictures"):
        folder_features(tmp_path / "nowhere", extractor())
    with pytest.raises(UserError, match="unknown resize 'cubic'"):
        folder_features(folder, extractor(), resize="cubic")
    with pytest.raises(UserError, match="blur must be 0 or more"):
        folder_features(folder, extractor(), blur=-1)
    (folder / "00005.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"cannot be read.*00005\.png"):
        folder_features(folder, extractor())
