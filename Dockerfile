# One image for every role: `modelyard api`, `worker`, `reconciler`, `migrate`.
# TORCH_INDEX picks the build: https://download.pytorch.org/whl/cpu, or .../cu130 for GPUs. CUDA's own
# libraries come as wheels, so that the host needs no more than its driver and the container toolkit.
FROM python:3.12-slim AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /modelyard
RUN python -m venv /venv
RUN /venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"
COPY pyproject.toml constraints.txt README.md ./
COPY api api
COPY cli cli
COPY migrations migrations
COPY models models
COPY store store
COPY tasks tasks
COPY worker worker
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home modelyard && install -d -o modelyard /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 MODELYARD_DATA_DIR=/data
USER modelyard
VOLUME /data
EXPOSE 8000
CMD ["modelyard", "api", "--host", "0.0.0.0"]
