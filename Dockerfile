# ssgan and ssconv with the CUDA kernels. This text has not been built yet: no machine of ours has Docker and a GPU.
#
#     docker build -t ssgan .
#     docker run --rm --gpus all ssgan python -m ssconv verify
#     docker run --rm --gpus all -v "$PWD:/work" ssgan ssgan train --preset demo --out runs/demo

# The build needs nvcc and a C++ compiler, and no torch.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-pip
WORKDIR /source
COPY . .
RUN SSCONV_CUDA=1 python3 -m pip wheel --no-deps --wheel-dir /wheels .

# torch brings CUDA's libraries; Triton compiles with gcc at run time.
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
WORKDIR /work
CMD ["ssgan", "--help"]
