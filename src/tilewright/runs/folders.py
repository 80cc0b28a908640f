"""Folders of runs and models: their files, their configuration, and finding them.

A run is a folder `<logs>/<stage>/<name>/` with `config.yaml` (resolved), `checkpoints/`
(`last.ckpt` and `best.ckpt`), TensorBoard events, `metrics.csv` and `environment.json`. A prior's
run also holds `tokenizer.json` and, under `dvae/`, the model of its frozen dVAE. It therefore
generates images wherever it is copied to. `<logs>/<stage>/latest` is a text file with the name of
the newest run, which paths may go through (`follow_latest`).

A model is a run without its training state: `config.json` and `model.safetensors` replace
`config.yaml` and `checkpoints/`. An adapter that is exported alone has `adapter_model.safetensors`
instead. A folder in which transformers or diffusers saved an image tokenizer is a model, too: it is
converted each time it is read (`tilewright.dvae.pretrained`). All may come from a stranger: nothing
in them is unpickled, and `safe_build` restricts what a configuration may build.

This module imports nothing heavy: the command line finds runs before it loads torch.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, SafeLoader, YAMLError, scan

from tilewright import configs, files, program
from tilewright.dvae.pretrained import FolderFamily, recognize
from tilewright.errors import UserError
from tilewright.runs.training_data import TrainingData
from tilewright.weight_files import read_json

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
MODEL_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"  # in place of WEIGHTS, as PEFT names it
TOKENIZER = "tokenizer.json"
DVAE = "dvae"
RANKER = "ranker"
LATEST = "latest"
CAPTION_ENCODER = "tilewright.data.CaptionEncoder"
STAGES = ("dvae", "prior", "ranker")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)+")  # someone/name, possibly with a subfolder
FORMAT = 2  # of config.yaml and config.json; Tilewright 0.1 wrote no number


def check_name(name: Any) -> None:
    """Checks the name of a new run.

    Raises:
        UserError: the name is not that of a folder directly below the stage's folder.
    """
    text = "" if name is None else str(name)
    if not text or text == LATEST or text.startswith(".") or "/" in text:
        raise UserError(
            f"run_name={text} is not possible: set a name without / that does not begin with a dot "
            f"and is not {LATEST!r}"
        )


def create(run: Path, config: DictConfig) -> None:
    """Creates a run's folder, or updates its configuration.

    Raises:
        UserError: a folder is in the place of `latest`.
    """
    latest = run.parent / LATEST
    if latest.is_dir() and not latest.is_symlink():
        raise UserError(f"{latest} is a folder, but must be a file: move or delete it")
    run.mkdir(parents=True, exist_ok=True)
    saved = OmegaConf.merge({"format": FORMAT}, config)
    files.write_atomically(run / CONFIG, configs.to_yaml(saved))


def set_latest(run: Path) -> None:
    """Writes the name of a run with a new checkpoint to `latest`. Ignores other folders."""
    if not (run / CONFIG).is_file():
        return
    temporary = run.parent / f".{LATEST}-{os.getpid()}"  # several trainings may start at once
    temporary.write_text(f"{run.name}\n")
    temporary.replace(run.parent / LATEST)  # also replaces the symbolic link of Tilewright 0.1


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Locks a run's folder for one training, and creates it if needed.

    A folder that is still empty at the end is removed.

    Raises:
        UserError: another process trains this run, or the folder cannot be written or locked.
    """
    in_use = f"another process is training {run}: wait for its end, or choose another run_name"
    advice = "choose another folder with paths.logs, on a file system that has locks"
    with files.locked_folder(run, in_use, advice):
        yield


def follow_latest(path: str | Path) -> Path:
    """Returns a path with `latest` replaced by the name of the newest run.

    `latest` is a text file in a stage's folder. TensorBoard shows a link as a second run, and some
    file systems have no links.
    """
    followed = Path()
    for part in Path(path).parts:
        place = followed / part
        if part == LATEST and place.is_file():
            place = followed / Path(place.read_text(errors="replace").strip()).name
        followed = place
    return followed


