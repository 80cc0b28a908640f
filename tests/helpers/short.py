"""A documented command in a size that takes seconds: few pictures, few updates, small networks."""

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
WATCHING = {
    "dvae": {},
    "prior": {"callbacks.samples.count": 2, "callbacks.samples.candidates": 1},
    "ranker": {},
}
# Its features take seconds; metric=fid has the same.
LEFT_OUT = {"dvae": ["~callbacks.frechet"], "prior": ["~callbacks.frechet"], "ranker": []}
OTHERS = {
    "eval": {"images": 6, "device": "cpu"},
    "generate": {"device": "cpu"},
    "encode": {"processes": 1, "device": "cpu", **SHAPES},
    "export": {"captions": 2, "n": 1},
    "demo": {"device": "cpu"},
}
OF_OTHER_KEYS = {"dvae_patches"}  # models whose sizes go by other names
STAGES = {"finetune": "prior", "shapes_hour": "prior"}  # of experiments whose names do not tell


def given(words):
    """Settings by their keys."""
    return dict(word.partition("=")[::2] for word in words if "=" in word)


def settings(name, words):
    """What makes a command with these words short."""
    asked = given(words)
    if name != "train":
        short, more = OTHERS.get(name, {}), []
    else:
        recipe = asked.get("experiment", "")
        stage = asked.get("stage") or STAGES.get(recipe) or recipe.partition("_")[0]
        keeps = "init" in asked or asked.get("model") in OF_OTHER_KEYS
        network = {} if keeps else NETWORKS[stage]
        short = {"trainer": "cpu", **TRAINING, **WATCHING[stage], **network, **SHAPES}
        if "resume" in asked:
            short["trainer.max_steps"] = 4
        if "sweep" in asked:
            short["hydra.sweeper.n_trials"] = 2
        if recipe == "dvae_paper":
            short["data.image_size"] = 32
        more = LEFT_OUT[stage]
    if asked.get("data", "shapes") != "shapes" or asked.get("experiment", "").endswith("_emoji"):
        short = {key: value for key, value in short.items() if key not in SHAPES}
    return short, more


def run(words):
    """Runs `python src/NAME.py …`, shortened, in this process and in the folder that this is.

    Returns the line with which it ends, None if it ends well.
    """
    python, script, *words = words
    assert Path(python).name == "python"
    name = Path(script).stem
    short, more = settings(name, words)
    kept = [word for word in words if word.partition("=")[0] not in short]
    place = next((i for i, word in enumerate(kept) if not word.startswith("-") and "=" in word), 0)
    added = [*(f"{key}={value}" for key, value in short.items()), *more]
    return command(name, kept[:place] + added + kept[place:])  # flags are not to come between
