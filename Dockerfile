# The daemon alone on an empty root: one static binary, no shell, no C library, no root.
#
#   docker build -t diskchain .

FROM rust:1.95-slim-bookworm AS builder
WORKDIR /src
COPY . .
# Static glibc: nothing of this stage is needed at run time. Naming the target keeps the flag away
# from procedural macros, which cannot be static.
ENV RUSTFLAGS="-C target-feature=+crt-static" \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    CARGO_TARGET_DIR=/target
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
    target="$(rustc --print host-tuple)" \
    && cargo build --locked --release --package diskchain --target "$target" \
    && install -D --mode=755 --target-directory=/out/usr/bin "/target/$target/release/diskchain" \
    && install -D --mode=644 --target-directory=/out/usr/share/doc/diskchain LICENSE-MIT LICENSE-APACHE \
    && install -d --mode=755 /out/run /out/state/images

FROM scratch
COPY --from=builder /out/usr /usr
# What the daemon writes: images, and its control socket. A new volume takes over owner and mode.
COPY --from=builder --chown=65532:65532 /out/state /var/lib/diskchain
COPY --from=builder --chown=65532:65532 /out/run /run
# Where a daemon without root puts its control socket, and where healthcheck looks for it.
ENV PATH=/usr/bin XDG_RUNTIME_DIR=/run
# By number: there is no /etc/passwd, and Kubernetes' runAsNonRoot wants to see it.
USER 65532:65532
VOLUME ["/var/lib/diskchain/images"]
EXPOSE 10809
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=1m CMD ["diskchain", "healthcheck"]
ENTRYPOINT ["diskchain"]
CMD ["serve", "--config", "/etc/diskchain/diskchain.toml"]
