# fulltune on CUDA: `docker build -t fulltune .`, then `docker run --gpus all --ipc host -v runs:/runs fulltune plan demo`.
# Every version stands in constraints.txt; the ones repeated here are compared with it by tests/docs/test_dockerfile.py.
# The same image serves the head and the workers of a Ray cluster: all nodes need the same Python and libraries.
# devel, not runtime: DeepSpeed asks nvcc for its version before it loads an op
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

ARG DEEPSPEED=0.19.8
ARG TORCH=2.13.0
# compute capabilities: A100, A10G, L4 and RTX 40, H100 and H200
ARG CUDA_ARCHITECTURES="8.0;8.6;8.9;9.0"
# for example 2.8.3: compiled here, which may take hours; without it attention runs segment by segment
ARG FLASH_ATTN=""

ENV DEBIAN_FRONTEND=noninteractive
# libaio-dev is for states on NVMe, g++ for ops that are compiled at first use
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git libaio-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/fulltune/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    CUDA_HOME=/usr/local/cuda \
    TORCH_CUDA_ARCH_LIST=${CUDA_ARCHITECTURES}
RUN python3 -m venv /opt/fulltune
COPY constraints.txt /tmp/

# torch's build for this CUDA, and what DeepSpeed's own build imports
RUN pip install -c /tmp/constraints.txt --extra-index-url https://download.pytorch.org/whl/cu130 "torch==${TORCH}+cu130" \
    && pip install -c /tmp/constraints.txt ninja numpy packaging py-cpuinfo setuptools

# DeepSpeed's ops, so that no worker compiles: Adam on the host, NVMe, and Adam on the GPU for recipes that name it.
# There is no GPU while an image is built, so the accelerator must be named.
RUN DS_ACCELERATOR=cuda DS_BUILD_CPU_ADAM=1 DS_BUILD_FUSED_ADAM=1 DS_BUILD_AIO=1 \
    pip install --no-build-isolation --no-binary deepspeed -c /tmp/constraints.txt "deepspeed==${DEEPSPEED}"
RUN if [ -n "${FLASH_ATTN}" ]; then \
      MAX_JOBS=4 pip install --no-build-isolation -c /tmp/constraints.txt "flash-attn==${FLASH_ATTN}"; \
    fi

COPY . /src
RUN pip install -c /tmp/constraints.txt "/src[api,gguf]" && rm -rf /src /tmp/constraints.txt

# not root; /runs is the folder that every node mounts (ray.storage_path)
RUN useradd --create-home --uid 1001 fulltune && install -d -o fulltune /runs
USER fulltune
WORKDIR /runs
ENV RAY_USAGE_STATS_ENABLED=0 TOKENIZERS_PARALLELISM=false
ENTRYPOINT ["fulltune"]
CMD ["--help"]
