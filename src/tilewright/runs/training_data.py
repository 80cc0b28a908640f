"""Identity of the data that runs are trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Beginnings of the names of settings that do not determine which images a source has.
IGNORED = ("root", "caption", "encoding")


@dataclass(frozen=True)
class TrainingData:
    """Dataset of a run, to find others of the same data.

    Args:
        name: option of the group `data`.
        source: settings of the source. None if they are unknown, as for a model.
    """

    name: str | None
    source: Mapping[str, Any] | None = None

    @classmethod
    def from_run(cls, config: DictConfig) -> "TrainingData":
        """Returns the data of a saved configuration, without resolving interpolations."""
        source: Any = config.get("data") and config.data.get("source")
        plain: Any = OmegaConf.to_container(source) if isinstance(source, DictConfig) else None
        return cls(OmegaConf.select(config, "choices.data"), plain)

    @classmethod
    def from_settings(cls, name: str | None, data: DictConfig | None) -> "TrainingData":
        """Returns the data of this command line's settings, with interpolations resolved."""
        source: Any = OmegaConf.to_container(data.source, resolve=True) if data else None
        return cls(name, source)

    def difference(self, other: "TrainingData") -> str | None:
        """Returns a setting of `other` that differs, or None if the data are the same.

        Only settings that are text or a list decide, such as paths and names. Numbers of rows,
        fractions, seeds and flags do not, nor do settings that only one of the two has.
        """
        if self.source is None or other.source is None:
            return None if self.name == other.name else f"data={other.name}"
        for key, value in other.source.items():
            own = self.source.get(key, "???")
            if key.startswith(IGNORED) or "???" in (own, value):
                continue
            decides = isinstance(own, str | list) or isinstance(value, str | list)
            if decides and _resolve_path(own) != _resolve_path(value):
                return f"data={other.name}" if key == "_target_" else f"data.source.{key}={value}"
        return None


def _resolve_path(value: Any) -> Any:
    """Resolves a value that is an existing path, so that two spellings of it are equal."""
    if isinstance(value, str) and Path(value).expanduser().exists():
        return Path(value).expanduser().resolve()
    return value
