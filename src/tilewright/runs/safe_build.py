"""Builds saved settings, which a stranger may have written, without running a stranger's code.

Hydra's `instantiate` calls whatever a `_target_` names, even `os.system`. Loading a stranger's run
or model with it would run the stranger's code. Here, a `_target_` must be a class that one package
of this project defines. The constructors of these classes run no code that the settings contain.
The data classes do read the folders and datasets that their settings name.

`TILEWRIGHT_TRUST=mypackage` also allows the classes of a user's own package.
"""

import importlib
import inspect
import os
from typing import Any

from omegaconf import OmegaConf

from tilewright.configs import instantiate, is_interpolation, map_text, unescape
from tilewright.errors import UserError, missing_module

TRUST = "TILEWRIGHT_TRUST"  # packages, separated by commas


def build(settings: Any, package: str, where: str) -> Any:
    """Builds an object as Hydra's `instantiate` does, if `check` accepts its settings.

    Args:
        settings: a mapping with a `_target_`, and possibly nested ones.
        package: the package that must define every class, such as `tilewright.prior`.
        where: name of the settings, for messages.

    Raises:
        UserError: `check` rejects the settings, or the class does.
    """
    from hydra.errors import HydraException

    plain = check(settings, package, where)
    try:
        return instantiate(plain)
    except HydraException as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise UserError(f"{where}: {' '.join(str(reason).split())}") from error


def check(settings: Any, package: str, where: str) -> dict[str, Any]:
    """Returns the settings as plain values, if they only name classes of a package.

    Raises:
        UserError: a target is missing or not allowed, its class does not accept a key, or a value
            is an interpolation.
    """
    plain: Any = OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"{where} has no _target_: name the class to build")
    _check_value(plain, package, where)
    return map_text(unescape, plain)


def _check_value(value: Any, package: str, where: str) -> None:
    if isinstance(value, str) and is_interpolation(value):
        raise UserError(f"{where} is {value!r}: saved settings must be plain values")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, package, f"{where}.{index}")
    if not isinstance(value, dict):
        return
    if "_target_" in value:
        _check_keys(value, _find_class(value["_target_"], package, where), where)
    for key, item in value.items():
        _check_value(item, package, f"{where}.{key}")


def _check_keys(settings: dict[str, Any], kind: type, where: str) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = {"_target_", "_convert_", *(parameter.name for parameter in parameters)}
    unknown = settings.keys() - known
    if unknown:
        raise UserError(
            f"{where} has {min(unknown)}, which is not an argument of {kind.__name__}: remove it"
        )


def _find_class(target: Any, package: str, where: str) -> type:
    """Returns the class that a target names, if an allowed package defines it.

    Nothing outside the allowed packages is imported.
    """
    allowed = [package, *filter(None, os.environ.get(TRUST, "").split(","))]

    def is_allowed(module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in allowed)

    module, _, name = str(target).rpartition(".")
    kind = None
    if is_allowed(module):
        try:
            kind = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name and not is_allowed(error.name):
                raise UserError(missing_module(where, error.name)) from error
    if not isinstance(kind, type) or not is_allowed(kind.__module__):
        raise UserError(
            f"{where} has _target_={target!r}, which is not a class of {package} and could run any "
            f"code: set {TRUST}={module or target} if you trust it"
        )
    return kind
