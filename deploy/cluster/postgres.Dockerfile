# A member of the PostgreSQL cluster in docker-compose.cluster.yml. Patroni starts PostgreSQL, and promotes a standby if
# the primary is lost: docker build -f deploy/cluster/postgres.Dockerfile deploy/cluster
FROM postgres:17
RUN apt-get update && apt-get install -y --no-install-recommends patroni python3-etcd && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
COPY patroni.yml entrypoint.sh create_database.sh /etc/notify/
ENV PATRONICTL_CONFIG_FILE=/etc/notify/patroni.yml
USER postgres
# Patroni serves /readiness once PostgreSQL runs, as the primary or as a standby.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --start-interval=1s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8008 && printf 'GET /readiness HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *200* ]]"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/etc/notify/entrypoint.sh"]
CMD ["patroni", "/etc/notify/patroni.yml"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="PostgreSQL with Patroni" \
      org.opencontainers.image.revision="$REVISION"
