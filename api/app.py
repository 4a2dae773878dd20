"""The web application: wiring only."""

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.auth import Door, Keys
from api.cache import Cache
from api.checking import Checker
from api.docs import DESCRIPTION, TAGS, Documented, add_docs
from api.envelope import Bound, Envelope
from api.errors import add_error_table, documented
from api.lean import Shortcut
from api.published import Shelf
from api.queue import Bell
from api.routes import (
    admin,
    advice,
    artifacts,
    batches,
    catalog,
    checkpoints,
    datasets,
    explain,
    exports,
    feeds,
    health,
    huggingface,
    huggingface_embeddings,
    jobs,
    models,
    open_inference,
    openai,
    predict,
    pretrained,
    sweeps,
    webhooks,
)
from api.serving.engine import Serving
from api.settings import ApiSettings
from api.stopping import Stopping
from api.uploads import own_folder
from api.webhooks import sending
from store import keys, migrate, projects
from store.session import Database, connect

# Routes are tried in this order, so that those which are called most come first.
_JOBS = jobs, feeds, checkpoints, artifacts, sweeps, batches
_OTHERS = catalog, datasets, advice, *_JOBS, models, exports, pretrained, webhooks, admin
PREDICTING = (
    predict.router,
    explain.router,
    huggingface.router,
    huggingface_embeddings.router,
    openai.lean,
    open_inference.lean,
    open_inference.router,
    openai.router,
)
ROUTERS = (*PREDICTING, *(routes.router for routes in _OTHERS))
UPLOADS = re.compile(r"/v1/datasets|/v1/pretrained|/v1/models|/v1/models/[^/]+/batch-predict")
OF_KEYS = (401, 403, 422, 503)


class NotMigrated(RuntimeError):
    """The database has not the form that this version needs."""


def create_app(settings: ApiSettings) -> FastAPI:
    """The application for these settings; the database is opened when it starts."""
    app = Documented(
        title="Modelyard",
        version="1",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        lifespan=_lifespan,
    )
    app.state.settings, app.state.stopping = settings, Stopping()
    routers = PREDICTING if settings.role == "predictor" else ROUTERS
    for router in routers:
        app.include_router(router, responses=documented(*OF_KEYS))
    app.include_router(health.router)
    app.include_router(open_inference.health)
    if settings.docs:
        add_docs(app)
    add_error_table(app)
    app.add_middleware(Shortcut, routes=[route for router in routers for route in router.routes])
    app.add_middleware(Door, also_open={"/metrics"} if settings.metrics_public else frozenset())
    app.add_middleware(
        Bound, limit=settings.body_bytes, uploads=UPLOADS, upload_limit=settings.upload_bytes
    )
    app.add_middleware(Envelope)
    return app


def app() -> FastAPI:
    """The application for the settings of the environment: `uvicorn --factory api.app:app`."""
    return create_app(ApiSettings())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ApiSettings = app.state.settings
    (settings.data_dir / "uploads").mkdir(parents=True, exist_ok=True)
    database = connect(settings.database)
    try:
        if not migrate.is_current(database):
            raise NotMigrated("The database is not of this version; run `modelyard migrate`.")
        _ensure_admin(database, settings)
        bell, serving = Bell(settings), Serving(database, settings)
        app.state.database, app.state.bell, app.state.serving = database, bell, serving
        app.state.keys = Keys(database, settings.key_cache_seconds)
        if settings.role == "predictor":
            yield
        else:
            async with _all_but_predictions(app, database):
                yield
        serving.close()
        bell.close()
    finally:
        database.dispose()


@asynccontextmanager
async def _all_but_predictions(app: FastAPI, database: Database) -> AsyncIterator[None]:
    settings: ApiSettings = app.state.settings
    app.state.checker = Checker(settings, app.state.stopping)
    folder = settings.data_dir / "cache" / "examples"
    app.state.cache = Cache(database, folder, settings.cache_bytes)
    with own_folder(settings.data_dir / "uploads") as app.state.uploads:
        shelf = Shelf(database, app.state.cache, app.state.uploads / "published", settings)
        app.state.shelf = shelf
        async with sending(database, private=settings.webhook_private):
            yield


def _ensure_admin(database: Database, settings: ApiSettings) -> None:
    """Somebody must be able to make the other keys."""
    given = settings.admin_key.get_secret_value() if settings.admin_key else None
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        if given is None and keys.count(session):
            return
        _, key = keys.create(session, project.id, "first admin", ["admin"], secret=given)
    if given is None:
        _show_once(key, settings.data_dir / "admin.key")


def _show_once(key: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(key + "\n")
    print(f"The admin key, also kept in {path}:\n\n    {key}\n", file=sys.stderr)  # noqa: T201


def _operation_id(route: APIRoute) -> str:
    return route.name
