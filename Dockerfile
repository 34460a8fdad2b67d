# ensemblehub's server on the CPU: the page and the API on port 8000, as a user without rights.
#
#   docker build -t ensemblehub .                             with torch: --build-arg EXTRAS=serve,hf,openai
#   docker run -p 8000:8000 -e ENSEMBLEHUB_API_KEY=secret ensemblehub
#   docker run -v models:/models ensemblehub pull qwen-coder  models are fetched into the volume
ARG PYTHON=3.11
FROM docker.io/library/python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=serve,openai
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ensemblehub ensemblehub
RUN python -m venv /opt/ensemblehub \
    && /opt/ensemblehub/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM docker.io/library/python:${PYTHON}-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin ensemblehub \
    && install -d -o 10001 -g 10001 /models /config
COPY --from=build /opt/ensemblehub /opt/ensemblehub
ENV PATH=/opt/ensemblehub/bin:$PATH \
    HF_HOME=/models/huggingface \
    XDG_CACHE_HOME=/models \
    OMP_NUM_THREADS=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /config
VOLUME ["/models"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["ensemblehub"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
