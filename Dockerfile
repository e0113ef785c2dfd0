# The environment of `make install`, from the same lock.
#
#     docker build --build-arg PLATFORM=tpu -t ling_jax .         # or cuda, or cpu
#     docker run --rm --net=host --privileged ling_jax -m launch.doctor
FROM python:3.11-slim-bookworm
ARG PLATFORM=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /ling_jax

# Packages first: they change less often than the code.
COPY requirements.lock .
RUN python -m venv .venv && .venv/bin/python -m pip install --no-cache-dir -r requirements.lock

COPY . .
RUN make install && { [ "$PLATFORM" = cpu ] || \
    .venv/bin/python -m pip install --no-cache-dir -c requirements.lock -e ".[$PLATFORM]"; }
ENTRYPOINT [".venv/bin/python"]
