"""One-line messages of user errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch.utils.data import DataLoader, Dataset

from helpers.command import ROOT, SMALL, fail
from tilewright.cli import app
from tilewright.cli.messages import one_line, one_line_errors
from tilewright.errors import UserError


def run_process(*arguments):
    """Runs Python in the repository's root and returns the finished process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_user_error_ends_the_process_with_one_line_and_status_1(home):
    done = run_process("src/train.py", f"paths.logs={home.logs}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: stage= is missing: choose stage=dvae, then stage=prior, then stage=ranker\n"
    )


def test_debug_shows_the_traceback(home):
    done = run_process("src/eval.py", f"paths.logs={home.logs}", "metric=fid", "debug=default")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no trained prior" in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("train", ["stage=prior"]), ("eval", ["metric=fid"]), ("generate", ["prompt=a ring"])],
)
def test_debug_raises_the_error_of_every_command(home, command, arguments):
    with pytest.raises(UserError, match=r"no trained (dvae|prior)"):
        fail(home, command, *arguments, "debug=default")


@pytest.mark.parametrize(
    ("command", "arguments", "repeats"),
    [
        ("eval", ["metric=fid", "run={both}"], True),
        ("eval", ["metric=fid", "run=[{both}]"], True),
        ("generate", ["prompt=a ring", "run={both}"], False),
        ("train", ["stage=prior", "dvae={both}"], False),
    ],
)
def test_a_list_of_paths_is_an_error_that_advises_repeating_where_that_works(
    home, command, arguments, repeats
):
    paths = [home.folder / name for name in "ab"]
    for path in paths:
        path.mkdir()
    both = ",".join(map(str, paths))
    line = fail(home, command, *(word.format(both=both) for word in arguments))
    assert "there is no run" in line
    hint = f"(for several, repeat the key: run={paths[0]} run={paths[1]})"
    assert line.endswith(hint) if repeats else "repeat the key" not in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_full_disk_is_one_line():
    with pytest.raises(SystemExit) as caught, one_line_errors():
        Path("/dev/full").write_text("text" * 10_000)
    assert "No space left" in caught.value.code
    assert caught.value.code.endswith("free space there, or choose another folder")
    assert "\n" not in caught.value.code


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has this folder")
@pytest.mark.parametrize("key", ["paths.logs", "paths.data"])
def test_folder_that_cannot_be_made_is_one_line(home, key):
    line = fail(home, "train", "stage=dvae", f"{key}=/proc/none", *SMALL)
    assert "/proc/none" in line
    assert "cannot be written" in line


def test_command_ends_quietly_when_nobody_reads_its_output():
    code = (
        "from tilewright.cli.messages import one_line_errors\n"
        "with one_line_errors():\n    while True: print('a line')"
    )
    command, pipes = [sys.executable, "-c", code], {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT / "src", stderr=subprocess.PIPE, **pipes) as process:
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_other_system_errors_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), one_line_errors():
        (tmp_path / "nothing").read_text()


def test_message_of_a_constructor_names_its_key():
    source = {"_target_": "tilewright.data.ShapesSource", "root": "x", "train": 0}
    with pytest.raises(HydraException) as caught:
        instantiate({"source": source})
    expected = "data.source.train=0 is not possible: set 1 or more rows"
    assert one_line(caught.value) == expected


@pytest.mark.parametrize(
    ("target", "start"),
    [
        (
            "absent_package.part.Thing",
            "source needs the module absent_package, which cannot be imported: pip",
        ),
        ("tilewright.absent.Thing", "source: Error loading 'tilewright.absent.Thing'"),
    ],
)
def test_missing_package_is_named_unless_it_is_our_own(target, start):
    with pytest.raises(HydraException) as caught:
        instantiate({"source": {"_target_": target}})
    assert one_line(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stage=nope"], "stage/nope"),
        (["stage=dvae", "trainer.nope=1"], "trainer.nope"),
        (["stage=dvae", "trainer.max_step=3"], "did you mean trainer.max_steps?"),
        (["stage=prior", "model.depth=3"], "did you mean model.network.depth?"),
        (["stage=prior", "caption.path=x"], "caption.path= needs a text encoder: set caption=enc"),
        (
            ["stage=prior", "caption=encoder", "caption.path=x", "tokenizer.length=3"],
            "tokenizer.length= has no effect here: set caption.length",
        ),
        (["sead=1"], "sead is not a key: did you mean seed?"),
        (["stage=dvae", "data=nope"], "Available options in 'data': emoji folder"),
        (["stage=dvae", "trainer.max_steps"], "trainer.max_steps"),
        (["stage=dvae", "trainer.max_steps={3"], "trainer.max_steps={3 is not a setting"),
        (["stage=dvae", "trainer.max_steps=3,4"], "trainer.max_steps=3,4 is several values: name"),
    ],
)
def test_hydra_error_is_one_line_without_hydras_hints(overrides, expected):
    with (
        initialize_config_dir(str(app.CONF), version_base="1.3"),
        pytest.raises(HydraException) as caught,
    ):
        compose("train", overrides)
    line = one_line(caught.value)
    assert expected in line
    assert "\n" not in line
    assert "HYDRA_FULL_ERROR" not in line


def test_key_of_one_metric_is_refused_for_several(home):
    line = fail(home, "eval", "metric=fid,kid", "metric.blur=4")
    assert "metric.KEY=value cannot be combined with several options of metric" in line


class Failing(Dataset):
    """Data set whose only row raises a user error."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("no such row: take another")


def test_error_of_a_dataloader_worker_loses_the_workers_traceback():
    loader = DataLoader(Failing(), num_workers=1)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert "Traceback" in str(caught.value)
    assert one_line(caught.value) == "no such row: take another"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=true", "debug=default"], "debug=default cannot change a resumed run"),
        (["debug=nope"], "debug/nope"),
        (["debug=[default]"], "debug=[default] is a list"),
    ],
)
def test_a_refused_debug_option_asks_for_no_traceback(copied, arguments, message):
    assert message in fail(copied, "train", "stage=dvae", *arguments)
