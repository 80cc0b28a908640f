"""Models by their name on the Hugging Face Hub."""

from pathlib import Path

from tilewright.errors import UserError, first_line
from tilewright.runs.folders import follow_latest

# Files of a model. Others, such as pickles, are not downloaded.
FILES = ["*.json", "*.safetensors"]


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a model, after downloading it from the Hub if it is not local.

    Args:
        model: a folder, or `someone/name` on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: neither exists, or a folder is given with a revision.
    """
    folder = follow_latest(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"revision={revision} names a version on the Hub, and {model} is a folder: leave "
                "revision out, or rename the folder"
            )
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=FILES))
    except HFValidationError:
        raise UserError(
            f"{model} is neither a folder nor a name on the Hub: name one, such as someone/name"
        ) from None
    except Exception as error:  # the Hub, its cache and HTTP raise errors of many classes
        raise UserError(
            f"{model} is not a folder, and cannot be downloaded from the Hub: {first_line(error)}"
        ) from None  # the traceback of HTTP is a hundred lines in a notebook
