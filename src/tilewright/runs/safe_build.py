"""What may be built of a saved configuration, which a stranger may have written.

Hydra's `instantiate` calls whatever a `_target_` names, `os.system` as well, so that to load a run
or a shared model from elsewhere would be to run its code. Here a target has to be a class that is
defined in the one package of this project whose things are wanted: their constructors keep what
they are given, and do no more.

A user's own networks and data sources outside this project are let in by the name of their
package: `TILEWRIGHT_TRUST=mypackage`.
"""

import importlib
import inspect
import os
from typing import Any

from omegaconf import OmegaConf

from tilewright.errors import UserError

TRUST = "TILEWRIGHT_TRUST"  # packages, separated by commas


def build(settings: Any, package: str, where: str) -> Any:
    """An object from its settings, as Hydra's `instantiate` makes it, if they are harmless.

    Args:
        settings: a mapping with a `_target_`, and with others inside.
        package: where every class has to be defined, such as `tilewright.prior`.
        where: what the settings are, for messages.

    Raises:
        UserError: `check` refuses them, or the class does.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    plain = check(settings, package, where)
    try:
        return instantiate(plain)
    except HydraException as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise UserError(f"{where}: {' '.join(str(reason).split())}") from error


def check(settings: Any, package: str, where: str) -> dict[str, Any]:
    """The settings as plain values, if nothing but classes of a package can come of them.

    Raises:
        UserError: a target is none, a key is unknown to its class, or a value is no plain one.
    """
    plain: Any = OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"{where} has no _target_, the class that it is to be")
    _check(plain, package, where)
    return plain


def _check(value: Any, package: str, where: str) -> None:
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{where} is {value!r}: a saved setting is a plain value")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, package, f"{where}.{number}")
    if not isinstance(value, dict):
        return
    if "_target_" in value:
        kind = _class(value["_target_"], package, where)
        parameters = inspect.signature(kind).parameters.values()
        known = {"_target_", "_convert_", *(parameter.name for parameter in parameters)}
        unknown = value.keys() - known
        if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            raise UserError(f"{where} has {min(unknown)}, which {kind.__name__} does not know")
    for key, item in value.items():
        _check(item, package, f"{where}.{key}")


def _class(target: Any, package: str, where: str) -> type:
    """The class of this name, if it is defined in the package, or in one that the user trusts."""
    trusted = [package, *filter(None, os.environ.get(TRUST, "").split(","))]

    def is_within(name: str) -> bool:
        return any(name == home or name.startswith(f"{home}.") for home in trusted)

    module, _, name = str(target).rpartition(".")
    found = None
    if is_within(module):  # nothing else is so much as imported
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name and not is_within(error.name):
                raise UserError(
                    f"{where} needs a package that is not installed: pip install {error.name}"
                ) from error
    if not isinstance(found, type) or not is_within(found.__module__):
        raise UserError(
            f"{where} is to be {target!r}, which is no class of {package} and is not built: a "
            f"stranger's could run any code. If it is your own, {TRUST}={module or target} lets it "
            "in"
        )
    return found
