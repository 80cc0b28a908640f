"""Hydra commands. Each module holds one command's `main`; `src/*.py` and `tilewright` call them."""
