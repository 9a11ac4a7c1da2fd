"""Uploading a tuned adapter to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from randlora_core.errors import one_line


def check_login() -> None:
    """Asks the hub who is logged in, so that a missing login is known before the training.

    Raises:
        ValueError: Nobody is, or the hub does not answer.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as error:  # a missing token, a wrong one, or no network
        raise ValueError(
            f"--push_to_hub: the hub knows no login here ({one_line(error)}); accepted: after `hf auth login`, or "
            "with HF_TOKEN set"
        ) from error


def upload(folder: Path, files: Sequence[str], repository: str) -> str:
    """Uploads files of a folder to a model repository, which is made where there is none.

    Args:
        folder: The folder.
        files: Names of the files; nothing else is uploaded.
        repository: "owner/name".

    Returns:
        The repository's address.

    Raises:
        OSError: The hub does not take them; they are still in the folder.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, allow_patterns=list(files), commit_message="Fine-tuned adapter"
        )
    except Exception as error:
        raise OSError(
            f"{repository} could not be uploaded ({one_line(error)}); the adapter is in {folder}, and the same "
            "command with --resume uploads it"
        ) from error
    return str(made)
