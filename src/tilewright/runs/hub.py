"""Models by their name on the Hugging Face Hub."""

from pathlib import Path, PurePosixPath

from tilewright import weight_files
from tilewright.errors import UserError, first_line
from tilewright.runs.folders import MODEL_CONFIG, follow_latest, public_family

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
    return _download(str(model), FILES, revision)


def image_tokenizer_folder(name: str) -> Path:
    """Downloads an image tokenizer from the Hub, and returns its folder.

    For one inside a larger model, only the files that hold it are downloaded.

    Args:
        name: `someone/name`, or a subfolder such as `someone/name/vqvae`.

    Raises:
        UserError: it cannot be downloaded, or is not an image tokenizer.
    """
    owner, model, *subfolders = name.split("/")
    subfolder = "/".join(subfolders)

    def download(patterns: list[str]) -> Path:
        paths = [str(PurePosixPath(subfolder, pattern)) for pattern in patterns]
        return _download(f"{owner}/{model}", paths) / subfolder

    folder = download(["*.json"])
    family = public_family(folder)
    if family is None and (folder / MODEL_CONFIG).is_file():
        return download(FILES)
    if family is None:  # a whole pipeline, whose weights nobody reads; loading it names its parts
        return folder
    return download(["*.json", *weight_files.names_in_folder(folder, family.prefix)])


def _download(model: str, patterns: list[str], revision: str | None = None) -> Path:
    """Downloads some files of a repository, and returns the folder with them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(
            f"{model} is neither a folder nor a name on the Hub: name one, such as someone/name"
        ) from None
    except Exception as error:  # the Hub, its cache and HTTP raise errors of many classes
        raise UserError(
            f"{model} is not a folder, and cannot be downloaded from the Hub: {first_line(error)}"
        ) from None  # the traceback of HTTP is a hundred lines in a notebook
