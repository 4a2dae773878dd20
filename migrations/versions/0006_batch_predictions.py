"""Batch predictions: jobs of a third kind."""

from alembic import op

from migrations.kinds_of_jobs import replace

revision = "0006"
down_revision = "0005"

BEFORE, AFTER = "kind IN ('train', 'evaluate')", "kind IN ('train', 'evaluate', 'predict')"


def upgrade() -> None:
    replace(BEFORE, AFTER)


def downgrade() -> None:
    """A version that does not know batch predictions has no place for them."""
    op.execute("DELETE FROM jobs WHERE kind = 'predict'")
    replace(AFTER, BEFORE)