def load_config(folder: Path) -> DictConfig:
    """Loads the configuration of a run, or the part of it that a model keeps.

    The folder may come from a stranger, so interpolations, aliases and links are refused.

    Raises:
        UserError: the folder is neither a run nor a model, or contains a symbolic link. Or its
            configuration is broken, is not plain, or has another format.
    """
    folder = follow_latest(folder)
    _check_links(folder)
    file = folder / (CONFIG if (folder / CONFIG).is_file() else MODEL_CONFIG)
    if not file.is_file():
        raise UserError(
            f"{folder} is not a run: it has neither {CONFIG} nor, as a model, {MODEL_CONFIG}: "
            f"{_suggest_folder(folder)}"
        )
    try:
        config = _parse(file)
    except (YAMLError, ValueError, OSError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}") from error
    if family := public_family(folder):
        network = {"_target_": "tilewright.dvae.VQGAN", **family.settings()}
        name = type(family).__name__
        choices = {"model": name, "family": name}
        public = {"stage": "dvae", "choices": choices, "model": {"network": network}}
        return OmegaConf.create({"format": FORMAT, **public})
    if not isinstance(config, DictConfig) or config.get("stage") not in STAGES:
        raise UserError(
            f"{file} is not a run's configuration: its stage is not one of {', '.join(STAGES)}"
        )
    _check_format(config, file)
    if not isinstance(config.get("choices"), DictConfig):  # of a stranger's model
        config.choices = {}
    return config


def _suggest_folder(folder: Path) -> str:
    """Returns advice on a folder that is not a run, such as that of a whole diffusers pipeline."""
    inner = [
        part
        for part in sorted(folder.glob("*"))
        if (part / CONFIG).is_file() or public_family(part)
    ]
    return f"give a folder in it, such as {inner[-1]}" if inner else "check the path"


def _parse(file: Path) -> Any:
    """Returns the content of a configuration file.

    Raises:
        UserError: a value is an alias, which can fill the memory, or an interpolation, which can
            read environment variables.
    """
    text = file.read_text(encoding="utf-8")
    config: Any
    if file.suffix == ".json":
        content = json.loads(text)
        if not isinstance(content, dict):
            return None
        config = OmegaConf.create(content)
    else:
        if any(isinstance(token, AliasToken) for token in scan(text, Loader=SafeLoader)):
            raise UserError(f"{file} has a YAML alias: write the value out")
        config = OmegaConf.load(StringIO(text))
    _check_plain(OmegaConf.to_container(config), file)
    return config


def _check_plain(value: Any, file: Path) -> None:
    """Checks that no value contains an interpolation.

    Raises:
        UserError: a value contains one.
    """
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            _check_plain(item, file)
        elif isinstance(item, str) and configs.is_interpolation(item):
            raise UserError(f"{file} has the value {item!r}: saved settings must be plain values")


def _check_links(folder: Path) -> None:
    """Checks that a folder contains no symbolic link. `checkpoints` may be one.

    Raises:
        UserError: the folder contains a link.
    """
    for pattern in ("*", "eval/*", "eval/*/results.json"):
        for path in folder.glob(pattern):
            if path.name != "checkpoints":
                files.check_not_linked(path)


@contextlib.contextmanager
def skip_unreadable(run: Path) -> Iterator[None]:
    """Logs a warning instead of the error of a block that reads one run among several."""
    try:
        yield
    except UserError as error:
        log.warning("Skipping %s/%s: %s", run.parent.name, run.name, error)


def _check_format(config: DictConfig, file: Path) -> None:
    written = config.get("format")
    if written is None:
        raise UserError(
            f"{file} was saved by Tilewright 0.1, whose runs this version does not read: train it "
            "again"
        )
    if written != FORMAT:
        raise UserError(
            f"{file} has format {written}, and this version reads format {FORMAT}: use the version "
            "of Tilewright that saved it"
        )


