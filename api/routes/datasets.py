"""Data sets: uploaded once, checked, kept."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import polars as pl
from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import to_jsonable_python
from sqlalchemy.orm import Session

from api.auth import Train
from api.cache import Cache
from api.checking import Checker, Verdict
from api.dependencies import CurrentDatabase, Reading, Writing
from api.errors import documented
from api.replies import Once
from api.schemas import After, Limit, PageOut, page_out
from api.uploads import ShownName, read_options, save
from store import blobs, datasets
from store.errors import NotFound
from store.session import Database
from store.tables import Dataset
from tasks.base import DatasetOptions
from tasks.catalog import task_named, tasks
from tasks.parts.problems import Invalid, Problem

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

Split = Literal["train", "validation", "test"]
_LONGEST_TEXT, _LONGEST_LIST, _LONGEST_BYTES = 10_000, 1_000, 2**18


class DatasetOut(BaseModel):
    """A data set: where it comes from, what was found in it, and how it is split."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "example": {
                "id": "ds_01jd2x7m0qk5t3v9r8w6y4z2ab",
                "name": "reviews",
                "task": "text-classification",
                "status": "ready",
                "splits": {"train": 800, "validation": 200},
                "schema": {"labels": ["negative", "positive"]},
                "report": {"duplicates": 0, "overlap": {"train/validation": 0}},
                "errors": [],
                "options": {},
                "size_bytes": 48213,
                "created_at": "2026-01-31T12:00:00Z",
            }
        },
    )

    id: str = Field(description="Its id.")
    name: str = Field(description="The name it was given.")
    task: str = Field(description="The task it was checked for.")
    status: Literal["checking", "ready", "invalid"] = Field(
        description="Only a `ready` one can be trained on."
    )
    splits: dict[str, int] = Field(description="Examples in each split.")
    schema_: dict[str, Any] = Field(alias="schema", description="Columns, labels and their types.")
    report: dict[str, Any] = Field(description="What the check found: sizes, balance, duplicates.")
    errors: list[Any] = Field(description="Why it is invalid.")
    options: dict[str, Any] = Field(description="How the upload was read.")
    size_bytes: int = Field(description="Bytes it takes in the store.")
    created_at: datetime = Field(description="When it was uploaded.")


class Truncated(BaseModel):
    """A value that is longer than what is shown of it."""

    row: int = Field(description="The row in the split, counted from 0.")
    field: str = Field(description="The field of that row.")
    length: int = Field(description="Its whole length: characters, items or bytes.")


class ExamplesOut(PageOut[dict[str, Any]]):
    """Examples in the order of the split; binary values as base64."""

    truncated: list[Truncated] = Field(description="What is not shown in full.")


_FileField = WithJsonSchema({"type": "string", "format": "binary"})
_File = Annotated[UploadFile | None, _FileField]


@router.post("", status_code=201, summary="Upload a data set")
def create_dataset(
    request: Request,
    response: Response,
    principal: Train,
    database: CurrentDatabase,
    once: Once,
    task: Annotated[
        str,
        Form(
            description="The task's name, see `/v1/tasks`.",
            examples=["tabular-classification"],
            json_schema_extra={"enum": sorted(tasks())},
        ),
    ],
    name: Annotated[
        ShownName, Form(description="A name for people; the file's name if empty.")
    ] = "",
    file: Annotated[
        _File, File(description="All examples in one file; the service splits them.")
    ] = None,
    train: Annotated[_File, File(description="Examples to train on, instead of `file`.")] = None,
    validation: Annotated[_File, File(description="Examples to choose the best by.")] = None,
    test: Annotated[_File, File(description="Examples to measure the end result by.")] = None,
    options: Annotated[
        str, Form(description="How to read the upload, as JSON.", examples=["{}"])
    ] = "{}",
) -> DatasetOut:
    """Reads, checks and keeps a data set.

    Send either `file`, which the service splits, or `train` with `validation` and `test` as you have
    them. The task's page, `/v1/tasks/{name}`, says which formats it reads and which `options` there are.

    The answer comes after the check. If anything is wrong with the data, it is a problem document that
    names file, row and column, and nothing is kept.
    """
    sent = {"file": file, "train": train, "validation": validation, "test": test}
    files = {split: upload for split, upload in sent.items() if upload is not None}
    kind = task_named(task)
    read = read_options(options, kind.options_type)
    _check_combination(set(files))
    checker: Checker = request.app.state.checker
    with TemporaryDirectory(dir=request.app.state.uploads) as folder:
        saved = {split: save(file, Path(folder) / split) for split, file in files.items()}
        uploads = {split: upload for split, (upload, _) in saved.items()}
        contents = {split: (upload.name, digest) for split, (upload, digest) in saved.items()}
        asked = [task, name, options, contents]
        with database.transaction(read_only=True) as session:
            dataset = once.known(session, asked, DatasetOut)
        if dataset is None:
            verdict = checker.check(task, uploads, read, Path(folder))
            shown = name.strip() or Path(next(iter(uploads.values())).name).stem[:200] or task
            create = _store(database, principal.project_id, shown, task, read, verdict)
            with database.transaction() as session:
                dataset = once(session, asked, DatasetOut, partial(create, session))
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return dataset


