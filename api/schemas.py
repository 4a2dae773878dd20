"""What travels between the API and its clients, besides what each route has for itself."""

from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from store.pages import Page

T = TypeVar("T")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
After = Annotated[
    str | None, Query(max_length=100, description="The `next` of the page before this one.")
]


class PageOut(BaseModel, Generic[T]):
    """One page of a list, newest first unless the route says otherwise."""

    data: list[T] = Field(description="What is on this page.")
    has_more: bool = Field(False, description="Whether another page follows.")
    next: str | None = Field(None, description="What `after` takes to get it.")


def page_out(page: Page[Row], show: Callable[[Row], Any]) -> dict[str, Any]:
    """A page of rows as the body of an answer."""
    return {
        "data": [show(row) for row in page.rows],
        "has_more": page.has_more,
        "next": page.next,
    }
