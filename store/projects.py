"""Projects: who owns what."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import ids, pages
from store.errors import NotFound
from store.session import now
from store.statements import insert_new
from store.tables import Project


def ensure(session: Session, name: str) -> Project:
    """The project of this name, made if it is not there. Whoever makes it right now is waited for."""
    insert_new(session, Project, {"id": ids.new("prj"), "name": name, "created_at": now(session)})
    return session.scalars(select(Project).where(Project.name == name)).one()


def get(session: Session, project_id: str) -> Project:
    """Raises NotFound."""
    found = session.get(Project, project_id)
    if found is None:
        raise NotFound("project", project_id)
    return found


def page(session: Session, limit: int = 20, after: str | None = None) -> pages.Page[Project]:
    return pages.newest_first(session, select(Project), Project.id, limit, after)