def loss_networks(config: DictConfig) -> list[str]:
    """Returns the names of the feature networks in the perceptual losses that trained a dVAE.

    A model, and a run that starts from other weights, record them as `perceptual_networks`.
    Earlier versions recorded the last one as `perceptual_network`.
    """
    recorded = config.get("perceptual_networks") or [config.get("perceptual_network")]
    names = [*recorded, OmegaConf.select(config, "model.perceptual.network")]
    return list(dict.fromkeys(name for name in names if name))


def reads_features(config: DictConfig) -> bool:
    """Returns True if a prior reads the features of a text encoder in place of text tokens."""
    return OmegaConf.select(config, "tokenizer._target_") == CAPTION_ENCODER


def split_override(override: str) -> tuple[str, str]:
    """Returns the key, or the config group, that a command-line override sets, and the value."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def override_key(override: str) -> str:
    """Returns the key, or the config group, that a command-line override sets."""
    return split_override(override)[0]


def relocate(config: DictConfig, run: Path) -> DictConfig:
    """Returns a saved configuration with the run's paths changed to where the run is now.

    Resolved paths to the run and to its dVAE occur in many settings. A copied run must not write
    into the original.
    """
    moves = {configs.escape(config.run): configs.escape(str(run))}
    if config.get("dvae"):
        moves[configs.escape(config.dvae)] = configs.escape(str(run / DVAE))

    def follow(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: follow(item) for key, item in value.items()}
        if isinstance(value, list):
            return [follow(item) for item in value]
        for old, new in moves.items():
            if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
                return new + value.removeprefix(old)
        return value

    return OmegaConf.create(follow(OmegaConf.to_container(config)))


def checkpoint(run: Path, kind: str = "best") -> Path:
    """Returns the path of a run's "best" or "last" checkpoint, or of the other if only that exists.

    A run that no longer selects its best weights may still have those of before, so its last
    checkpoint comes first.

    Raises:
        UserError: the run has no checkpoint.
    """
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    if last.is_file() and (
        kind == "last" or not best.is_file() or not selects_best(load_config(run))
    ):
        return last
    if best.is_file():
        return best
    if is_model(run):
        raise UserError(
            f"{run} is a model, which cannot be resumed: start a run from its weights with "
            f"init={run}"
        )
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not complete: it has no {WEIGHTS}")
    raise UserError(
        f"{run} has no checkpoint yet: wait for its first one, or start it again with run_name="
        f"{run.name} if its process has ended"
    )


def selects_best(config: DictConfig) -> bool:
    """Returns True unless a run's configuration leaves out the best checkpoint, or validations."""
    validates = OmegaConf.select(config, "trainer.limit_val_batches") != 0
    return validates and (
        "callbacks" not in config or OmegaConf.select(config, "callbacks.best") is not None
    )


def is_model(folder: Path) -> bool:
    """Returns True for a folder with weights, or with an adapter, in place of checkpoints."""
    has_weights = (folder / WEIGHTS).is_file() or (folder / ADAPTER).is_file()
    return has_weights or public_family(folder) is not None


def public_family(folder: Path) -> FolderFamily | None:
    """Returns the family of a folder of another project, or None for one of ours."""
    if (folder / CONFIG).is_file() or not (folder / MODEL_CONFIG).is_file():
        return None
    try:
        return recognize(folder, read_json(folder / MODEL_CONFIG))
    except UserError:  # `load_config` reports it
        return None


def has_checkpoint(run: Path) -> bool:
    """Returns True if a run has a checkpoint, from which it can be resumed."""
    return any((run / "checkpoints").glob("*.ckpt"))


