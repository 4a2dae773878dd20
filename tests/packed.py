"""Trained models as files, as an export makes them."""

from pathlib import Path
from typing import Any

from tasks.catalog import Spec
from tasks.parts.packages import Packed, about_of, pack
from tasks.trained import Trained, save_weights


def files_of(spec: Spec, trained: Trained, folder: Path, **changed: Any) -> Packed:
    """The files of a model, with what is told of it `changed`."""
    about = about_of("rows@1", spec, {"validation": {"accuracy": 0.5}}, 60, 3)
    codec, weights = folder / "codec", folder / "weights"
    codec.write_text(trained.codec.model_dump_json())
    save_weights(trained.learner.state_dict(), weights)
    return Packed(about.model_copy(update=changed), codec, weights)


def packed(spec: Spec, trained: Trained, folder: Path) -> Path:
    """A model in one file."""
    path = folder / "model.zip"
    pack(files_of(spec, trained, folder), path)
    return path
