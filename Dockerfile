# palm in a container. Build it in a checkout, and run any command:
#
#     docker build -t palm .                                  both frameworks; --build-arg EXTRAS=jax for one
#     docker run --rm -v "$PWD:/data" palm train --data book.txt --out RUN
#     docker build --target dev -t palm-dev .                 what nox needs, without palm: for development

FROM python:3.11-slim-bookworm AS dev
RUN apt-get update \
    && apt-get install -y --no-install-recommends git strace \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir nox

FROM python:3.11-slim-bookworm
ARG EXTRAS=all
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" && rm -rf /source
RUN useradd --create-home palm && mkdir /data && chown palm /data
USER palm
WORKDIR /data
ENTRYPOINT ["palm"]
CMD ["--help"]
