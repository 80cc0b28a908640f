"""Names and folders of the running program."""

import pytest

from tilewright.errors import UserError
from tilewright.program import find_conf


@pytest.mark.parametrize("place", ["src/tilewright/conf", "conf"])
def test_settings_are_inside_a_wheel_or_at_the_top_of_a_checkout(place, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    assert find_conf(tmp_path / "src" / "tilewright") == tmp_path / place


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(UserError, match=f"needs its settings in {tmp_path}.*: install it again"):
        find_conf(tmp_path / "src" / "tilewright")
