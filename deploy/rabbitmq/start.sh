#!/usr/bin/env bash
# Fill the passwords into the definitions, which RabbitMQ loads at its start, and start it as its image does.
set -euo pipefail

filled=/run/notify/definitions.json
cookie=/var/lib/rabbitmq/.erlang.cookie

definitions=$(</etc/notify/definitions.json)
for variable in $(grep -o 'RABBITMQ_[A-Z_]*_PASSWORD' <<<"$definitions"); do
    password=${!variable:-}
    if [[ -z $password || $password == *[[:cntrl:]]* || $password == *"\${"* ]]; then
        echo "$variable must be set, without control characters and without \${" >&2
        exit 1
    fi
    # As JSON text.
    password=${password//\\/\\\\}
    password=${password//\"/\\\"}
    definitions=${definitions//"\${$variable}"/"$password"}
    # RabbitMQ takes every RABBITMQ_* for a setting of its own.
    unset "$variable"
done
(
    umask 077
    printf '%s' "$definitions" >"$filled"
    # Before the first health check could make it, as a file of root's.
    [[ -e $cookie ]] || head -c 24 /dev/urandom | base64 >"$cookie"
)
chmod 400 "$cookie"
chown rabbitmq:rabbitmq "$filled" "$cookie"
exec docker-entrypoint.sh rabbitmq-server
