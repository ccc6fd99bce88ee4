# syntax=docker/dockerfile:1

# Python 3.12 on purpose: from 3.13 on, ssl refuses cluster CAs that lack what RFC 5280 asks for
# (VERIFY_X509_STRICT), and many clusters have such a CA.
FROM python:3.12.15-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN ["python", "-m", "venv", "--without-pip", "/opt/tracker"]
# The dependencies first: they change seldom, and every file of them is known by its hash.
COPY requirements.lock ./
RUN ["python", "-m", "pip", "--python", "/opt/tracker/bin/python", "install", \
     "--require-hashes", "--only-binary", ":all:", "--requirement", "requirements.lock"]
# The project has no compiled parts, so its modules are copied as they are and no build tool is
# fetched. Byte code is made here, once: the root is read-only later.
COPY tracker /opt/tracker/app/tracker
RUN ["/opt/tracker/bin/python", "-m", "compileall", "-q", \
     "--invalidation-mode", "unchecked-hash", "/opt/tracker/app"]

FROM python:3.12.15-slim-trixie
LABEL org.opencontainers.image.title="deployment-tracker" \
      org.opencontainers.image.description="Keeps GitHub's deployment records true." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY LICENSE /usr/share/doc/deployment-tracker/LICENSE
COPY --from=build /opt/tracker /opt/tracker
ENV PATH=/opt/tracker/bin:$PATH \
    PYTHONPATH=/opt/tracker/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /tmp
# Numeric, so that Kubernetes can see that it is not root.
USER 65532:65532
# Metrics and health.
EXPOSE 9090
ENTRYPOINT ["python", "-m", "tracker"]
