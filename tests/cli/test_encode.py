"""`src/encode.py` on a folder of images."""

from types import SimpleNamespace

from helpers import untrained
from helpers.command import run


def test_encodes_images_for_a_prior_with_text_tokens(tmp_path):
    logs = untrained.all_stages(tmp_path)
    home = SimpleNamespace(data=tmp_path / "data", logs=logs)
    data = ["data=folder", f"data.source.path={tmp_path / 'images'}", "data.image_size=16"]
    output = run(home, "encode", "device=cpu", f"dvae={logs / 'dvae' / 'untrained'}", *data)
    assert "Image tokens of train" in output
    assert list((home.data / "image_tokens").rglob("*.npy"))
    assert "Features" not in output
