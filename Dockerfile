# The service alone: no torch, no compiler, no package cache, an ordinary user; the root may be read-only.
#   docker build --target cpu -t housenumber:cpu .
#   docker build --target gpu -t housenumber:gpu .    with CUDA 13 and cuDNN 9, for a host with an NVIDIA driver
#   docker build --target score -t housenumber:score .    batch scoring, on one machine or on a Ray cluster
# Python and Debian are those that the tests run on.
FROM python:3.11-slim-bookworm AS base

# -- what all targets install: everything but ONNX Runtime, of which an image holds one build, never two -----------
FROM base AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt constraints-cuda.txt ./
RUN python -m venv --without-pip /opt/housenumber \
    && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*[wish for wish in project['dependencies'] + project['optional-dependencies']['tracing'] if not wish.startswith('onnxruntime')], sep='\n')" > requirements.txt \
    && pip --python /opt/housenumber install -c constraints.txt -r requirements.txt

# onnxruntime-gpu, which pyproject.toml names for Linux, runs on a CPU too, but holds 270 MB of CUDA kernels.
FROM dependencies AS install-cpu
RUN pip --python /opt/housenumber install -c constraints.txt onnxruntime
COPY . .
RUN pip --python /opt/housenumber install --no-deps .

FROM dependencies AS install-gpu
RUN pip --python /opt/housenumber install -c constraints.txt -c constraints-cuda.txt "onnxruntime-gpu[cuda,cudnn]"
COPY . .
RUN pip --python /opt/housenumber install --no-deps .

FROM install-cpu AS install-score
RUN python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*[wish for wish in extras['score'] + extras['ray'] if not wish.startswith('housenumber')], sep='\n')" > requirements-score.txt \
    && pip --python /opt/housenumber install -c constraints.txt -r requirements-score.txt

# -- what all targets run as ---------------------------------------------------------------------------------------
FROM base AS user
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin housenumber
ENV PATH=/opt/housenumber/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM

# -- batch scoring ---------------------------------------------------------------------------------------------------
FROM user AS score
ENV HOUSENUMBER_PROVIDER=cpu RAY_USAGE_STATS_ENABLED=0
COPY --from=install-score /opt/housenumber /opt/housenumber
CMD ["housenumber", "score", "--help"]

# -- the service -----------------------------------------------------------------------------------------------------
FROM user AS runtime
# The model repository: mount another one here.
COPY models/artifacts /models
ENV HOUSENUMBER_HOST=0.0.0.0 HOUSENUMBER_PORT=8000 HOUSENUMBER_MODEL_REPOSITORY=/models
EXPOSE 8000
# Not urllib: it would send this to the proxy where one is configured.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['HOUSENUMBER_PORT']), timeout=3); probe.request('GET', '/readyz'); raise SystemExit(probe.getresponse().status != 200)"]
CMD ["housenumber", "serve"]

FROM runtime AS gpu
# Refuses to start rather than to fall back to the CPU unseen.
ENV HOUSENUMBER_PROVIDER=cuda NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-gpu /opt/housenumber /opt/housenumber

FROM runtime AS cpu
ENV HOUSENUMBER_PROVIDER=cpu
COPY --from=install-cpu /opt/housenumber /opt/housenumber
