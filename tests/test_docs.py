"""What the documentation says is there."""

import re
from pathlib import Path

from api.settings import ApiSettings
from tasks.catalog import architectures, tasks
from worker.settings import WorkerSettings

ROOT = Path(__file__).parent.parent


def test_every_setting_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`MODELYARD_([A-Z_]+)`", text))
    settings = {
        name.upper() for name in {**ApiSettings.model_fields, **WorkerSettings.model_fields}
    }
    assert documented == settings


def test_the_readme_names_every_task_and_architecture() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [name for name in (*tasks(), *architectures()) if name not in text]
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
