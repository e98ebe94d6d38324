# The gRPC server in a container.
#
#   docker build -t vision-sae .                          for the CPU
#   docker build -t vision-sae:gpu --build-arg VARIANT=gpu .
#   docker run -p 50051:50051 -v /path/to/bundle:/bundles/default:ro vision-sae
#
# The GPU image needs `docker run --gpus all` and nothing of CUDA in its base: the wheels of torch
# and faiss-gpu bring the CUDA libraries, the host brings the driver.

# Both stages must have the same interpreter, for the environment is copied between them. Give a
# digest (python@sha256:...) to fix the base to the byte.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder

ARG VARIANT=cpu
# On Linux the torch of PyPI is the CUDA build: it would add five gigabytes that a CPU never uses.
# PyTorch's own index has the same release without them, as 2.x.y+cpu, which the pin accepts.
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

# Dependencies before sources: these layers are rebuilt only when a pin changes. For the CPU,
# --no-deps keeps all but these two wheels from coming from PyTorch's index.
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

# A model named by a hub's name must have been mounted: the server fetches nothing.
ENV PATH=/opt/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PYTHONUNBUFFERED=1

VOLUME /bundles
WORKDIR /bundles
USER 10001:10001

# gRPC, and Prometheus.
EXPOSE 50051 9464

# SERVING comes after the models and indexes are loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "vision_sae_server.health"]

# Exec form: the server is process 1 and drains on SIGTERM. Give it time: docker stop --time 30.
STOPSIGNAL SIGTERM
ENTRYPOINT ["vision-sae", "serve"]

# A container has to listen beyond its loopback, and which addresses of the host lead to it is
# decided by whoever publishes the port. Arguments of `docker run` replace these, flag and all.
CMD ["--host", "0.0.0.0", "--metrics-port", "9464", "--allow-insecure-bind", "/bundles/default"]
