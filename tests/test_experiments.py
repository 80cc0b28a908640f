"""The recipes under conf/experiment say what they promise."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tilewright import command_line


@pytest.fixture
def paper():
    with initialize_config_dir(str(command_line.CONF), version_base="1.3"):
        yield compose(
            "train", ["experiment=dvae_paper", "data=folder", "data.source.path=x", "run=x"]
        )


def test_dvae_paper_has_the_papers_schedules(paper):
    """Appendix A.2."""
    temperature, beta, rate = (
        instantiate(paper.model[name]) for name in ("temperature", "beta", "learning_rate")
    )
    assert [temperature(0), temperature(150_000), temperature(3_000_000)] == [1, 1 / 16, 1 / 16]
    assert [beta(0), beta(5_000), beta(3_000_000)] == pytest.approx([0, 6.6, 6.6])
    assert [rate(0), rate(1_200_000)] == pytest.approx([1e-4, 1.25e-6])
    assert temperature(75_000) == pytest.approx((1 + 1 / 16) / 2)


def test_dvae_paper_has_the_papers_sizes_and_length(paper):
    network = paper.model.network
    assert (network.image_size, network.grid, network.num_tokens) == (256, 32, 8192)
    assert (network.n_hid, network.n_init, network.blocks_per_group) == (256, 128, 2)
    assert (network.encoder_kernel, network.padding_mode) == (3, "zeros")
    assert paper.likelihood._target_.endswith("LogitLaplace")
    assert paper.likelihood.min_log_scale is None
    assert paper.model.weight_decay == 1e-4
    assert paper.data.batch_size * paper.trainer.accumulate_grad_batches == 512
    assert paper.trainer.max_steps == 3_000_000
    assert paper.callbacks.ema.decay == 0.999


def test_dvae_paper_augments_as_the_paper_does(paper):
    augment = instantiate(paper.data.train_transform)
    assert (augment.size, augment.flip) == (256, True)
