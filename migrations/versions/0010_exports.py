"""Models that leave in a format of others: jobs of a fifth kind."""

from alembic import op

from migrations.kinds_of_jobs import replace

revision = "0010"
down_revision = "0009"

BEFORE = "kind IN ('train', 'evaluate', 'predict', 'advise')"
AFTER = "kind IN ('train', 'evaluate', 'predict', 'advise', 'export')"


def upgrade() -> None:
    replace(BEFORE, AFTER)


def downgrade() -> None:
    """A version that does not know exports has no place for them."""
    op.execute("DELETE FROM jobs WHERE kind = 'export'")
    replace(AFTER, BEFORE)
