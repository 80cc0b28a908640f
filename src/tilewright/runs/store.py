"""Where a run lives, how one is found, and how its trained network is loaded.

A run is a folder `<logs>/<stage>/<name>/` with `config.yaml` (resolved), `checkpoints/`
(`last.ckpt` and `best.ckpt`), TensorBoard events, `metrics.csv` and `environment.json`; a prior's
also holds `tokenizer.json` and the frozen dVAE under `dvae/`, so that it draws wherever it is
copied to.

A model that is only to be used, as that dVAE or one that is shared, is a folder with `config.json`
and `model.safetensors` in the place of `config.yaml` and `checkpoints/`, and otherwise the same.
Either may come from a stranger: nothing in it is unpickled, and `untrusted` says what is built.

Nothing heavy is imported before it is needed: the command line looks for runs before it loads
torch.
"""

import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from tilewright.errors import UserError
from tilewright.runs import safe_build

CONFIG = "config.yaml"
MODEL = "config.json"  # of a model that is only to be used
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
DVAE = "dvae"
RANKER = "ranker"
LATEST = "latest"
STAGES = ("dvae", "prior", "ranker")


def create(run: Path, config: DictConfig) -> None:
    """Makes a run's folder, or brings its configuration up to date; `latest` leads to it now."""
    run.mkdir(parents=True, exist_ok=True)
    # Both are made under another name and renamed, so that neither is ever half there.
    whole = run / f".{CONFIG}-{os.getpid()}"
    OmegaConf.save(config, whole, resolve=True)
    whole.replace(run / CONFIG)
    link = run.parent / f".{LATEST}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name, target_is_directory=True)
    link.replace(run.parent / LATEST)


def load_config(run: Path) -> DictConfig:
    """The configuration that a run was trained with; of a model, the part that came with it.

    Raises:
        UserError: the folder is neither, or its configuration is broken.
    """
    file = run / (CONFIG if (run / CONFIG).is_file() else MODEL)
    if not file.is_file():
        raise UserError(f"{run} is no run: it has no {CONFIG}, and no {MODEL} as a model has")
    try:
        config = OmegaConf.load(file)  # JSON is YAML
    except (YAMLError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}") from error
    if not isinstance(config, DictConfig) or config.get("stage") not in STAGES:
        raise UserError(
            f"{file} is no configuration of a run: it names no stage of {', '.join(STAGES)}"
        )
    return config


def key_of(override: str) -> str:
    """The key, or group, that a setting of the command line is about."""
    return override.lstrip("+~").partition("=")[0]


def moved(config: DictConfig, run: Path) -> DictConfig:
    """A saved configuration whose paths into the run, and to its dVAE, lead to where it is now.

    They are resolved and so stand in many places (checkpoints, logs); a run that was copied must
    not write into the one that it is a copy of.
    """
    places = {str(config.run): str(run)}
    if config.get("dvae"):
        places[str(config.dvae)] = str(run / DVAE)

    def follow(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: follow(item) for key, item in value.items()}
        if isinstance(value, list):
            return [follow(item) for item in value]
        for old, new in places.items():
            if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
                return new + value.removeprefix(old)
        return value

    return OmegaConf.create(follow(OmegaConf.to_container(config)))


def checkpoint(run: Path, kind: str = "best") -> Path:
    """The checkpoint of a kind, "best" or "last"; the other one where only that is there.

    Raises:
        UserError: the run has none yet.
    """
    folder = run / "checkpoints"
    for name in (kind, "best", "last"):
        if (folder / f"{name}.ckpt").is_file():
            return folder / f"{name}.ckpt"
    if (run / WEIGHTS).is_file():
        raise UserError(f"{run} is a model and no run to go on with: init={run} begins one")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not whole: it has no {WEIGHTS}")
    raise UserError(f"{run} has no checkpoint yet: let it train, or name another run")


def find(logs: Path, stage: str | None, wanted: str | None = None, data: str | None = None) -> Path:
    """A run that has weights: the one at the path `wanted`, or model there, else the newest run.

    Args:
        stage: of the run; None takes one of any stage, by its path.
        data: with no path, only runs that were trained on this data set.

    Raises:
        UserError: there is none; the message has the command that makes one.
    """
    if wanted is not None:
        run = Path(wanted)
        if not run.is_dir():
            raise UserError(f"there is no run {run}: name one under {logs / (stage or '')}/")
        trained = load_config(run).stage
        if stage not in {None, trained}:
            raise UserError(
                f"{run} is a run of stage={trained}, and one of stage={stage} is needed"
            )
        if not (run / WEIGHTS).is_file():
            checkpoint(run)
        return run.resolve()
    assert stage is not None
    for run in _newest_first(logs / stage):
        if data is None or OmegaConf.select(load_config(run), "choices.data") == data:
            return run
    on = f" data={data}" if data else ""
    raise UserError(
        f"no trained {stage} in {logs / stage}/{f' for data={data}' if data else ''}: "
        f"train one first with `python src/train.py stage={stage}{on}`, or give its path"
    )


def to_resume(logs: Path, stage: str, wanted: str | None = None) -> tuple[Path, Path]:
    """The run to go on with, and the checkpoint to go on from.

    Args:
        wanted: path of a run, or of one of its checkpoints; None is the newest run.

    Raises:
        UserError: there is none.
    """
    if wanted is None or not wanted.endswith(".ckpt"):
        run = find(logs, stage, wanted)
        return run, checkpoint(run, "last")
    file = Path(wanted).resolve()
    if not file.is_file():
        raise UserError(f"there is no checkpoint {wanted}")
    return find(logs, stage, str(file.parents[1])), file


