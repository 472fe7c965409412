# One image for everything: the gateway, a chat instance (`chat …`), the registry (`registry …`).
#   docker build -t holdfast .        with more registries and stores: --build-arg EXTRAS=dns,redis,postgresql
#   docker run -p 8080:8080 -v ./holdfast.yaml:/etc/holdfast/holdfast.yaml:ro holdfast
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=""
WORKDIR /src
RUN python -m venv /opt/holdfast
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY discovery discovery
COPY proxy proxy
COPY chat chat
RUN /opt/holdfast/bin/python -m pip install --no-cache-dir --disable-pip-version-check ".${EXTRAS:+[$EXTRAS]}" \
    && /opt/holdfast/bin/python -m compileall -q /opt/holdfast/lib

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="holdfast" \
      org.opencontainers.image.description="Reverse proxy and service-discovery sidecar that keeps every connection" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --system --gid 10001 holdfast \
    && useradd --system --uid 10001 --gid holdfast --home-dir /var/lib/holdfast --create-home \
        --shell /usr/sbin/nologin holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/holdfast
USER 10001:10001
EXPOSE 8080 9900
# holdfast handles SIGTERM (drain) and SIGHUP (reload) itself, as process 1 too: no shell and no init in between.
STOPSIGNAL SIGTERM
# /readyz answers without a token. An image that runs something else than the proxy says its own check.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9900/readyz', timeout=2)"]
ENTRYPOINT ["holdfast"]
CMD ["run", "-c", "/etc/holdfast/holdfast.yaml"]
