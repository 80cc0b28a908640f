"""A data set encoded to image tokens by several processes."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from hydra.utils import instantiate

from tilewright.data.token_cache import Codes
from tilewright.errors import UserError
from tilewright.hardware import available_cpus


def encode(config: dict[str, Any]) -> Iterator[tuple[str, Codes]]:
    """Encodes the splits that a configuration names; it is that of `conf/encode.yaml`, resolved.

    The processes take the next shard each, so one that ends early leaves nothing undone.

    Raises:
        UserError: there is no such split, or it streams.
    """
    count = config["processes"]
    _limit_threads(count)
    data = instantiate(config["data"])
    for split in config["splits"]:
        data.check_table(split)  # and what datasets keeps on disk is there for all processes
    others = [
        multiprocessing.get_context("spawn").Process(target=_help, args=(config, number))
        for number in range(1, count)
    ]
    for other in others:
        other.start()
    try:
        for split in config["splits"]:
            for codes in data.encode(split, training=split == "train"):
                yield split, codes
    except BaseException:
        for other in others:
            other.kill()
        raise
    finally:
        for other in others:
            other.join()


def _help(config: dict[str, Any], number: int) -> None:
    _limit_threads(config["processes"])
    if config["device"] == "cuda":
        config["data"]["image_tokenizer"]["device"] = f"cuda:{number % torch.cuda.device_count()}"
    data = instantiate(config["data"])
    try:
        for split in config["splits"]:
            data.encode(split, training=split == "train", quiet=True)
    except (UserError, KeyboardInterrupt) as error:  # the first process meets it too, and tells
        raise SystemExit(1) from error


def _limit_threads(processes: int) -> None:
    if processes > 1:
        torch.set_num_threads(max(1, available_cpus() // processes))
