"""The TensorBoard page of a run: its settings beside its best figure, and charts to begin with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from torch.utils.tensorboard import SummaryWriter

from tilewright import runs

ONCE = ".once"  # ends the name of the file of what is said once


class Board(pl.Callback):
    """Makes a run readable on TensorBoard, where that is among the loggers.

    The page HPARAMS has a row for it, with `best/<monitor>` among the figures. No list of what is
    to be shown goes with it, as `SummaryWriter.add_hparams` writes one: TensorBoard would take the
    list of one run for those of all.

    What is said once lies in a file of its own, which a resumed run replaces: of what is said twice
    TensorBoard shows the first.

    Args:
        run: its folder, which has its configuration.
        settings: keys that tell runs apart; those of the command line are shown as well.
        charts: for the page CUSTOM SCALARS, tags by the title of the chart that has them all.
    """

    def __init__(self, run: str, settings: Sequence[str], charts: Mapping[str, Sequence[str]]):
        self.run = Path(run)
        self.settings = settings
        self.charts = charts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        config = runs.load_config(self.run)
        charts = {title: ["Multiline", list(tags)] for title, tags in self.charts.items()}
        # `latest` leads to the same run, and with the same name it has the same row.
        begun = SessionStartInfo(group_name=f"{config.stage}/{self.run.name}")
        for name, value in settings(config, self.settings).items():
            kind = "bool" if isinstance(value, bool) else "number"
            kind = kind if isinstance(value, int | float) else "string"
            setattr(begun.hparams[name], f"{kind}_value", value)
        for logger in loggers(trainer):
            for file in Path(logger.log_dir).glob(f"*{ONCE}"):
                file.unlink()
            with SummaryWriter(logger.log_dir, filename_suffix=ONCE) as writer:
                writer.add_custom_scalars({config.stage: charts})
                _write(writer, metadata.SESSION_START_INFO_TAG, session_start_info=begun)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        if trainer.sanity_checking or not isinstance(checkpoint, ModelCheckpoint):
            return
        if checkpoint.monitor is None:  # there is none of the best
            return
        # The checkpoint comes after this callback: its best is that of the validations before.
        reached = [trainer.callback_metrics[checkpoint.monitor], checkpoint.best_model_score]
        figures = [float(one) for one in reached if one is not None and math.isfinite(one)]
        best = (max if checkpoint.mode == "max" else min)(figures, default=None)
        if best is not None:
            step = trainer.global_step - 1  # figures have the number of the update, from 0
            for logger in loggers(trainer):
                logger.experiment.add_scalar(f"best/{checkpoint.monitor}", best, step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ended = SessionEndInfo(status=api_pb2.Status.STATUS_SUCCESS)
        for logger in loggers(trainer):
            _write(logger.experiment, metadata.SESSION_END_INFO_TAG, session_end_info=ended)


def settings(config: DictConfig, keys: Sequence[str]) -> dict[str, bool | float | str]:
    """The values of these keys of a run's configuration, and of those on its command line.

    An option of a group goes by the group's name; nothing is said of where the run lies.
    """
    given = [runs.override_key(text) for text in config.get("overrides", [])]
    found: dict[str, bool | float | str] = {}
    for key in dict.fromkeys([*keys, *given]):
        option = OmegaConf.select(config, f"choices.{key}")
        value = OmegaConf.select(config, key) if option is None else option
        if not key.startswith("paths."):
            found[key] = value if isinstance(value, bool | int | float) else str(value)
    return found


def loggers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """What writes a run's events, on the first process alone."""
    found = [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
    return found if trainer.is_global_zero else []


def _write(writer: SummaryWriter, tag: str, **content: Any) -> None:
    """Writes a session's information as the plugin HPARAMS reads it."""
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    writer._get_file_writer().add_summary(Summary(value=[value]))
