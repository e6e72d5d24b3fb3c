# A member of the etcd cluster in which Patroni elects the primary: docker build -f deploy/cluster/etcd.Dockerfile deploy/cluster
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends etcd-client etcd-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin && install -d -o 10001 -g 10001 -m 700 /var/lib/notify-etcd
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["etcdctl", "endpoint", "health", "--command-timeout=3s"]
CMD ["etcd"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="etcd" \
      org.opencontainers.image.revision="$REVISION"
