"""A log that the database itself keeps of who wrote about which run, so that nothing can overwrite it.

The rows a job leaves behind do not tell: a training that a stale process goes on with writes the very
numbers that its successor writes. But a trainer has connections of its own and serves a single run, so
that a connection which wrote about two runs belongs to one that went on after its lease was lost.
"""

import psycopg

_LOG = """
CREATE TABLE witness (
    job_id text, lease_epoch bigint, backend int, since timestamptz, wrote text, at timestamptz
);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of_job text := to_jsonb(NEW) ->> TG_ARGV[0];
BEGIN
    INSERT INTO witness
    SELECT job.id, job.lease_epoch, pg_backend_pid(), activity.backend_start, TG_TABLE_NAME, clock_timestamp()
    FROM jobs job, pg_stat_get_activity(pg_backend_pid()) activity
    WHERE job.id = of_job;
    RETURN NULL;
END $$;
CREATE TRIGGER witness AFTER INSERT OR UPDATE ON metric_blocks
    FOR EACH ROW EXECUTE FUNCTION witness('job_id');
CREATE TRIGGER witness AFTER INSERT ON checkpoints
    FOR EACH ROW EXECUTE FUNCTION witness('job_id');
CREATE TRIGGER witness AFTER UPDATE OF status ON jobs
    FOR EACH ROW WHEN (NEW.status IN ('succeeded', 'failed', 'cancelled'))
    EXECUTE FUNCTION witness('id');
"""
_STALE = """
SELECT trainer.job_id, trainer.lease_epoch, other.lease_epoch, count(*), array_agg(DISTINCT other.wrote)
FROM (
    SELECT backend, since, min(job_id) AS job_id, min(lease_epoch) AS lease_epoch
    FROM witness WHERE wrote IN ('metric_blocks', 'checkpoints') GROUP BY backend, since
) trainer
JOIN witness other USING (backend, since)
WHERE (other.job_id, other.lease_epoch) <> (trainer.job_id, trainer.lease_epoch)
GROUP BY 1, 2, 3
"""


def watch(url: str) -> None:
    """Begin to log what is written to a database that has its tables."""
    with psycopg.connect(url) as connection:
        connection.execute(_LOG)


def writes(url: str) -> int:
    """How many were logged."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM witness").fetchone()
        assert row is not None
        return int(row[0])


def stale_writes(url: str) -> list[str]:
    """What processes wrote that had lost their lease."""
    with psycopg.connect(url) as connection:
        return [
            f"{job_id}: run {old} wrote {count} times to {', '.join(tables)} while run {new} had the job"
            for job_id, old, new, count, tables in connection.execute(_STALE)
        ]
