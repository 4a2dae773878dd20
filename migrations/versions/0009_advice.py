"""Advice on bases: jobs of a fourth kind."""

from alembic import op

from migrations.kinds_of_jobs import replace

revision = "0009"
down_revision = "0008"

BEFORE = "kind IN ('train', 'evaluate', 'predict')"
AFTER = "kind IN ('train', 'evaluate', 'predict', 'advise')"


def upgrade() -> None:
    replace(BEFORE, AFTER)


def downgrade() -> None:
    """A version that does not know advice has no place for it."""
    op.execute("DELETE FROM jobs WHERE kind = 'advise'")
    replace(AFTER, BEFORE)
