"""Prompts, runs and settings that cannot be sampled from: one line, and nothing is written."""

import shutil

import pytest

from helpers.bad_inputs import (
    BEST,
    RED,
    assert_refused,
    change_checkpoint,
    change_config,
    remove_rankers,
    truncate,
    write_images,
)

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "caption in another encoding": (["prompt=\udcff"], None, ["is not valid UTF-8"]),
    "list as a device": ([RED, "device=[cpu]"], None, ["device=['cpu'] is not one"]),
    "empty run": ([RED, "run="], None, ["run= is empty"]),
    "empty folder of images": ([RED, "out="], None, ["out= is empty"]),
    "truncated checkpoint": (
        [RED],
        lambda h: truncate(h.prior / BEST),
        ["best.ckpt cannot be read"],
    ),
    "empty checkpoint": ([RED], lambda h: truncate(h.prior / BEST, 0), ["cannot be read"]),
    "checkpoint without weights": (
        [RED],
        lambda h: change_checkpoint(h, {"state_dict": {}}),
        ["do not fit the network"],
    ),
    "checkpoint that runs code": (
        [RED],
        lambda h: change_checkpoint(h, {"hook": shutil.rmtree}),
        ["cannot be read"],
    ),
    "run of another size": (
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network__dim=64),
        ["do not fit the network"],
    ),
    "truncated weights": (
        [RED],
        lambda h: truncate(h.prior / "dvae" / "model.safetensors"),
        ["model.safetensors is not a complete safetensors file"],
    ),
    "missing weights": (
        [RED],
        lambda h: (h.prior / "dvae" / "model.safetensors").unlink(),
        ["no model.safetensors"],
    ),
    "truncated tokenizer": (
        [RED],
        lambda h: truncate(h.prior / "tokenizer.json"),
        ["tokenizer.json"],
    ),
    "tokenizer of another size": (
        [RED],
        lambda h: change_config(h.prior / "config.yaml", tokenizer__vocab_size=256),
        ["tokenizer"],
    ),
    "configuration that is not YAML": (
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text("a: [b"),
        ["config.yaml cannot be read"],
    ),
    "empty configuration": (
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text(""),
        ["config.yaml is not a run's configuration"],
    ),
    "configuration that is a list": (
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text("- 1"),
        ["config.yaml is not a run's configuration"],
    ),
    "run that would run code": (
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network___target_="os.system"),
        ["os.system", "TILEWRIGHT_TRUST"],
    ),
    "dVAE of another codebook": (
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network__stream__image_vocab=9),
        ["do not fit the network"],
    ),
    "missing prompt": ([], None, ["prompt= is missing"]),
    "zero images": ([RED, "n=0"], None, ["n=0"]),
    "best of fewer than n": ([RED, "n=3", "best_of=2", "ranker=likelihood"], None, ["best"]),
    "best of without a ranker": ([RED, "best_of=9"], remove_rankers, ["stage=ranker"]),
    "missing image prompt": (
        [RED, "image_prompt=/no.png"],
        None,
        ["cannot read the image /no.png (image file is missing)"],
    ),
    "image prompt that is not an image": (
        [RED, "image_prompt={files}/0.png"],
        lambda h: write_images(h, 1, b"x"),
        ["0.png"],
    ),
    "rows without an image prompt": ([RED, "rows=3"], None, ["rows=3 needs an image"]),
    "too many rows of an image prompt": (
        [RED, "image_prompt={files}/0.png", "rows=99"],
        write_images,
        ["rows"],
    ),
    "column without a file": (
        [RED, "caption_column=a"],
        None,
        ["caption_column=a needs a file: set prompts=FILE"],
    ),
    **{
        f"{argument} without candidates": (
            [RED, argument],
            None,
            [f"{argument} ranks nothing: set best_of=N"],
        )
        for argument in ("ranker=likelihood", "ranker.run=/no")
    },
    "negative temperature": ([RED, "temperature=-1"], None, ["temperature"]),
    "run of another stage": ([RED, "run={dvae}"], None, ["stage=dvae"]),
    "output folder that is a file": ([RED, "out={files}/0.txt"], write_images, ["0.txt"]),
    "generation batch of size 0": ([RED, "batch_size=0"], None, ["batch_size=0"]),
    "word as a number of images": ([RED, "n=two"], None, ["n=two is not", "n=8"]),
    "list as a number of images": ([RED, "n=[1,2]"], None, ["n=[1, 2] is not"]),
    "several runs": ([RED, "run=a", "run=b"], None, ["run= is set more than once"]),
    "device without values": ([RED, "device=meta"], None, ["device=meta", "auto"]),
    "missing device": ([RED, "device=cuda:9"], None, ["cuda:9", "auto"]),
    "data of a command without a dataset": (
        [RED, "data.source.path=x"],
        None,
        ["data is not a key"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "generate", *CASES[case])
