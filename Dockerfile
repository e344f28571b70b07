# The image of `cargo xtask image`, for those who build with a container engine:
#
#     docker build --tag understudy:0.1.0 .
#
# The same build makes the same executable; only the archive around it is the engine's.
FROM rust:1.95-bookworm AS build
WORKDIR /understudy
COPY . .
# Brings what the eBPF build needs from Debian's packages, builds the kernel programs and then the agent.
RUN cargo xtask static --output /out/understudy

FROM scratch
LABEL org.opencontainers.image.title="understudy" \
      org.opencontainers.image.description="A transparent proxy for the Kubernetes API server that lends a pod an identity for a session" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="0.1.0"
# The agent is root, and the gate is nobody: both run it.
COPY --from=build --chown=0:0 --chmod=0755 /out/understudy /understudy
USER 0
ENTRYPOINT ["/understudy"]
