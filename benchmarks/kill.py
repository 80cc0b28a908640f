"""Kills `src/train.py` with SIGKILL at random moments, resumes it, and compares what it ends with.

Each training is killed once to three times, every other time while it writes a checkpoint, goes on
with `resume=` until it is done, and has to end with the bits of one that nothing interrupted:
weights, averages, moments of Adam, schedules; and what it logs has to be the same. (Figures of the
update that a kill interrupts may be missing: a checkpoint is written before they are.) Small
networks, on a CPU.

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
    "trainings": 25,  # of each stage; each is killed at least once
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
    "callbacks.bar.refresh_rate=0",
]
OF_STAGE = {
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
    """A stage's training by the command, in any folder of a place that all of them share."""

    def __init__(self, stage: str, steps: int, place: Path):
        self.words = [f"stage={stage}", f"trainer.max_steps={steps}", *SMALL, *OF_STAGE[stage]]
        self.data = place / "data"
        self.logs = place / "logs"
        self.stage = stage

    def folder(self, name: str) -> Path:
        return self.logs / self.stage / name

    def __call__(self, folder: Path) -> None:
        """Begins, or goes on with what is there."""
        words = [f"stage={self.stage}", f"resume={folder}"]
        if not list(folder.glob("checkpoints/*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
            words = [*self.words, f"run_name={folder.name}"]
        said = (self.logs / f"{self.stage}-{folder.name}.txt").open("a")
        sys.stdout = sys.stderr = said
        sys.exit(command("train", words, self))


def losses(run: Path) -> Iterator[tuple[tuple[int, str], str]]:
    """What a run has logged, less its speed: ((step, name), value), some more than once."""
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and not name.startswith("speed/"):
                    yield (int(row["step"]), name), value


def check(stage: str, settings: Any, place: Path) -> dict[str, Any]:
    """Figures of one stage: trainings, kills by moment, and how many ended as they have to."""
    train = Command(stage, settings.steps, place)
    expected = train.folder("whole")
    train.logs.mkdir(parents=True, exist_ok=True)
    took = killing.whole(train, expected)
    logged = dict(losses(expected))
    moments = random.Random(settings.seed)
    kills: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    missing = 0
    began = time.monotonic()
    for number in range(settings.trainings):
        run = train.folder(f"killed-{number}")
        kills += killing.killed(train, run, moments.randint(1, 3), 0.6 * took, moments)
        differences = killing.differences(expected, run)
        found = list(losses(run))
        differences += sorted({f"{key}" for key, value in found if logged.get(key) != value})
        missing += len(logged.keys() - dict(found).keys())
        if differences:
            wrong.append({"training": number, "differences": differences})
            print(f"{stage} {number}: {len(differences)} differ, first {differences[:3]}")
        else:
            shutil.rmtree(run)
    return {
        "stage": stage,
        "trainings": settings.trainings,
        "kills": dict(kills),
        "identical": settings.trainings - len(wrong),
        "wrong": wrong,
        "figures_missing": missing,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    settings = command_line.read_own(DEFAULTS, __doc__)
    place = Path(tempfile.mkdtemp(prefix="kill-"))
    if "prior" in settings.stages and "dvae" not in settings.stages:
        (place / "logs").mkdir()
        dvae = Command("dvae", settings.steps, place)
        killing.whole(dvae, dvae.folder("whole"))
    figures = []
    for stage in runs.STAGES:
        if stage in settings.stages:
            figures.append(check(stage, settings, place))
            show(figures, settings)
    if any(f["wrong"] for f in figures):
        sys.exit(f"the runs that differ are in {place}")
    shutil.rmtree(place)


def show(figures: list[dict[str, Any]], settings: Any) -> None:
    rows = [
        [f["stage"], str(f["trainings"]), str(sum(f["kills"].values()))]
        + [str(f["kills"].get(name, 0)) for name in killing.MOMENTS]
        + [str(f["identical"])]
        for f in figures
    ]
    timing.show(
        f"Trainings of {settings.steps} updates that were killed and resumed",
        ["stage", "trainings", "kills", *killing.MOMENTS, "identical"],
        rows,
    )
    timing.write(settings.out, figures=figures, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
