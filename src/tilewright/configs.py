"""Text and objects in configurations.

OmegaConf reads `${` as an interpolation unless it is escaped.

The user's text, such as a path, may contain `${`. `escape` it before it is written to a
configuration. Reading a key then returns the original text.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

log = logging.getLogger(__name__)

NEXT_LINE = "\x85"


def escape(value: Any) -> Any:
    """Returns a plain value whose text OmegaConf reads literally, also inside dicts and lists."""
    return map_text(lambda text: re.sub(r"(\\*)\$\{", r"\1\1\\${", text), value)


def unescape(text: str) -> str:
    """Returns the text that an escaped value of a configuration stands for."""
    return OmegaConf.create([text])[0]


def is_interpolation(text: str) -> bool:
    """Returns True if a value of a configuration contains an interpolation."""
    return re.search(r"(?<!\\)(\\\\)*\$\{", text) is not None


def to_yaml(config: Any) -> str:
    """Returns the YAML of a configuration with every interpolation resolved."""
    plain = escape(OmegaConf.to_container(config, resolve=True))
    text = json.dumps(plain, indent=2, ensure_ascii=False, default=str)
    if NEXT_LINE in text:  # PyYAML would write it as a line break. JSON is YAML, too.
        return text.replace(NEXT_LINE, "\\u0085") + "\n"
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def instantiate(settings: Any, **arguments: Any) -> Any:
    """Builds an object like Hydra's `instantiate`, also from settings whose text contains `${`.

    Hydra resolves settings in place, and would then read the resolved text as an interpolation.
    """
    from hydra.utils import instantiate as build

    is_config = OmegaConf.is_config(settings)
    plain = OmegaConf.to_container(settings, resolve=True) if is_config else settings
    if escape(plain) == plain:
        return build(settings, **arguments)  # Hydra's messages then contain the full keys
    return build(_with_literals(plain), **arguments)


def switched_on(group: str, objects: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the named objects of a group, or their settings. A name that is null is left out.

    So is a name with settings alone: a recipe has settings of an object that another option, such
    as `loss=adversarial` or `filter=none`, switches off.
    """
    for name, value in objects.items():
        if isinstance(value, Mapping) and "_target_" not in value:
            log.warning("%s.%s is off, so %s has no effect: leave it out", group, name, value)
        elif value is not None:
            yield value


class _Literal(str):
    """Text in which OmegaConf finds no interpolation."""

    def __contains__(self, part: object) -> bool:
        return part != "${" and super().__contains__(part)  # type: ignore[operator]


def _with_literals(value: Any) -> Any:
    """Returns plain settings whose text Hydra does not interpret. Classes receive it as `str`."""
    if isinstance(value, list):
        return [_with_literals(item) for item in value]
    if not isinstance(value, dict):
        return _Literal(value) if isinstance(value, str) else value
    literals = {key: _with_literals(item) for key, item in value.items()}
    if value.get("_target_") is not None:
        literals |= {"_target_": f"{__name__}.{_call.__name__}", "_function_": value["_target_"]}
    return literals


def _call(*, _function_: str, **arguments: Any) -> Any:
    """Calls a `_target_` with strings in place of literals."""
    from hydra.utils import get_object

    return get_object(_function_)(**map_text(str, arguments))


def map_text(function: Callable[[str], str], value: Any) -> Any:
    """Returns a plain value with a function applied to every text inside dicts and lists."""
    if isinstance(value, dict):
        return {key: map_text(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [map_text(function, item) for item in value]
    return function(value) if isinstance(value, str) else value
