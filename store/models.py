"""Models: a name, its versions, and aliases that point at them."""

from typing import NamedTuple

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from store import checkpoints, ids, pages
from store.errors import Conflict, NotFound
from store.session import now
from store.statements import insert_new
from store.tables import Checkpoint, Job, Model, ModelAlias, ModelVersion


class Resolved(NamedTuple):
    """What a reference stands for, and its exact form, such as reviews@1."""

    ref: str
    checkpoint: Checkpoint


def publish(
    session: Session, project_id: str, name: str, job_id: str | None, checkpoint_id: str
) -> ModelVersion:
    """The next version of the model `name`, made if it is not there."""
    row = {"project_id": project_id, "name": name, "last_version": 0}
    insert_new(session, Model, {"id": ids.new("mdl"), "created_at": now(session), **row})
    model = _locked(session, project_id, name)
    model.last_version += 1
    version = ModelVersion(
        model_id=model.id,
        version=model.last_version,
        job_id=job_id,
        checkpoint_id=checkpoint_id,
        created_at=now(session),
    )
    session.add(version)
    session.flush()
    return version


def page(
    session: Session, project_id: str, limit: int = 20, after: str | None = None
) -> pages.Page[Model]:
    query = select(Model).where(Model.project_id == project_id)
    return pages.newest_first(session, query, Model.id, limit, after)


def newest(session: Session, project_id: str, limit: int) -> list[tuple[str, ModelVersion]]:
    """The names of the newest models, each with its newest version."""
    last = (
        select(func.max(ModelVersion.version))
        .where(ModelVersion.model_id == Model.id)
        .correlate(Model)
        .scalar_subquery()
    )
    query = select(Model.name, ModelVersion).join(ModelVersion, ModelVersion.model_id == Model.id)
    query = query.where(Model.project_id == project_id, ModelVersion.version == last)
    rows = session.execute(query.order_by(Model.id.desc()).limit(limit))
    return [(name, version) for name, version in rows]


def get(session: Session, project_id: str, name: str) -> Model:
    """Raises NotFound."""
    query = select(Model).where(Model.project_id == project_id, Model.name == name)
    model = session.scalars(query).one_or_none()
    if model is None:
        raise NotFound("model", name)
    return model


def versions(session: Session, project_id: str, name: str) -> list[ModelVersion]:
    """Newest first. Raises NotFound."""
    model = get(session, project_id, name)
    query = select(ModelVersion).where(ModelVersion.model_id == model.id)
    return list(session.scalars(query.order_by(ModelVersion.version.desc())))


def aliases(session: Session, project_id: str, name: str) -> dict[str, int]:
    """{alias: version}. Raises NotFound."""
    model = get(session, project_id, name)
    query = select(ModelAlias).where(ModelAlias.model_id == model.id).order_by(ModelAlias.alias)
    return {row.alias: row.version for row in session.scalars(query)}


def set_alias(session: Session, project_id: str, name: str, alias: str, version: int) -> ModelAlias:
    """Point `alias` at a version. Raises NotFound, and Conflict when it reads as a version itself."""
    if alias.isdigit():
        raise Conflict(f"An alias cannot be a number: {name}@{alias} would mean a version.")
    model = _locked(session, project_id, name)
    _version(session, model, version)
    return session.merge(ModelAlias(model_id=model.id, alias=alias, version=version))


def delete_alias(session: Session, project_id: str, name: str, alias: str) -> None:
    """Raises NotFound."""
    found = session.get(ModelAlias, (get(session, project_id, name).id, alias))
    if found is None:
        raise NotFound("model alias", f"{name}@{alias}")
    session.delete(found)
    session.flush()


def delete(session: Session, project_id: str, ref: str) -> None:
    """Delete the model `name` with all it has, or the version `name@3`.

    Raises NotFound, and Conflict for an alias and for a version that one points at.
    """
    name, _, selector = ref.partition("@")
    model = _locked(session, project_id, name)
    if not selector:
        session.execute(delete_from(Model).where(Model.id == model.id))
    elif selector.isdecimal():
        _delete_version(session, model, _version(session, model, _number(selector)))
    else:
        raise Conflict(f"{ref} is an alias; delete the alias or the version it points at.")
    checkpoints.discard(session, Checkpoint.job_id.is_(None))


def resolve(session: Session, project_id: str, ref: str) -> Resolved:
    """The checkpoint that name, name@3, name@alias, job_... (its best) or ckpt_... means. Raises NotFound.

    The exact form of job_... says after how many steps that checkpoint was made, as in job_...@1200.
    """
    if ref.startswith("ckpt_"):
        return Resolved(ref, checkpoints.get(session, project_id, ref))
    if ref.startswith("job_"):
        checkpoint = _of_job(session, project_id, *ref.partition("@")[::2])
        return Resolved(f"{checkpoint.job_id}@{checkpoint.step}", checkpoint)
    name, _, selector = ref.partition("@")
    model = get(session, project_id, name)
    version = _selected(session, model, selector)
    shown = f"{name}@{version.version}"
    return Resolved(shown, checkpoints.load(session, version.checkpoint_id))


def _of_job(session: Session, project_id: str, job_id: str, step: str) -> Checkpoint:
    """What stands for a job, or its checkpoint of that step while it is kept."""
    job = session.get(Job, job_id)
    if job is None or job.project_id != project_id:
        raise NotFound("job", job_id)
    kept = checkpoints.page(session, job_id) if step else [checkpoints.chosen(session, job_id)]
    found = next((c for c in kept if c is not None and step in ("", str(c.step))), None)
    if found is None:
        raise NotFound("checkpoint of job", f"{job_id}@{step}" if step else job_id)
    return found


def _selected(session: Session, model: Model, selector: str) -> ModelVersion:
    """The version that stands behind the @, the newest when nothing does."""
    if selector.isdecimal():
        return _version(session, model, _number(selector))
    if selector:
        alias = session.get(ModelAlias, (model.id, selector))
        if alias is None:
            raise NotFound("model alias", f"{model.name}@{selector}")
        return _version(session, model, alias.version)
    query = select(ModelVersion).where(ModelVersion.model_id == model.id)
    newest = session.scalars(query.order_by(ModelVersion.version.desc()).limit(1)).first()
    if newest is None:
        raise NotFound("version of model", model.name)
    return newest


def _number(selector: str) -> int:
    """A version's number; a selector longer than any is cut, since Python reads only so many digits."""
    return int(selector[:20])


def _version(session: Session, model: Model, number: int) -> ModelVersion:
    # A number beyond what the column holds is not there either, but would fail inside the database.
    if number <= model.last_version:
        found = session.get(ModelVersion, (model.id, number))
        if found is not None:
            return found
    raise NotFound("model version", f"{model.name}@{number}")


def _delete_version(session: Session, model: Model, version: ModelVersion) -> None:
    aimed = select(ModelAlias.alias).where(
        ModelAlias.model_id == model.id, ModelAlias.version == version.version
    )
    alias = session.scalars(aimed.limit(1)).first()
    if alias is not None:
        raise Conflict(
            f"{model.name}@{version.version} is what the alias {alias!r} points at; "
            "point the alias at another version or delete it first."
        )
    made = Job.model_id == model.id, Job.model_version == version.version
    session.execute(update(Job).where(*made).values(model_id=None, model_version=None))
    session.delete(version)
    session.flush()


def _locked(session: Session, project_id: str, name: str) -> Model:
    query = select(Model).where(Model.project_id == project_id, Model.name == name)
    locked = query.with_for_update().execution_options(populate_existing=True)
    model = session.scalars(locked).one_or_none()
    if model is None:
        raise NotFound("model", name)
    return model
