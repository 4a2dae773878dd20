"""What routes may ask for."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.settings import ApiSettings
from store.session import Database


def settings(request: Request) -> ApiSettings:
    """The settings this application was made with."""
    found: ApiSettings = request.app.state.settings
    return found


def database(request: Request) -> Database:
    """The database, for what takes more than one transaction."""
    found: Database = request.app.state.database
    return found


CurrentSettings = Annotated[ApiSettings, Depends(settings)]
CurrentDatabase = Annotated[Database, Depends(database)]


def writing(database: CurrentDatabase) -> Iterator[Session]:
    """One transaction around the route."""
    with database.transaction() as session:
        yield session


def reading(database: CurrentDatabase) -> Iterator[Session]:
    """One transaction around the route that holds up nobody who writes."""
    with database.transaction(read_only=True) as session:
        yield session


# Closed before the answer is sent, so that a client never hears of what is not yet there.
Writing = Annotated[Session, Depends(writing, scope="function")]
Reading = Annotated[Session, Depends(reading, scope="function")]
