# Both bases are arguments, so that a registry of your own can serve them.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
# The dependencies alone first: this layer is built again only when they change. Of the other crates it needs the
# manifests, and builds nothing.
COPY Cargo.toml Cargo.lock ./
COPY lab/Cargo.toml lab/
COPY fuzz/Cargo.toml fuzz/
COPY .cargo .cargo
RUN mkdir src lab/src fuzz/src && echo 'fn main() {}' | tee src/main.rs > lab/src/main.rs \
    && touch src/lib.rs lab/src/lib.rs fuzz/src/lib.rs \
    && cargo build --release --locked && rm -r src
COPY . .
# Newer than the empty ones above, whatever the times of the copied files are.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM ${RUN_IMAGE}
# CA certificates, for relays and databases whose certificate is from a public CA.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin vos-auth
COPY --from=build /build/target/release/vos-auth /usr/local/bin/vos-auth
USER 10001
# In a container the network is its own; /metrics stays on a port that is not to be published.
ENV HTTP_ADDR=0.0.0.0:8080 METRICS_ADDR=0.0.0.0:9090 LOG_FORMAT=json
EXPOSE 8080
# Images of the OCI format have none: build with `--format docker` where buildah or podman does it.
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["vos-auth", "healthcheck"]
ENTRYPOINT ["vos-auth"]
CMD ["serve"]
