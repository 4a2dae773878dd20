"""Checkpoints that others published: what a folder in the layout of the Hugging Face Hub holds, and how it is had."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

LIGHT = ("*.json", "*.txt", "*.model", "*.spm")
"""Files that say what a network is and how it reads; small beside its weights."""
WEIGHTS = ("*.safetensors",)
_UPLOADED = "pre_"


def is_light(name: str) -> bool:
    """Whether a file says what a network is or how it reads."""
    return any(fnmatch(name, pattern) for pattern in LIGHT)


def is_weights(name: str) -> bool:
    """Whether a file holds weights, in the only format that is read."""
    return any(fnmatch(name, pattern) for pattern in WEIGHTS)


class Unusable(ValueError):
    """Why a published checkpoint cannot be had, or is of no use; in words for who asked for it."""


@dataclass(frozen=True)
class Published:
    """A checkpoint in a folder, and the commit it is of, if that is known."""

    folder: Path
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """What it says of its network. Raises Unusable."""
        return self.read("config.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of it. Raises Unusable when there is none, or no object in it."""
        try:
            found = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise Unusable(f"it has no {name}") from None
        except ValueError as error:
            raise Unusable(f"its {name} is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise Unusable(f"its {name} is no JSON object")
        return found

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


def is_uploaded(checkpoint: str) -> bool:
    """Whether a checkpoint's name is the id of one that was uploaded, and none of the Hub's."""
    return checkpoint.startswith(_UPLOADED) and "/" not in checkpoint


def from_hub(checkpoint: str, revision: str | None, *, weights: bool) -> Published:
    """A checkpoint of the Hub, from the local cache or by the network; without weights, only what is small.

    Mirrors, tokens, offline mode and the cache's place are those of the environment (HF_ENDPOINT, HF_TOKEN,
    HF_HUB_OFFLINE, HF_HOME). Raises Unusable.
    """
    # Loading them takes half a second, which those who use no hub need not spend.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted: Sequence[str] = (*LIGHT, *WEIGHTS) if weights else LIGHT
    at = f" at revision {revision}" if revision else ""
    try:
        folder = Path(snapshot_download(checkpoint, revision=revision, allow_patterns=list(wanted)))
    except GatedRepoError:
        raise Unusable("its owner lets only some have it: HF_TOKEN must be one of theirs") from None
    except RepositoryNotFoundError:
        raise Unusable("the hub has no such checkpoint, or none for this HF_TOKEN") from None
    except RevisionNotFoundError:
        raise Unusable(f"the hub has no such checkpoint{at}") from None
    except HFValidationError as error:
        raise Unusable(f"is no name of a checkpoint: {error}") from None
    except LocalEntryNotFoundError:
        raise Unusable(
            f"the hub cannot be reached, and the local cache has no such checkpoint{at}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise Unusable(f"the hub cannot be reached: {error}") from None
    if weights and not any(folder.glob("*.safetensors")):
        raise Unusable("it has no weights as safetensors; other formats are not read")
    return Published(folder, folder.name)