@router.get("", response_model=PageOut[DatasetOut], summary="List data sets")
def list_datasets(
    principal: Train,
    session: Reading,
    limit: Limit = 20,
    after: After = None,
    task: Annotated[str | None, Query(description="Only those for this task.")] = None,
) -> Any:
    """The project's data sets, newest first."""
    page = datasets.page(session, principal.project_id, limit, after, task)
    return page_out(page, DatasetOut.model_validate)


@router.get(
    "/{dataset_id}", response_model=DatasetOut, summary="Show a data set", responses=documented(404)
)
def get_dataset(principal: Train, session: Reading, dataset_id: str) -> Dataset:
    """Its splits, its schema and what the check found."""
    return datasets.get(session, principal.project_id, dataset_id)


@router.get(
    "/{dataset_id}/examples",
    response_model=ExamplesOut,
    summary="Look at examples",
    responses=documented(404, 507),
)
def list_examples(
    request: Request,
    principal: Train,
    database: CurrentDatabase,
    dataset_id: str,
    split: Annotated[Split, Query(description="Which split.")] = "train",
    limit: Limit = 20,
    after: Annotated[int, Query(ge=0, le=2**53, description="How many rows to pass over.")] = 0,
) -> Any:
    """Examples as they will be trained on, in the order of the split."""
    with database.transaction(read_only=True) as session:
        dataset = datasets.get(session, principal.project_id, dataset_id)
        files = datasets.files(session, dataset_id)
    if split not in files:
        raise NotFound("split", split)
    cache: Cache = request.app.state.cache
    rows = pl.scan_parquet(cache.path(files[split])).slice(after, limit).collect().to_dicts()
    has_more = after + len(rows) < dataset.splits[split]
    truncated: list[Truncated] = []
    return {
        "data": [_shown(row, after + place, truncated) for place, row in enumerate(rows)],
        "truncated": truncated,
        "has_more": has_more,
        "next": str(after + len(rows)) if has_more else None,
    }


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a data set",
    responses=documented(404, 409),
)
def delete_dataset(principal: Train, session: Writing, dataset_id: str) -> None:
    """Forgets the data set. Refused while an unfinished job needs it; models made of it stay."""
    datasets.delete(session, principal.project_id, dataset_id)


def _check_combination(sent: set[str]) -> None:
    """Either `file` alone, or `train` with others. Raises Invalid."""
    if ("file" in sent) == ("train" in sent) or ("file" in sent and len(sent) > 1):
        allowed = [
            "file",
            "train",
            "train + validation",
            "train + test",
            "train + validation + test",
        ]
        raise Invalid(
            Problem(("file",), "send one of these combinations", sorted(sent) or None, allowed)
        )


def _store(
    database: Database,
    project_id: str,
    name: str,
    task: str,
    options: DatasetOptions,
    verdict: Verdict,
) -> Callable[[Session], DatasetOut]:
    """Store the bytes, which takes a while; what is given then makes them a data set at once."""
    files = {split: blobs.put(database, path) for split, path in verdict.files.items()}
    size = sum(path.stat().st_size for path in verdict.files.values())

    def create(session: Session) -> DatasetOut:
        dataset = datasets.create(
            session,
            project_id,
            name=name,
            task=task,
            options=options.model_dump(mode="json", exclude_unset=True),
            schema=verdict.schema,
            report=verdict.report,
            splits=verdict.splits,
            size_bytes=size,
            files=files,
        )
        return DatasetOut.model_validate(dataset)

    return create


def _shown(row: Mapping[str, Any], number: int, truncated: list[Truncated]) -> dict[str, Any]:
    """An example as JSON, none of its values longer than a page can take."""

    def cut(value: Any, field: str) -> Any:
        if isinstance(value, dict):
            return {key: cut(item, f"{field}.{key}") for key, item in value.items()}
        if not isinstance(value, str | bytes | list):
            return to_jsonable_python(value, inf_nan_mode="null", fallback=str)
        longest = {str: _LONGEST_TEXT, bytes: _LONGEST_BYTES}.get(type(value), _LONGEST_LIST)
        if len(value) > longest:
            truncated.append(Truncated(row=number, field=field, length=len(value)))
        part = value[:longest]
        if isinstance(part, bytes):
            return b64encode(part).decode()
        return part if isinstance(part, str) else [cut(item, field) for item in part]

    return {field: cut(value, field) for field, value in row.items()}
