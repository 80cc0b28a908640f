"""Commands of `src/` run inside this process, which starts them in a fraction of a second."""

import contextlib
import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
# Settings of a training that takes seconds.
SMALL = [
    "trainer=cpu",
    "data.source.train=200",
    "data.source.validation=32",
    "data.source.zeroshot=16",
    "data.batch_size=8",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
PROMPT = "a large red circle"


def make_home(folder):
    """Returns the folders for data and runs below a folder, and those of the usual runs."""
    logs = folder / "logs"
    return SimpleNamespace(
        folder=folder,
        data=folder / "data",
        logs=logs,
        dvae=logs / "dvae" / "first",
        prior=logs / "prior" / "first",
        ranker=logs / "ranker" / "first",
    )


def command(name, arguments, home=None):
    """Runs a command. Returns None if it succeeds, else its error message or exit status.

    Args:
        name: name of the script, such as `train`.
        arguments: arguments of the script.
        home: object of `make_home`, for the folders of data and runs. None keeps the defaults.
    """
    main = importlib.import_module(f"tilewright.cli.{name}").main
    with pytest.MonkeyPatch.context() as patch:
        paths = [f"paths.data={home.data}", f"paths.logs={home.logs}"] if home else []
        typed = {word.partition("=")[0] for word in arguments}
        paths = [word for word in paths if word.partition("=")[0] not in typed]
        patch.setattr("sys.argv", [f"src/{name}.py", *paths, *arguments])
        try:
            main()
        except SystemExit as end:
            return end.code
        finally:
            GlobalHydra.instance().clear()
    return None


def run(home, name, *arguments):
    """Runs a command that must succeed, and returns its stdout."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        error = command(name, arguments, home)
    assert error is None, error
    return stdout.getvalue()


def fail(home, name, *arguments):
    """Runs a command that must fail with a user error, and returns the error message."""
    error = command(name, arguments, home)
    assert isinstance(error, str), f"it exits with {error}"  # Python prints it; the status is 1
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def step(checkpoint):
    """Returns the number of updates before a checkpoint."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


def results(run, metric):
    """Returns the rows of an evaluation's results.json."""
    return json.loads((run / "eval" / metric / "results.json").read_text())


def images(folder):
    """Returns the bytes of a folder's PNG files by file name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}
