"""Kills `src/train.py` with SIGKILL at random moments, resumes it and compares the final state.

Each training is killed one to three times, every other time while it writes a checkpoint, and
continues with `resume=`. It must end with the same bits as an uninterrupted training: weights,
averages, Adam's moments, schedules and logged values. Values of an interrupted update may be
missing, because a checkpoint is written before they are. The networks are small and on a CPU.

    python benchmarks/kill.py [trainings=25] [stages=[dvae,prior,ranker]] [any setting=value]
"""

import csv
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import settings as command_line
import timing
from omegaconf import OmegaConf

from tilewright import runs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import killing
from helpers.command import command

DEFAULTS = {
    "stages": ["dvae", "prior", "ranker"],
    "trainings": 25,  # per stage; each is killed at least once
    "steps": 60,
    "seed": 0,  # of the moments
    "out": "logs/benchmarks/kill.json",
}
SMALL = [
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=7",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "data.source.train=200",
    "data.source.validation=32",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "callbacks.progress_bar.refresh_rate=0",
]
STAGE_SETTINGS = {
    "dvae": ["model.network.n_hid=8", "~callbacks.frechet", "trainer.accumulate_grad_batches=2"],
    "prior": [
        "model.network.dim=32",
        "model.network.depth=2",
        "tokenizer.dropout=0.1",
        "data.augmented_tokens=true",
        "callbacks.samples.count=2",
        "callbacks.samples.candidates=1",
        "~callbacks.frechet",
    ],
    "ranker": ["model.network.dim=32", "tokenizer.dropout=0.1"],
}


class Command:
    """Training of a stage by the command line, into any folder under a root."""

    def __init__(self, stage: str, steps: int, root: Path):
        self.words = [
            f"stage={stage}",
            f"trainer.max_steps={steps}",
            *SMALL,
            *STAGE_SETTINGS[stage],
        ]
        self.data = root / "data"
        self.logs = root / "logs"
        self.stage = stage

    def folder(self, name: str) -> Path:
        return self.logs / self.stage / name

    def __call__(self, folder: Path) -> None:
        """Starts a training, or resumes it if there is a checkpoint."""
        words = [f"stage={self.stage}", f"resume={folder}"]
        if not list(folder.glob("checkpoints/*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
            words = [*self.words, f"run_name={folder.name}"]
        output = (self.logs / f"{self.stage}-{folder.name}.txt").open("a")
        sys.stdout = sys.stderr = output
        sys.exit(command("train", words, self))


def logged_values(run: Path) -> Iterator[tuple[tuple[int, str], str]]:
    """Yields ((step, name), value) that a run logged, without speeds; some more than once."""
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and not name.startswith("speed/"):
                    yield (int(row["step"]), name), value


def compare(stage: str, settings: Any, root: Path) -> dict[str, Any]:
    """Returns the kills of one stage by moment, and the number of identical trainings."""
    train = Command(stage, settings.steps, root)
    expected = train.folder("whole")
    train.logs.mkdir(parents=True, exist_ok=True)
    seconds = killing.train_uninterrupted(train, expected)
    logged = dict(logged_values(expected))
    moments = random.Random(settings.seed)
    kills: Counter[str] = Counter()
    different: list[dict[str, Any]] = []
    missing = 0
    start = time.monotonic()
    for index in range(settings.trainings):
        run = train.folder(f"killed-{index}")
        kills += killing.train_with_kills(train, run, moments.randint(1, 3), 0.6 * seconds, moments)
        differences = killing.differences(expected, run)
        values = list(logged_values(run))
        differences += sorted({f"{key}" for key, value in values if logged.get(key) != value})
        missing += len(logged.keys() - dict(values).keys())
        if differences:
            different.append({"training": index, "differences": differences})
            print(f"{stage} {index}: {len(differences)} differences, first {differences[:3]}")
        else:
            shutil.rmtree(run)
    return {
        "stage": stage,
        "trainings": settings.trainings,
        "kills": dict(kills),
        "identical": settings.trainings - len(different),
        "different": different,
        "figures_missing": missing,
        "seconds": time.monotonic() - start,
    }


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    root = Path(tempfile.mkdtemp(prefix="kill-"))
    if "prior" in settings.stages and "dvae" not in settings.stages:
        (root / "logs").mkdir()
        dvae = Command("dvae", settings.steps, root)
        killing.train_uninterrupted(dvae, dvae.folder("whole"))
    results = []
    for stage in runs.STAGES:
        if stage in settings.stages:
            results.append(compare(stage, settings, root))
            report(results, settings)
    if any(f["different"] for f in results):
        sys.exit(f"error: the runs that differ are in {root}")
    shutil.rmtree(root)


def report(results: list[dict[str, Any]], settings: Any) -> None:
    """Prints and writes the results."""
    rows = [
        [f["stage"], str(f["trainings"]), str(sum(f["kills"].values()))]
        + [str(f["kills"].get(name, 0)) for name in killing.MOMENTS]
        + [str(f["identical"])]
        for f in results
    ]
    timing.print_table(
        f"Trainings of {settings.steps} updates that were killed and resumed",
        ["stage", "trainings", "kills", *killing.MOMENTS, "identical"],
        rows,
    )
    timing.write(settings.out, results=results, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
