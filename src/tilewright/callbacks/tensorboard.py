"""A run's settings, best metric and charts on TensorBoard."""

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
from tilewright.callbacks.monitoring import monitored_value

OVERVIEW_SUFFIX = ".once"  # end of the name of the event file that a resumed run replaces


class TensorBoardOverview(pl.Callback):
    """Adds a row to TensorBoard's HPARAMS tab and charts to its CUSTOM SCALARS tab.

    The row holds the run's settings and `best/<monitor>`, the best value so far. It comes without a
    list of metrics (`SummaryWriter.add_hparams` writes one): TensorBoard would apply the list of
    one run to all runs.

    Settings and charts have a separate event file, which a resumed run replaces. TensorBoard would
    otherwise show only the first values.

    Args:
        run: folder of the run.
        settings: keys to show, in addition to those of the command line.
        charts: tags by the title of the chart that shows them. A title with None is left out.
    """

    def __init__(
        self, run: str, settings: Sequence[str], charts: Mapping[str, Sequence[str] | None]
    ):
        self.run = Path(run)
        self.settings = settings
        self.charts = charts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        config = runs.load_config(self.run)
        shown = {title: list(tags) for title, tags in self.charts.items() if tags is not None}
        charts = {title: ["Multiline", tags] for title, tags in shown.items()}
        session = SessionStartInfo()
        for name, value in settings(config, self.settings).items():
            kind = "bool" if isinstance(value, bool) else "number"
            kind = kind if isinstance(value, int | float) else "string"
            setattr(session.hparams[name], f"{kind}_value", value)
        for logger in tensorboard_loggers(trainer):
            for file in Path(logger.log_dir).glob(f"*{OVERVIEW_SUFFIX}"):
                file.unlink()
            with SummaryWriter(logger.log_dir, filename_suffix=OVERVIEW_SUFFIX) as writer:
                writer.add_custom_scalars({config.stage: charts})
                _write_hparams(writer, metadata.SESSION_START_INFO_TAG, session_start_info=session)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        if trainer.sanity_checking or not isinstance(checkpoint, ModelCheckpoint):
            return
        if checkpoint.monitor is None:
            return
        # Checkpoint callbacks run after this one: their best value is that of earlier validations.
        scores = [monitored_value(trainer, checkpoint.monitor), checkpoint.best_model_score]
        values = [float(score) for score in scores if score is not None and math.isfinite(score)]
        best = (max if checkpoint.mode == "max" else min)(values, default=None)
        if best is not None:
            for logger in tensorboard_loggers(trainer):
                logger.experiment.add_scalar(
                    f"best/{checkpoint.monitor}", best, trainer.global_step
                )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        session = SessionEndInfo(status=api_pb2.Status.STATUS_SUCCESS)
        for logger in tensorboard_loggers(trainer):
            _write_hparams(
                logger.experiment, metadata.SESSION_END_INFO_TAG, session_end_info=session
            )


def settings(config: DictConfig, keys: Sequence[str]) -> dict[str, bool | float | str]:
    """Returns the values of these keys and of the command line's keys, without `paths.*`.

    The value of a config group is the name of the chosen option.
    """
    overridden = [runs.override_key(text) for text in config.get("overrides", [])]
    values: dict[str, bool | float | str] = {}
    for key in dict.fromkeys([*keys, *overridden]):
        option = OmegaConf.select(config, f"choices.{key}")
        value = OmegaConf.select(config, key) if option is None else option
        if not key.startswith("paths."):
            values[key] = value if isinstance(value, bool | int | float) else str(value)
    return values


def tensorboard_loggers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """Returns the TensorBoard loggers in the first process, and none in the others."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers if trainer.is_global_zero else []


def _write_hparams(writer: SummaryWriter, tag: str, **content: Any) -> None:
    """Writes a record of TensorBoard's HPARAMS plugin."""
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    writer._get_file_writer().add_summary(Summary(value=[value]))
