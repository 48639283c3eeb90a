# The service alone: no torch, no training code that could run.
#   docker build -t housenumber .                              CPU
#   docker build -t housenumber:cuda --build-arg EXTRA=cuda .  with the CUDA 13 and cuDNN 9 libraries
FROM python:3.13-slim

ARG EXTRA=""
WORKDIR /opt/housenumber
COPY pyproject.toml constraints.txt constraints-cuda.txt README.md ./
COPY housenumber ./housenumber
COPY service ./service
COPY export ./export
COPY models ./models
RUN pip install --no-cache-dir -c constraints.txt -c constraints-cuda.txt ".${EXTRA:+[$EXTRA]}"

RUN useradd --system --no-create-home housenumber
USER housenumber
WORKDIR /tmp
ENV HOUSENUMBER_HOST=0.0.0.0 HOUSENUMBER_PORT=8000 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://localhost:' + os.environ['HOUSENUMBER_PORT'] + '/readyz')"]
STOPSIGNAL SIGTERM
CMD ["housenumber", "serve"]
