"""Codebook usage during training."""

import pytest

from helpers import tiny
from tilewright.callbacks import CodebookUsageCallback
from tilewright.errors import UserError


@pytest.mark.parametrize("num_tokens", [3, 16])
def test_a_codebook_of_another_size_is_refused_before_training(num_tokens, tmp_path):
    module, _, _ = tiny.make("dvae", tmp_path)  # with 8 tokens
    CodebookUsageCallback(8).setup(None, module, "fit")
    with pytest.raises(UserError, match=f"num_tokens={num_tokens} differs from .* 8 tokens"):
        CodebookUsageCallback(num_tokens).setup(None, module, "fit")
