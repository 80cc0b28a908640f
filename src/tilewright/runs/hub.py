"""Models by their name on the Hugging Face Hub."""

from pathlib import Path

from tilewright.errors import UserError

# All that a model is made of; whatever else lies beside it, pickles say, is not so much as fetched.
FILES = ["*.json", "*.safetensors"]


def folder_of(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: itself, or a copy of the one that the Hub has by that name.

    Args:
        model: a folder, or `someone/name`.
        revision: of the Hub's: a branch, a tag or a commit.

    Raises:
        UserError: there is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=FILES))
    except Exception as error:  # of the Hub, of its cache and of HTTP, many classes
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"there is no folder {model}, and no model of that name can be had from the Hub: "
            f"{reason}"
        ) from None  # in a notebook, HTTP's own account is a hundred lines
