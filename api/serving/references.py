"""What a model's name stands for."""

from sqlalchemy.orm import Session

from store import jobs, models
from store.errors import Conflict, NotFound
from store.models import Resolved


def find(session: Session, project_id: str, ref: str) -> Resolved:
    """The checkpoint behind a ref. Raises NotFound, and Conflict for a job that has none."""
    try:
        return models.resolve(session, project_id, ref)
    except NotFound:
        if not ref.startswith("job_") or "@" in ref:
            raise
        job = jobs.get(session, project_id, ref)
        raise Conflict(
            f"Job {ref} has no checkpoint to predict with; it is {jobs.shown_status(job)}."
            if job.kind == "train"
            else f"Job {ref} is no training, so it makes no model."
        ) from None
