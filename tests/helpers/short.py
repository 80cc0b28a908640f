"""Documented commands in a size that takes seconds: few images, few updates, small networks."""

from pathlib import Path

from helpers.command import command

TRAINING = {
    "compile": "false",
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.limit_val_batches": 1,
    "trainer.accumulate_grad_batches": 1,
    "data.batch_size": 4,
    "data.num_workers": 0,
}
SHAPES = {"data.source.train": 24, "data.source.validation": 8, "data.source.zeroshot": 8}
NETWORKS = {
    "dvae": {"model.network.n_hid": 8, "model.network.n_init": 8},
    "prior": {
        "model.network.dim": 32,
        "model.network.depth": 2,
        "model.network.heads": 2,
        "tokenizer.vocab_size": 300,
    },
    "ranker": {
        "model.network.dim": 16,
        "model.network.heads": 2,
        "model.network.embedding": 8,
        "tokenizer.vocab_size": 300,
    },
}
CALLBACKS = {
    "dvae": {},
    "prior": {"callbacks.samples.count": 2, "callbacks.samples.candidates": 1},
    "ranker": {},
}
# The feature network of this callback takes seconds. metric=fid covers it.
REMOVED = {"dvae": ["~callbacks.frechet"], "prior": ["~callbacks.frechet"], "ranker": []}
# Compilation takes a minute. tests/prior/test_compiled_step.py covers it.
COMMANDS = {
    "eval": {"images": 6, "device": "cpu"},
    "generate": {"device": "cpu", "compile": "false"},
    "encode": {"processes": 1, "device": "cpu", **SHAPES},
    "export": {"captions": 2, "n": 1},
    "demo": {"device": "cpu"},
}
# Models of the documentation whose networks have other keys.
OTHER_KEYS = {"dvae_patches", "dvae_vqgan"}
# Stages of recipes whose names do not begin with one.
STAGES = {"finetune": "prior", "shapes_hour": "prior", "saturation": "dvae"}


def settings_of(arguments):
    """Returns the settings of a command line by their keys."""
    return dict(text.partition("=")[::2] for text in arguments if "=" in text)


def short_settings(name, arguments):
    """Returns the settings that make a command short, and the overrides that remove keys."""
    own = settings_of(arguments)
    short, removed = _short_training(own) if name == "train" else (COMMANDS.get(name, {}), [])
    if name == "eval" and "compile" in own:
        short = {**short, "compile": "false"}
    if name == "export" and "/dvae/" in own.get("run", ""):
        short = {}  # only a prior's card has samples
    if own.get("data", "shapes") != "shapes" or own.get("experiment", "").endswith("_emoji"):
        short = {key: value for key, value in short.items() if key not in SHAPES}
    return short, removed


def _short_training(own):
    recipe = own.get("experiment", "")
    stage = own.get("stage") or STAGES.get(recipe) or recipe.partition("_")[0]
    keeps_network = "init" in own or own.get("model") in OTHER_KEYS
    network = {} if keeps_network else dict(NETWORKS[stage])
    if own.get("tokenizer") == "pretrained" or "caption" in own:
        network.pop("tokenizer.vocab_size", None)
    short = {"trainer": "cpu", **TRAINING, **CALLBACKS[stage], **network, **SHAPES}
    if "resume" in own:
        short["trainer.max_steps"] = 4
    if "sweep" in own:
        short["hydra.sweeper.n_trials"] = 2
    if recipe == "dvae_paper":
        short["data.image_size"] = 32
    return short, [text for text in REMOVED[stage] if text.removeprefix("~") not in own]


def run(words):
    """Runs `python src/NAME.py ...`, shortened, in this process and in the current folder.

    Returns None if the command succeeds, else its error message or exit status.
    """
    python, script, *arguments = words
    assert Path(python).name == "python"
    name = Path(script).stem
    short, removed = short_settings(name, arguments)
    kept = [text for text in arguments if text.partition("=")[0] not in short]
    added = [*(f"{key}={value}" for key, value in short.items()), *removed]
    # Overrides must not stand between the flags.
    is_setting = [not text.startswith("-") and "=" in text for text in kept]
    start = is_setting.index(True) if True in is_setting else 0
    return command(name, kept[:start] + added + kept[start:])
