"""Encoding of splits to image tokens by several processes."""

import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset

from tilewright.configs import instantiate
from tilewright.data.row_reader import image_path
from tilewright.data.skipping import SkipReason
from tilewright.data.token_cache import TokenCache
from tilewright.errors import UserError
from tilewright.hardware import available_cpus


def encode_in_parallel(
    config: dict[str, Any],
) -> Iterator[tuple[str, TokenCache, Mapping[str, int]]]:
    """Encodes splits, and yields their names, token caches and unreadable images by reason.

    Each process takes the next free shard, so the others finish the work of a process that ends
    early.

    Args:
        config: resolved configuration of `conf/encode.yaml`.

    Raises:
        UserError: a split does not exist, or it streams.
    """
    processes = config["processes"]
    _limit_threads(processes)
    data = instantiate(config["data"])
    for split in config["splits"]:
        data.table(split)  # also fills the cache of `datasets` before the other processes start
    helpers = [
        multiprocessing.get_context("spawn").Process(target=_encode_quietly, args=(config, rank))
        for rank in range(1, processes)
    ]
    for helper in helpers:
        helper.start()
    try:
        for split in config["splits"]:
            for cache in data.encode(split, training=split == "train"):
                yield split, cache, _count_unreadable(cache, data.table(split))
    except BaseException:
        for helper in helpers:
            helper.kill()
        raise
    finally:
        for helper in helpers:
            helper.join()


def _count_unreadable(cache: TokenCache, table: Dataset) -> Mapping[str, int]:
    """Returns the numbers of unreadable images by reason, with an example of each."""
    counts: dict[str, int] = {}
    for reason, rows in cache.unreadable().items():
        path = image_path(table[rows[0]]["image"])
        counts[SkipReason(reason, path)] = len(rows)
    return counts


def _encode_quietly(config: dict[str, Any], rank: int) -> None:
    _limit_threads(config["processes"])
    if config["device"] == "cuda":
        config["data"]["image_tokenizer"]["device"] = f"cuda:{rank % torch.cuda.device_count()}"
    data = instantiate(config["data"])
    try:
        for split in config["splits"]:
            data.encode(split, training=split == "train", quiet=True)
    except (UserError, KeyboardInterrupt) as error:  # the first process reports the same error
        raise SystemExit(1) from error


def _limit_threads(processes: int) -> None:
    if processes > 1:
        torch.set_num_threads(max(1, available_cpus() // processes))
