"""Runs the example of docs/callbacks.md."""

import csv
import sys

import pytest

from helpers import pages, short

pytestmark = pytest.mark.slow

BLOCKS = pages.blocks(pages.ROOT / "docs" / "callbacks.md")
FILES = [block for block in BLOCKS if block.file]


@pytest.fixture
def home(home, monkeypatch):
    """Example project with the page's files."""
    for block in FILES:
        path = home / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    monkeypatch.setenv("TILEWRIGHT_TRUST", "mine")
    monkeypatch.syspath_prepend(home)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return home


def test_the_pages_commands_run_and_the_callback_logs(home):
    for block in BLOCKS:
        for words in [] if block.language else block.commands:
            assert short.run(words) is None, " ".join(words)
    run = home / "logs" / "dvae"
    logged = {
        name
        for file in run.glob("*/metrics.csv")
        for row in csv.DictReader(file.open())
        for name, value in row.items()
        if value
    }
    assert "saturation/mean" in logged
