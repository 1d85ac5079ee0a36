# syntax=docker/dockerfile:1
#   docker build --target cpu  -t farthing:cpu .
#   docker build --target cuda -t farthing:cuda .
#   docker run --rm -v "$PWD/runs:/work/runs" -v farthing-cache:/cache farthing:cpu train
# The stage cpu comes last, so that it is what a build without --target makes.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
# torch.compile needs a C++ compiler on a CPU, and a C compiler for Triton's launchers on a GPU.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 farthing \
    && install -d -o farthing -g farthing /work /work/runs /cache
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    FARTHING_CACHE=/cache \
    HF_HOME=/cache/huggingface
# Farthing answers this signal with a checkpoint; give it time: docker stop -t 60.
STOPSIGNAL SIGTERM
ENTRYPOINT ["farthing"]
CMD ["train"]

# On Linux the wheel on PyPI brings its own CUDA libraries; the host needs a driver and the NVIDIA container toolkit.
FROM base AS cuda
RUN pip install "torch>=2.9,<2.14"
COPY . /source
RUN pip install "/source[hf]" && rm -rf /source
USER farthing
WORKDIR /work

FROM base AS cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.9,<2.14"
COPY . /source
RUN pip install "/source[hf]" && rm -rf /source
USER farthing
WORKDIR /work
