"""What becomes of a trained organism besides: merged into its base, uploaded to the hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emorg import models
from emorg.progress import log
from emorg.records import EmorgError
from emorg.run import Run


def merge(run: Run) -> Path:
    """Write the run's base with the adapter merged into it to <run>/merged, a plain model with its tokenizer."""
    merged = run.folder / "merged"
    if not merged.exists():
        loaded = models.load(str(run.folder), device="cpu")
        written = run.folder / "merged.new"
        shutil.rmtree(written, ignore_errors=True)
        loaded.model.merge_and_unload().save_pretrained(written)
        loaded.tokenizer.save_pretrained(written)
        os.replace(written, merged)
    return merged


def upload(run: Run, repository: str) -> None:
    """Upload the run's adapter, or whole model, to a repository of the Hugging Face hub, made private if it is new.

    Raises EmorgError if the hub refuses or cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    folder = run.adapter if run.adapter.exists() else run.model
    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        where = hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="Upload an organism")
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        httpx2.HTTPError,
    ) as error:
        raise EmorgError(
            f"{repository} was not uploaded: {str(error).splitlines()[0]}",
            "set HF_TOKEN to a token that may write there; the same command again uploads without training again",
        ) from None
    log.info("uploaded to %s", where)
