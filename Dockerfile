# The image of Guideway (target `guideway`, the default) and that of the backends and
# load generators of the end-to-end tests (target `testbed`). Both are one static
# program on an empty file system.

FROM rust:1.95-bookworm AS build
ARG PROFILE=dist
WORKDIR /src
COPY . .
# --target keeps the flags away from build scripts, which cannot be linked statically. A program that finds its own place
# in memory has tens of thousands of addresses to correct; packed they take next to nothing.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && cargo build --locked --profile "$PROFILE" --target "$target" --bin guideway \
    && cp "target/$target/$PROFILE/guideway" /guideway

# Tests need neither the smallest program nor the fastest: thin optimization over all crates takes a sixth of the time.
FROM build AS build-testbed
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && cargo rustc --locked --profile "$PROFILE" --target "$target" --features e2e --bin guideway-testbed -- -C lto=thin \
    && cp "target/$target/$PROFILE/guideway-testbed" /guideway-testbed

FROM scratch AS testbed
COPY --from=build-testbed /guideway-testbed /guideway-testbed
USER 65532:65532
ENTRYPOINT ["/guideway-testbed"]

FROM scratch AS guideway
COPY --from=build /guideway /guideway
USER 65532:65532
ENTRYPOINT ["/guideway"]
