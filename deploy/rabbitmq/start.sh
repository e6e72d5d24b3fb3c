#!/usr/bin/env bash
# Insert the passwords into the definitions that RabbitMQ loads at startup, then start RabbitMQ the way its image does.
set -euo pipefail

filled=/run/notify/definitions.json
cookie=/var/lib/rabbitmq/.erlang.cookie

definitions=$(<"${0%/*}/definitions.json")
examples=()
for variable in $(grep -o 'RABBITMQ_[A-Z_]*_PASSWORD' <<<"$definitions"); do
    password=${!variable:-}
    if [[ -z $password || $password == *[[:cntrl:]]* || $password == *"\${"* ]]; then
        echo "$variable must be set and must not contain control characters or \${" >&2
        exit 1
    fi
    [[ $password != *change-me* ]] || examples+=("$variable")
    # Escape the password for a JSON string.
    password=${password//\\/\\\\}
    password=${password//\"/\\\"}
    definitions=${definitions//"\${$variable}"/"$password"}
    # RabbitMQ would read every RABBITMQ_* variable as a setting of its own.
    unset "$variable"
done
allow_insecure=${ALLOW_INSECURE:-}
# The services accept the same spellings.
if ((${#examples[@]})) && [[ ! ${allow_insecure,,} =~ ^(1|t|true|y|yes|on)$ ]]; then
    printf -v variables '%s, ' "${examples[@]}"
    echo "${variables%, }: must not contain change-me, because everyone can read .env.example;" \
        "\`make env\` creates a .env with random secrets, and ALLOW_INSECURE=1 allows those of the example" >&2
    exit 1
fi
(
    umask 077
    printf '%s' "$definitions" >"$filled"
    # The cookie is created here, because otherwise the first health check could create it as a file owned by root.
    [[ -e $cookie ]] || head -c 24 /dev/urandom | base64 >"$cookie"
)
chmod 400 "$cookie"
chown rabbitmq:rabbitmq "$filled" "$cookie"
exec docker-entrypoint.sh rabbitmq-server
