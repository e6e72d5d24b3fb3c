#!/usr/bin/env bash
# Insert the passwords into the definitions that RabbitMQ loads at startup, then start RabbitMQ the way its image does.
set -euo pipefail

filled=/run/notify/definitions.json
cookie=/var/lib/rabbitmq/.erlang.cookie

definitions=$(</etc/notify/definitions.json)
for variable in $(grep -o 'RABBITMQ_[A-Z_]*_PASSWORD' <<<"$definitions"); do
    password=${!variable:-}
    if [[ -z $password || $password == *[[:cntrl:]]* || $password == *"\${"* ]]; then
        echo "$variable must be set and must not contain control characters or \${" >&2
        exit 1
    fi
    # Escape the password for a JSON string.
    password=${password//\\/\\\\}
    password=${password//\"/\\\"}
    definitions=${definitions//"\${$variable}"/"$password"}
    # RabbitMQ would read every RABBITMQ_* variable as a setting of its own.
    unset "$variable"
done
(
    umask 077
    printf '%s' "$definitions" >"$filled"
    # The cookie is created here, because otherwise the first health check could create it as a file owned by root.
    [[ -e $cookie ]] || head -c 24 /dev/urandom | base64 >"$cookie"
)
chmod 400 "$cookie"
chown rabbitmq:rabbitmq "$filled" "$cookie"
exec docker-entrypoint.sh rabbitmq-server
