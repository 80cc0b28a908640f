"""The implementations that this project is compared with, imported where they are installed.

The dVAE's modules as the paper's authors released them:

    pip install DALL-E==0.1

DALLE-pytorch, whose own requirements no longer install. Its dVAE and its transformer need these
alone (and torch, numpy, requests, pyyaml, tqdm, packaging, omegaconf, which are here already):

    pip install --no-deps dalle-pytorch==1.6.6 einops axial-positional-embedding \
        rotary-embedding-torch

Two transformers that are in general use, to sample from and to train:

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

# What DALLE-pytorch imports at once and uses only for VQGANs, names by module.
STAND_INS = {
    "taming": (),
    "taming.models": (),
    "taming.models.vqgan": ("VQModel", "GumbelVQ"),
    "pkg_resources": ("get_distribution",),
    "youtokentome": (),
}


def load(name: str) -> ModuleType | None:
    """A peer's module, or None where it is not installed, with one line that says how to."""
    if name == "dalle_pytorch":
        _stand_in()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out ({error}). To compare with it: {INSTALL[name]}")
        return None


def _stand_in() -> None:
    """Puts empty modules in the place of those that are missing."""
    for name, attributes in STAND_INS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            module = ModuleType(name)
            for attribute in attributes:
                setattr(module, attribute, None)
            sys.modules[name] = module
