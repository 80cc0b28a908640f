"""Callbacks and functions that the processes of `helpers.multiprocess` import."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from tilewright.callbacks import AveragedWeights
from tilewright.distributed.collectives import gather_objects
from tilewright.distributed.fsdp import gathered_weights, local_tensor
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling


class ShardSizes(pl.Callback):
    """Asserts that a process holds half of all weights, optimizer states and averages."""

    def on_train_end(self, trainer, module):
        (averaged,) = (c for c in trainer.callbacks if isinstance(c, AveragedWeights))
        average = averaged._average_model.module
        states = trainer.optimizers[0].state.values()
        moments = [s.get("exp_avg", s.get("momentum_buffer")) for s in states]
        for tensors in (list(module.parameters()), list(average.parameters()), moments):
            assert all(isinstance(tensor, DTensor) for tensor in tensors)
            local = sum(tensor.to_local().numel() for tensor in tensors)
            assert 0.4 < local / sum(tensor.numel() for tensor in tensors) < 0.6


class SameBuffers(pl.Callback):
    """Asserts that all processes end with the same buffers, such as a codebook."""

    def on_train_end(self, trainer, module):
        for name, buffer in module.network.named_buffers():
            for other in gather_objects(buffer):
                assert torch.equal(buffer, other), name


class ValidatedCaptions(pl.Callback):
    """Saves the captions of a process's validation rows that count."""

    def __init__(self):
        self.captions = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.captions += batch["caption"][: batch["rows"]]

    def on_validation_end(self, trainer, module):
        path = Path(trainer.default_root_dir) / f"{trainer.global_rank}.validated"
        torch.save(self.captions, path)


class NanWeights(pl.Callback):
    """Makes weights of the last process nan after an update, and may request the end there."""

    def __init__(self, update, stop=False):
        self.update, self.stop = update, stop

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step != self.update:
            return
        trainer.should_stop = trainer.should_stop or self.stop
        if trainer.global_rank == trainer.world_size - 1:
            trained = (weight for weight in module.parameters() if weight.requires_grad)
            local_tensor(next(trained).detach()).fill_(torch.nan)


class BreakShards(pl.Callback):
    """Makes the second process fail to write its shards at the third update."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            from torch.distributed.checkpoint import HuggingFaceStorageWriter

            def write_data(*args):
                raise OSError("No space left on device")

            HuggingFaceStorageWriter.write_data = write_data


class TokensOfFirstProcess(pl.Callback):
    """Saves image tokens that the first process computes alone, before and during a training."""

    def on_train_start(self, trainer, module):
        self.on_validation_epoch_end(trainer, module)

    def on_validation_epoch_end(self, trainer, module):
        with gathered_weights(trainer, module):
            if trainer.is_global_zero:
                path = Path(trainer.default_root_dir) / f"{trainer.global_step}.tokens"
                torch.save(self.tokens(trainer, module), path)

    def tokens(self, trainer, module):
        if trainer.datamodule.image_tokenizer is None:
            images, _ = zip(*trainer.datamodule.examples("validation", 4), strict=True)
            return torch.cat([module.network.encode(image[None]) for image in images])
        model, captions = TextToImage.from_trainer(trainer, module), ["picture 3"]
        tokens = model.sample_tokens(captions, 2)
        rounded = model.sample_tokens(captions, 2, sampling=Sampling(weights="bfloat16"))
        return torch.cat([tokens, rounded])


def flip_left_half(images):
    """Replaces CutMix, which mixes different images in each process."""
    half = images.shape[-1] // 2
    return torch.cat([images.flip(-1)[..., :half], images[..., half:]], dim=-1)
