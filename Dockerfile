# syntax=docker/dockerfile:1
# Build:  docker build -t medcls .
# Run:    docker run --rm medcls                                              (python -m medcls.train: the demo)
#         docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD/work:/work" medcls \
#             -m medcls.train store=/work/store run=/work/run                 (as you, who own ./work)
FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY medcls ./medcls
COPY data_prep ./data_prep
COPY conf ./conf
RUN /opt/venv/bin/pip install -c constraints.txt '.[tensorboard]'

FROM python:3.11-slim
LABEL org.opencontainers.image.title="medcls" \
      org.opencontainers.image.description="Medical-image classification with transfer learning. Research use; not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin medcls && install -d -o medcls /work
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NO_ALBUMENTATIONS_UPDATE=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /work
STOPSIGNAL SIGTERM
ENTRYPOINT ["python"]
CMD ["-m", "medcls.train"]