def _newest_first(folder: Path) -> list[Path]:
    """Runs of a folder that can be loaded or resumed, by the age of their newest checkpoint."""
    found = []
    for run in folder.glob("*/"):
        checkpoints = list((run / "checkpoints").glob("*.ckpt"))
        if run.name != LATEST and checkpoints and (run / CONFIG).is_file():
            found.append((max(file.stat().st_mtime for file in checkpoints), run.resolve()))
    return [run for _, run in sorted(found, reverse=True)]


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Lightning's checkpoint, read without running any code that it may hold.

    Raises:
        UserError: it is broken, or cut short.
    """
    from tilewright.distributed import sharded_checkpoint

    try:
        return sharded_checkpoint.read(file)
    except Exception as error:  # a broken archive raises errors of many classes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} cannot be read, it may be cut short: {reason}") from error


def steps(run: Path) -> int:
    """Updates after which a run's weights are as `load_weights` gives them; 0 if not on record."""
    if (run / WEIGHTS).is_file():
        return load_config(run).get("steps", 0)
    return load_checkpoint(checkpoint(run))["global_step"]


def check_unfinished(file: Path, max_steps: int) -> None:
    """Whether a run that is to be resumed has steps left.

    Raises:
        UserError: it has not, or its checkpoint is broken.
    """
    try:
        step = load_checkpoint(file)["global_step"]
    except UserError as error:
        others = [other for other in file.parent.glob("*.ckpt") if other != file]
        for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
            try:
                step = load_checkpoint(other)["global_step"]
            except UserError:
                continue
            raise UserError(
                f"{error}; to go on from the one before it, after {step} updates: resume={other}"
            ) from error
        raise
    if 0 <= max_steps <= step:  # -1 is without end
        raise UserError(
            f"{file.parents[1]} has made all its {step} steps: to go on, set trainer.max_steps "
            "above that"
        )


def load_tokenizer(run: str | Path) -> Any:
    """A run's text tokenizer.

    Raises:
        UserError: no run, no tokenizer in it, or not the one of its configuration.
    """
    run = Path(run)
    settings = load_config(run).get("tokenizer")
    tokenizer = safe_build.build(settings, "tilewright.data", f"tokenizer in {run}")
    tokenizer.load(run / TOKENIZER)
    return tokenizer


def load_network(run: str | Path, device: str = "cpu") -> Any:
    """A run's trained network, its averaged weights, frozen and ready for use.

    Raises:
        UserError: no run, no checkpoint, a broken one, or one of another network.
    """
    run = Path(run)
    config = load_config(run)
    settings = OmegaConf.select(config, "model.network")
    package = f"tilewright.{config.stage}"
    network = safe_build.build(settings, package, f"model.network in {run}")
    fill(network, run)
    return network.to(device).eval().requires_grad_(False)


def image_size(run: Path) -> int:
    """Side of the pictures that a run's network draws or reads."""
    config = load_config(run / DVAE if load_config(run).stage == "prior" else run)
    return config.model.network.image_size


def load_data(settings: DictConfig) -> Any:
    """The pictures and captions of a run's data: no training, so neither tokens nor tokenizers.

    Args:
        settings: its configuration's `data`.

    Raises:
        UserError: they are not harmless.
    """
    none = {"tokenizer": None, "image_tokenizer": None, "train_transform": None}
    plain = {**OmegaConf.to_container(settings, resolve=True), **none}  # type: ignore[dict-item]
    return safe_build.build(plain, "tilewright.data", "the run's data")


def fill(network: Any, run: Path) -> None:
    """Gives a network the weights of a run.

    Raises:
        UserError: there are none, their file is broken, or they are another network's.
    """
    try:
        network.load_state_dict(load_weights(run))
    except RuntimeError as error:
        _, _, reasons = str(error).partition("\n")  # the first line names the class alone
        raise UserError(
            f"what {run} holds does not fit the network of its configuration: "
            f"{textwrap.shorten(reasons, 200)}"
        ) from error


def load_weights(run: Path) -> dict[str, Any]:
    """A run's weights for its network: `model.safetensors`, else the best checkpoint's average.

    Raises:
        UserError: there are none, or their file is broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tilewright.distributed.sharded_checkpoint import joined

    if (run / WEIGHTS).is_file():
        try:
            return load_file(run / WEIGHTS)
        except SafetensorError as error:
            raise UserError(f"{run / WEIGHTS} cannot be read: {error}") from error
    state = load_checkpoint(checkpoint(run))["state_dict"]
    prefix = "network."
    network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return joined(network)


def save_model(folder: Path, run: Path) -> None:
    """Copies what it takes to use a run's network: settings, averaged weights, tokenizer."""
    config = load_config(run)
    save_network(folder, config, load_weights(run), steps(run))
    if config.get("tokenizer"):
        shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)


def save_network(folder: Path, config: DictConfig, weights: dict[str, Any], steps: int = 0) -> None:
    """Makes a folder from which `load_network` loads: `config.json` and `model.safetensors`.

    Args:
        config: a run's; of where it was trained, and on whose files, nothing is kept.
        steps: updates after which the weights are as they are.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {
        "stage": config.stage,
        "choices": config.choices,
        "steps": steps,
        "model": {"network": config.model.network},
    }
    if config.get("tokenizer"):
        kept["tokenizer"] = config.tokenizer
    plain = OmegaConf.to_container(OmegaConf.create(kept), resolve=True)
    (folder / MODEL).write_text(json.dumps(plain, indent=2) + "\n")
    whole = {name: value.contiguous() for name, value in weights.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # the library's is for its owner alone


def keep_dvae(prior_run: Path, dvae_run: Path) -> None:
    """Copies what it takes to use a trained dVAE into a prior's run."""
    save_model(prior_run / DVAE, dvae_run)
