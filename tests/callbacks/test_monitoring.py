"""Direction of monitored metrics."""

import pytest

from tilewright.callbacks import UpdateBoundaryCheckpoint
from tilewright.errors import UserError


@pytest.mark.parametrize(
    ("monitor", "mode", "way_out"),
    [
        ("validation/psnr", "min", "callbacks.best.mode=max"),
        ("retrieval/caption_to_image_r@1", "min", "callbacks.best.mode=max"),
        ("alignment/validation/one object", "min", "callbacks.best.mode=max"),
        ("validation/loss", "max", "callbacks.best.mode=min"),
        ("validation/fd_efficientnet_lite0", "max", "callbacks.best.mode=min"),
    ],
)
def test_the_worst_checkpoint_is_not_saved_as_the_best(monitor, mode, way_out, tmp_path):
    with pytest.raises(UserError, match=way_out):
        UpdateBoundaryCheckpoint(tmp_path, monitor=monitor, mode=mode)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_of_a_user_may_have_either_direction(mode, tmp_path):
    assert UpdateBoundaryCheckpoint(tmp_path, monitor="mine/score", mode=mode).mode == mode
