# Build:  docker build -t medcls .        (--build-arg PIP_INDEX_URL=… for a mirror, or an index that serves CPU builds)
# Run:    docker run --rm --read-only --network none -v "$PWD/work:/work" medcls       (python -m medcls.train: the demo)
#         docker run --rm --read-only --gpus all --shm-size 2g --user "$(id -u)" -v "$PWD/work:/work" medcls \
#             -m medcls.train store=/work/store run=/work/run                 (as you, who own ./work)
# Checked unmodified by `make container-test`; more in docs/operations.md.
FROM python:3.11-slim AS build
# No default: pip then asks its own. What stands here is seen in this stage's history, and not in the image's.
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Debian keeps no old versions, so a pinned one could not be installed next month.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /src
# The environment alone first: a change of the sources does not install torch again.
COPY constraints.txt pyproject.toml ./
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*project['dependencies'], *project['optional-dependencies']['tensorboard'], sep='\n')" > requirements.txt \
    && /opt/venv/bin/pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY medcls ./medcls
COPY data_prep ./data_prep
COPY conf ./conf
RUN /opt/venv/bin/pip install --no-deps .

FROM python:3.11-slim
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="medcls" \
      org.opencontainers.image.description="Medical-image classification with transfer learning. Research use; not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --home-dir /work --no-create-home --shell /usr/sbin/nologin medcls \
    && install --directory --owner medcls /work
COPY --from=build /usr/bin/tini /usr/bin/tini
COPY --from=build /opt/venv /opt/venv
# /work is the one folder that is written: home, temporary files and every cache lie in it.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/work \
    TMPDIR=/work \
    XDG_CACHE_HOME=/work/.cache \
    MPLCONFIGDIR=/work/.cache/matplotlib \
    TORCH_HOME=/work/.cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/work/.cache/inductor \
    TRITON_CACHE_DIR=/work/.cache/triton \
    CUDA_CACHE_PATH=/work/.cache/cuda \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NO_ALBUMENTATIONS_UPDATE=1
USER 10001
WORKDIR /work
STOPSIGNAL SIGTERM
# tini hands signals on to Python and its exit code out: as process 1 Python would ignore SIGTERM until it has a handler.
ENTRYPOINT ["/usr/bin/tini", "--", "python"]
CMD ["-m", "medcls.train"]
