"""Webhooks: the secret that signs messages, what became of them, and sending one again."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Admin, Train
from api.dependencies import Reading, Writing
from api.errors import documented
from api.schemas import After, Limit, PageOut, page_out
from store import webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

DeliveryStatus = Literal["pending", "delivered", "failed"]


class SecretOut(BaseModel):
    """What signs a project's messages."""

    model_config = ConfigDict(from_attributes=True)

    secret: str = Field(
        description="Give it to the receiver, which verifies messages with it; nobody else needs it.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
    )
    created_at: datetime = Field(description="When it was made.")


class DeliveryOut(BaseModel):
    """A message to a webhook, and what became of it."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Its id, the `webhook-id` of every attempt.")
    job: str = Field(validation_alias="job_id", description="The job it tells of.")
    url: str = Field(description="Where it goes.")
    type: str = Field(description="What it tells.", examples=["job.succeeded"])
    status: DeliveryStatus = Field(
        description="`delivered` once the receiver answered with a 2xx; `failed` when it is given up."
    )
    attempts: int = Field(description="Times it was sent.")
    next_attempt_at: datetime | None = Field(
        description="When it will be sent next; null if it will not."
    )
    last_status: int | None = Field(description="The HTTP status of the receiver's last answer.")
    last_error: str | None = Field(description="Why the last attempt failed.")
    created_at: datetime = Field(description="When what it tells of happened.")
    delivered_at: datetime | None = Field(description="When the receiver took it.")


@router.get("/secret", summary="Show the signing secret")
def get_webhook_secret(principal: Train, session: Writing) -> SecretOut:
    """The secret that signs this project's messages; it is made when it is first asked for."""
    return SecretOut.model_validate(webhooks.secret(session, principal.project_id))


@router.post("/secret/rotate", summary="Make a new signing secret")
def rotate_webhook_secret(principal: Admin, session: Writing) -> SecretOut:
    """A new secret. For 24 hours messages carry a signature by the old one, too, so that receivers
    can change over meanwhile.
    """
    return SecretOut.model_validate(webhooks.rotate(session, principal.project_id))


@router.get("/deliveries", response_model=PageOut[DeliveryOut], summary="List messages")
def list_webhook_deliveries(
    principal: Train,
    session: Reading,
    limit: Limit = 20,
    after: After = None,
    job: Annotated[str | None, Query(description="Only those of this job.")] = None,
    status: Annotated[
        DeliveryStatus | None, Query(description="Only those in this status.")
    ] = None,
) -> Any:
    """The project's messages of the last 30 days, newest first."""
    page = webhooks.page(session, principal.project_id, limit, after, job, status)
    return page_out(page, DeliveryOut.model_validate)


@router.post(
    "/deliveries/{delivery_id}/retry", summary="Send again", responses=documented(404, 409)
)
def retry_webhook_delivery(principal: Train, session: Writing, delivery_id: str) -> DeliveryOut:
    """Puts a message that failed, or was delivered, back among those to send."""
    return DeliveryOut.model_validate(webhooks.retry(session, principal.project_id, delivery_id))
