"""Other implementations, imported if they are installed.

The dVAE's modules that the paper's authors released:

    pip install DALL-E==0.1

DALLE-pytorch, whose own requirements no longer install. Its dVAE and its transformer need only
these (and torch, numpy, requests, pyyaml, tqdm, packaging, omegaconf, which are here already):

    pip install --no-deps dalle-pytorch==1.6.6 einops axial-positional-embedding \
        rotary-embedding-torch

Two widely used transformers:

    pip install transformers
    pip install x-transformers

To keep a peer out of the environment, add `--target FOLDER` and run with PYTHONPATH=FOLDER.
"""

import importlib
import os
import sys
import warnings
from types import ModuleType

INSTALL = {
    "dall_e": "pip install DALL-E==0.1",
    "dalle_pytorch": "pip install --no-deps dalle-pytorch==1.6.6 einops "
    "axial-positional-embedding rotary-embedding-torch",
    "transformers": "pip install transformers",
    "x_transformers": "pip install x-transformers",
}

# Modules that DALLE-pytorch imports but uses only for VQGANs, with the names that it imports.
STAND_INS = {
    "taming": (),
    "taming.models": (),
    "taming.models.vqgan": ("VQModel", "GumbelVQ"),
    "pkg_resources": ("get_distribution",),
    "youtokentome": (),
}


def load(name: str) -> ModuleType | None:
    """Returns a peer's module. If it is not installed, prints how to install it, returns None."""
    if name == "dalle_pytorch":
        _add_stand_ins()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(name)
    except ImportError as error:
        print(f"Skipping {name} ({error}). To compare with it: {INSTALL[name]}")
        return None


def _add_stand_ins() -> None:
    """Replaces missing modules by empty ones."""
    for name, attributes in STAND_INS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            module = ModuleType(name)
            for attribute in attributes:
                setattr(module, attribute, None)
            sys.modules[name] = module
