"""Encoding of splits to image tokens by several processes."""

import logging
import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset

from tilewright.configs import instantiate
from tilewright.data.caption_encoder import CaptionEncoder
from tilewright.data.datamodule import CaptionedImages
from tilewright.data.feature_cache import FeatureCache
from tilewright.data.row_reader import image_path
from tilewright.data.skipping import SkipReason
from tilewright.data.token_cache import TokenCache
from tilewright.errors import UserError
from tilewright.hardware import available_cpus


def encode_in_parallel(
    config: dict[str, Any],
) -> Iterator[tuple[str, TokenCache | FeatureCache, Mapping[str, int]]]:
    """Encodes splits, and yields their names, caches and unreadable images by reason.

    Each process takes the next free shard, so the others finish the work of a process that ends
    early.

    Args:
        config: resolved configuration of `conf/encode.yaml`.

    Raises:
        UserError: a split does not exist, or it streams.
    """
    processes = config["processes"]
    _limit_threads(processes)
    data = _build_data(config, config["device"])
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
            features = data.encode_captions(split)
            if features is not None:
                yield split, features, {}
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
    logging.disable(logging.WARNING)  # the first process logs for all
    _limit_threads(config["processes"])
    device = config["device"]
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
        config["data"]["image_tokenizer"]["device"] = device
    data = _build_data(config, device)
    try:
        for split in config["splits"]:
            data.encode_captions(split, quiet=True)
            data.encode(split, training=split == "train", quiet=True)
    except (UserError, KeyboardInterrupt) as error:  # the first process reports the same error
        raise SystemExit(1) from error


def _build_data(config: dict[str, Any], device: str) -> CaptionedImages:
    data = instantiate(config["data"])
    if isinstance(data.tokenizer, CaptionEncoder):
        data.tokenizer.to(device)
    return data


def _limit_threads(processes: int) -> None:
    if processes > 1:
        torch.set_num_threads(max(1, available_cpus() // processes))
