# The gRPC server in a container.
#
#   docker build -t vision-sae .                          for the CPU
#   docker build -t vision-sae:gpu --build-arg VARIANT=gpu .
#   docker run -p 50051:50051 -v /path/to/bundle:/bundles/default:ro vision-sae
#
# The GPU image needs `docker run --gpus all` and no CUDA in its base image: the wheels of torch and
# faiss-gpu bring the CUDA libraries, the host brings the driver. The server takes the first GPU
# with room, and its log says so at start: `computing on cuda:0 (NVIDIA H200, 140 GiB)`. With
# `-e VISION_SAE_DEVICE=cuda` it does not start without a GPU. (Not yet run on a GPU.)

# Both stages must have the same interpreter, because the environment is copied from one to the
# other. A digest (python@sha256:...) fixes the base image to the byte.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder

ARG VARIANT=cpu
# On Linux, PyPI's torch is the CUDA build, which would add five gigabytes that a CPU never uses.
# PyTorch's own index has the same release without CUDA, as 2.x.y+cpu, which the pin accepts.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

RUN case "$VARIANT" in \
        cpu | gpu) python -m venv /opt/venv ;; \
        *) echo "VARIANT is cpu or gpu, not '$VARIANT'" >&2; exit 1 ;; \
    esac

WORKDIR /src
COPY pyproject.toml constraints.txt requirements-demo.txt README.md LICENSE NOTICE ./

# Dependencies come before sources, so that these layers are rebuilt only when a pin changes. For the
# CPU, --no-deps makes sure that only these two wheels come from PyTorch's index.
RUN if [ "$VARIANT" = cpu ]; then \
        pip install --no-deps --constraint constraints.txt --index-url "$TORCH_CPU_INDEX" \
            torch torchvision; \
    fi
RUN mkdir client server vision_sae \
    && pip install --constraint constraints.txt ".[${VARIANT},demo]" \
    && pip install --no-deps --requirement requirements-demo.txt

COPY client client
COPY server server
COPY vision_sae vision_sae
RUN pip install --no-deps --force-reinstall .


FROM ${PYTHON_IMAGE} AS runtime

COPY --from=builder /opt/venv /opt/venv

# A model with a hub name must be mounted, because the server fetches nothing.
ENV PATH=/opt/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PYTHONUNBUFFERED=1

VOLUME /bundles
WORKDIR /bundles
USER 10001:10001

# The ports of gRPC and of Prometheus.
EXPOSE 50051 9464

# The probe answers SERVING once the models and indexes are loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "vision_sae_server.health"]

# Exec form: the server is process 1 and drains on SIGTERM. Give it time: docker stop --time 30.
STOPSIGNAL SIGTERM
ENTRYPOINT ["vision-sae", "serve"]

# A container has to listen beyond its loopback. Whoever publishes the port decides which addresses
# of the host lead to the container. Arguments of `docker run` replace all arguments below.
CMD ["--host", "0.0.0.0", "--metrics-port", "9464", "--allow-insecure-bind", "/bundles/default"]
