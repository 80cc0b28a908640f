"""Identity of the data that runs are trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Settings of a source that do not say which images it has.
IGNORED = ("root", "caption")


@dataclass(frozen=True)
class TrainingData:
    """Dataset of a run, to find others of the same data.

    Args:
        name: option of the group `data`.
        source: settings of the source. None if unknown, as those of a model.
    """

    name: str | None
    source: Mapping[str, Any] | None = None

    @classmethod
    def of_run(cls, config: DictConfig) -> "TrainingData":
        """Returns the data of a saved configuration. Nothing in it is interpolated."""
        source: Any = config.get("data") and config.data.get("source")
        plain: Any = OmegaConf.to_container(source) if isinstance(source, DictConfig) else None
        return cls(OmegaConf.select(config, "choices.data"), plain)

    @classmethod
    def of_settings(cls, name: str | None, data: DictConfig | None) -> "TrainingData":
        """Returns the data of this command line's settings, whose interpolations are resolved."""
        source: Any = OmegaConf.to_container(data.source, resolve=True) if data else None
        return cls(name, source)

    def difference(self, other: "TrainingData") -> str | None:
        """Returns a setting of `other` in which it differs from this data, None without any.

        Only settings that are text or a list decide, such as paths and names. Numbers of rows,
        fractions, seeds and switches do not, nor settings that only one of them has.
        """
        if self.source is None or other.source is None:
            return None if self.name == other.name else f"data={other.name}"
        for key, value in other.source.items():
            mine = self.source.get(key, "???")
            if key.startswith(IGNORED) or "???" in (mine, value):
                continue
            decides = isinstance(mine, str | list) or isinstance(value, str | list)
            if decides and _comparable(mine) != _comparable(value):
                return f"data={other.name}" if key == "_target_" else f"data.source.{key}={value}"
        return None


def _comparable(value: Any) -> Any:
    """Returns a value of which equal paths are equal."""
    if isinstance(value, str) and Path(value).expanduser().exists():
        return Path(value).expanduser().resolve()
    return value
