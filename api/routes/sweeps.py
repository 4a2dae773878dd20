"""Sweeps: many trainings in search of the best hyperparameters."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from api.auth import Train
from api.dependencies import CurrentSettings, Reading, Writing
from api.errors import documented
from api.published import finding
from api.replies import Once
from api.schemas import After, Limit, PageOut, page_out
from api.sweep_schemas import SweepCreate, SweepOut, sweep_in_detail, sweep_out
from api.sweeping import submit_sweep
from store import sweeps

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])


class AskedSweep:
    """A request for a sweep, and what finds published checkpoints for it: looked up before there is a transaction."""

    def __init__(self, request: Request, principal: Train, body: SweepCreate) -> None:
        self.body, self.find = body, finding(request, principal, body.task)


@router.post("", status_code=202, summary="Submit a sweep", responses=documented(404, 409))
def create_sweep(
    principal: Train,
    asked: Annotated[AskedSweep, Depends()],
    session: Writing,
    settings: CurrentSettings,
    once: Once,
    response: Response,
) -> SweepOut:
    """Begins a search in `space`, all of which is checked first.

    Workers submit its trials, which are jobs like all others: they can be watched, paused and cancelled
    one by one. At the end the best one's model becomes a version of the model with the sweep's name.
    """

    def make() -> SweepOut:
        project_id, private = principal.project_id, settings.webhook_private
        sweep = submit_sweep(
            session, project_id, asked.body, find=asked.find, webhook_private=private
        )
        return sweep_in_detail(session, sweep)

    sweep = once(session, asked.body, SweepOut, make)
    response.headers["Location"] = f"/v1/sweeps/{sweep.id}"
    return sweep


@router.get("", response_model=PageOut[SweepOut], summary="List sweeps")
def list_sweeps(
    principal: Train, session: Reading, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """The project's sweeps, newest first."""
    page = sweeps.page(session, principal.project_id, limit, after)
    return page_out(page, lambda sweep: sweep_out(session, sweep))


@router.get("/{sweep_id}", summary="Show a sweep", responses=documented(404))
def get_sweep(principal: Train, session: Reading, sweep_id: str) -> SweepOut:
    """Status, every trial with what was chosen and what came of it, the best, and what mattered."""
    return sweep_in_detail(session, sweeps.get(session, principal.project_id, sweep_id))


@router.post("/{sweep_id}/cancel", summary="Cancel a sweep", responses=documented(404, 409))
def cancel_sweep(principal: Train, session: Writing, sweep_id: str) -> SweepOut:
    """Ends the sweep without a model; trials that have not ended are cancelled."""
    return sweep_in_detail(session, sweeps.cancel(session, principal.project_id, sweep_id))


@router.post(
    "/{sweep_id}/stop", summary="Stop a sweep, keep its best", responses=documented(404, 409)
)
def stop_sweep(principal: Train, session: Writing, sweep_id: str) -> SweepOut:
    """Ends the sweep early: running trials are stopped, and the best of all becomes its model."""
    return sweep_in_detail(session, sweeps.stop(session, principal.project_id, sweep_id))


@router.delete(
    "/{sweep_id}", status_code=204, summary="Delete a sweep", responses=documented(404, 409)
)
def delete_sweep(principal: Train, session: Writing, sweep_id: str) -> None:
    """Forgets a sweep that has ended, with its trials and all that they wrote; its model stays."""
    sweeps.delete(session, principal.project_id, sweep_id)
