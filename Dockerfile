# sleeptrain in a container: `docker build --tag sleeptrain .`, then `docker run --rm sleeptrain doctor`.
# With GPUs: `docker run --rm --gpus all --ipc host --volume "$PWD/runs:/runs" sleeptrain train RECIPE`.
# The wheels of torch hold CUDA. A C++ compiler is there for train.compile on a CPU and for Triton.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY sleeptrain sleeptrain
COPY kernels kernels
COPY data_pipelines data_pipelines
COPY launch launch
COPY configs configs
RUN python -m venv /opt/sleeptrain \
    && /opt/sleeptrain/bin/pip install --no-cache-dir --disable-pip-version-check '.[serve,gguf,gpu]'

FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install --directory --owner user /runs
COPY --from=build /opt/sleeptrain /opt/sleeptrain
ENV PATH=/opt/sleeptrain/bin:$PATH
USER 1000
# Run folders are below runs/ of the current folder, which is a volume: /runs outlives the container.
WORKDIR /
VOLUME /runs
ENTRYPOINT ["sleeptrain"]
CMD ["--help"]
