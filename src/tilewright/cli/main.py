"""The installed command: `tilewright train stage=dvae` runs the same code as `src/train.py`."""

import importlib
import sys
from importlib.metadata import version

from tilewright import program

COMMANDS = {
    "train": "train one stage: the dVAE, the prior or the ranker",
    "eval": "measure trained runs",
    "generate": "generate images for captions",
    "encode": "encode a dataset to image tokens, ahead of training a prior",
    "export": "turn a run into a model to share",
    "convert": "convert a checkpoint that another project published",
    "demo": "serve a page that generates images in the browser",
    "runs": "list trained runs, or compare some",
}


def main() -> None:
    """Runs the command that the first argument names, with the arguments after it."""
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help", "help"}:
        print(usage())
        return
    command = sys.argv[1]
    if command == "--version":
        print(f"{program.NAME} {version(program.NAME)}")
        return
    if command not in COMMANDS:
        sys.exit(f"error: {command} is not a command: use one of {', '.join(COMMANDS)}")
    # Hydra reads every argument as a setting. `program` reads the name.
    sys.argv[:2] = [sys.argv[0] if program.is_installed_command() else program.NAME]
    importlib.import_module(f"tilewright.cli.{command}").main()


def usage() -> str:
    """Returns the help text: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program.NAME} COMMAND [key=value ...]",
            "",
            *lines,
            "",
            f"`{program.NAME} COMMAND --help` shows examples and settings of a command.",
        ]
    )
