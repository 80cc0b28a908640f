"""A command in this process, where it takes a fraction of a second to begin."""

import importlib.util
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]


def command(name, words, home=None):
    """Runs a command in this process; the line with which it ends, None if it ends well.

    Data and runs lie in a home, by default where the command puts them by itself.
    """
    spec = importlib.util.spec_from_file_location(f"command_{name}", ROOT / "src" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        places = [f"paths.data={home.data}", f"paths.logs={home.logs}"] if home else []
        patch.setattr("sys.argv", [f"{name}.py", *places, *words])
        try:
            module.main()
        except SystemExit as end:
            return end.code
        finally:
            GlobalHydra.instance().clear()
    return None
