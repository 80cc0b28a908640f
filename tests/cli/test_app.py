"""Mistakes in one line: the messages, and whole processes that the user gets wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tilewright.cli import app
from tilewright.errors import UserError

ROOT = Path(__file__).parents[2]


def run(command, *arguments):
    """The process's status, stdout and stderr."""
    words = [sys.executable, str(ROOT / "src" / f"{command}.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)


def fails_in_one_line(command, *arguments):
    """The one line of a command that the user got wrong."""
    done = run(command, *arguments)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_a_full_disk_is_one_line():
    with pytest.raises(SystemExit) as caught, app.mistakes_in_one_line():
        Path("/dev/full").write_text("figures" * 10_000)
    assert "No space left" in caught.value.code
    assert "resume=" in caught.value.code
    assert "\n" not in caught.value.code


def test_output_that_nobody_reads_ends_a_command_quietly():
    chatter = (
        "from tilewright.cli.app import mistakes_in_one_line as quietly\n"
        "with quietly():\n    while True: print('a figure')"
    )
    words, pipes = [sys.executable, "-c", chatter], {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT / "src", stderr=subprocess.PIPE, **pipes) as process:
        assert process.stdout.readline() == "a figure\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_another_error_of_the_system_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), app.mistakes_in_one_line():
        (tmp_path / "nothing").read_text()


@pytest.fixture
def places(tmp_path):
    return [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]


class Failing(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("no such row: take another")


def test_one_line_of_a_constructors_own_mistake():
    config = {
        "source": {
            "_target_": "tilewright.data.ShapesSource",
            "root": "x",
            "train": 0,
        }
    }
    with pytest.raises(HydraException) as caught:
        instantiate(config)
    line = app.one_line(caught.value)
    assert line == "source: data.source.train=0 is not possible: set 1 or more rows"


def test_one_line_of_an_absent_package():
    for target, words in (
        ("absent_package.part.Thing", "source needs a package that is not installed: pip install"),
        ("tilewright.absent.Thing", "source: Error loading 'tilewright.absent.Thing'"),
    ):
        with pytest.raises(HydraException) as caught:
            instantiate({"source": {"_target_": target}})
        assert app.one_line(caught.value).startswith(words)


def test_one_line_of_hydras_errors():
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        for overrides, word in (
            (["stage=nope"], "stage/nope"),
            (["stage=dvae", "trainer.nope=1"], "trainer.nope"),
            (["stage=dvae", "trainer.max_steps"], "trainer.max_steps"),
            (["stage=dvae", "data.source.path={0..9}.tar"], "\"data.source.path='{0..9}.tar'\""),
        ):
            with pytest.raises(HydraException) as caught:
                compose("train", overrides)
            line = app.one_line(caught.value)
            assert word in line
            assert "\n" not in line
            assert "HYDRA_FULL_ERROR" not in line


def test_one_line_of_a_key_of_one_metric_for_several(places):
    line = fails_in_one_line("eval", "metric=fid,kid", "metric.blur=4", *places)
    assert "several options of metric at once take no metric.KEY=value" in line


def test_one_line_of_a_worker_process():
    loader = DataLoader(Failing(), num_workers=1)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert "Traceback" in str(caught.value)  # torch puts the worker's before the message
    assert app.one_line(caught.value) == "no such row: take another"


def test_check_names_the_key_without_a_value():
    with pytest.raises(UserError, match=r"b\.c has no value: set it on the command line, b\.c=…"):
        app.check(OmegaConf.create({"a": 1, "b": {"c": "???"}}))


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("train", [], ["stage=dvae"]),
        ("train", ["stage=nope"], ["stage/nope", "dvae", "prior"]),
        ("train", ["stage=dvae", "data=nope"], ["data/nope", "shapes", "folder"]),
        ("train", ["stage=dvae", "trainer.nope=3"], ["trainer.nope"]),
        ("train", ["stage=prior"], ["dvae", "python src/train.py stage=dvae"]),
        ("train", ["stage=dvae", "data=folder"], ["data.source.path"]),
        ("train", ["stage=dvae", "resume=true"], ["no trained dvae"]),
        ("eval", [], ["metric=fid"]),
        ("eval", ["metric=nope"], ["metric/nope", "fid"]),
        ("generate", [], ["prompt="]),
        ("generate", ["prompt=a red circle"], ["stage=prior"]),
    ],
)
def test_mistakes_in_the_configuration(places, command, arguments, words):
    line = fails_in_one_line(command, *places, *arguments)
    for word in words:
        assert word in line


@pytest.mark.slow
def test_folder_without_captions(places, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    line = fails_in_one_line(
        "train", *places, "stage=dvae", "data=folder", f"data.source.path={folder}"
    )
    assert str(folder) in line
    assert "no captions" in line
    assert not (tmp_path / "logs").exists()  # a run that could not begin leaves nothing


@pytest.mark.slow
def test_parquet_without_the_column(places, tmp_path):
    import datasets

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = {"image": [(tmp_path / "a.png").read_bytes()] * 4, "text": ["a"] * 4}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    line = fails_in_one_line(
        "train", *places, "stage=dvae", "data=parquet", f"data.source.path={tmp_path}/a.parquet"
    )
    assert "no column 'caption'" in line
    assert "image, text" in line
    assert "caption_column" in line


@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_help(command):
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    words = {
        "train": ["stage: dvae, prior, ranker", "data: ", "shapes", "trainer: auto, cpu, ddp, "],
        "eval": ["metric: ", "clip_score, fid, identification, is, kid"],
        "generate": ["prompt=", "image_prompt=", "top_k=", "guidance="],
    }
    for word in [f"python src/{command}.py", *words[command]]:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("command", "argument", "missing"),
    [
        ("train", "stage=prior", "dvae"),
        ("eval", "metric=fid", "prior"),
        ("generate", "prompt=a ring", "prior"),
    ],
)
def test_debug_shows_the_traceback(places, command, argument, missing):
    done = run(command, *places, argument, "debug=default")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert f"no trained {missing}" in done.stderr


def test_eval_takes_the_name_of_a_data_set(tmp_path):
    """`data` is a config group too, and `data=emoji` was once refused as an override of it."""
    words = ["metric=reconstruction", "data=emoji", f"paths.logs={tmp_path}"]
    outcome = subprocess.run(
        [sys.executable, "src/eval.py", *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: no trained dvae in {tmp_path}/dvae/ for data=emoji")


@pytest.mark.parametrize(
    ("command", "key"), [("train", "run_name"), ("generate", "hydra.sweep.dir")]
)
def test_jobs_that_start_in_one_second_have_folders_of_their_own(command, key):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        names = {
            OmegaConf.select(compose(command, return_hydra_config=True), key) for _ in range(3)
        }
    assert len(names) == 3