def find(
    logs: Path,
    stage: str | None,
    path: str | None = None,
    data: TrainingData | None = None,
    image_size: int | None = None,
) -> Path:
    """Returns the run or model at a path, or the newest run of a stage that has a checkpoint.

    The search for the newest run skips runs whose configuration cannot be read, with a warning.
    With `data`, the log names the newest run that is used, and a run at a path with other data.

    Args:
        logs: folder of all runs.
        stage: the stage that the run must have; None accepts any, if a path is given.
        path: of a run or model; None takes the newest run.
        data: without a path, only runs trained on the same data.
        image_size: without a path, only runs whose network reads images of this size, in pixels.

    Raises:
        UserError: no such run exists; the message has the command that trains one.
    """
    if path is not None:
        run = _find_by_path(logs, stage, follow_latest(str(path)))  # a list in YAML is not a path
        trained = TrainingData.from_run(load_config(run))
        if data and trained.name and (difference := data.difference(trained)):
            log.info("%s was trained on other data: %s", run, difference)
        return run
    assert stage is not None
    others: list[str] = []
    other_sizes: list[int] = []
    settings: dict[str, Any] = {"data": data.name} if data and data.name else {}
    for run in _newest_first(logs / stage):
        with skip_unreadable(run):
            config = load_config(run)
            difference = data.difference(TrainingData.from_run(config)) if data else None
            size = OmegaConf.select(config, "model.network.image_size")
            if difference is None and None not in (size, image_size) and size != image_size:
                difference = f"data.image_size={size}"
                settings["data.image_size"] = image_size
                other_sizes.append(size)
            if difference is None:
                if data:
                    log.info("Using %s, the newest %s of the same data", run, stage)
                return run
            others.append(f"{run} was trained on {difference}")
    name = "".join(f" {key}={value}" for key, value in settings.items())
    # A ranker must have the size of its prior, which is not a setting.
    can_follow = stage == "dvae" and other_sizes
    advice = f"set data.image_size={other_sizes[0]}, " if can_follow else ""
    raise UserError(
        f"no trained {stage} in {logs / stage}/{name and f' for{name}'}"
        f"{f' ({others[0]})' if others else ''}: "
        f"train one first with `{program.invocation('train')} stage={stage}{name}`, "
        f"{advice}or give its path"
    )


def _find_by_path(logs: Path, stage: str | None, run: Path) -> Path:
    if stage == "dvae" and HUB_NAME.fullmatch(str(run)) and not Path(run.parts[0]).exists():
        from tilewright.runs import hub

        run = hub.image_tokenizer_folder(str(run))
    if not run.is_dir():
        raise UserError(f"there is no run {run}: name one under {logs / (stage or '')}/")
    trained = load_config(run).stage
    if stage not in {None, trained}:
        raise UserError(f"{run} is a run of stage={trained}: name one of stage={stage}")
    if not is_model(run):
        checkpoint(run)  # raises if the run has none
    return run.resolve()


def _newest_first(folder: Path) -> list[Path]:
    """Returns the runs of a folder that have a checkpoint, sorted by its age."""
    runs = []
    for run in folder.glob("*/"):
        checkpoints = list((run / "checkpoints").glob("*.ckpt"))
        if run.name != LATEST and checkpoints and (run / CONFIG).is_file():
            runs.append((max(file.stat().st_mtime for file in checkpoints), run.resolve()))
    return [run for _, run in sorted(runs, reverse=True)]


def find_resumable(logs: Path, stage: str | None, path: str | None = None) -> tuple[Path, Path]:
    """Returns the run to resume and the checkpoint to resume from.

    Args:
        logs: folder of all runs.
        stage: of the run; None accepts any, if a path is given.
        path: of a run or of one of its checkpoints; None takes the newest run.

    Raises:
        UserError: no such run or checkpoint exists.
    """
    if path is None or not path.endswith(".ckpt"):
        run = find(logs, stage, path)
        return run, checkpoint(run, "last")
    file = follow_latest(path).resolve()
    if not file.is_file():
        raise UserError(f"there is no checkpoint {path}: name one under RUN/checkpoints/")
    return find(logs, stage, str(file.parents[1])), file
