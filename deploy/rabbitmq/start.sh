#!/usr/bin/env bash
# Fill the passwords into the definitions, which RabbitMQ loads at its start, and start it as its image does.
set -euo pipefail

definitions=$(</etc/notify/definitions.json)
for variable in RABBITMQ_ADMIN_PASSWORD RABBITMQ_GATEWAY_PASSWORD RABBITMQ_TELEGRAM_SENDER_PASSWORD \
    RABBITMQ_EMAIL_SENDER_PASSWORD RABBITMQ_STATUS_WRITER_PASSWORD; do
    password=${!variable:?is not set}
    # As JSON text.
    password=${password//\\/\\\\}
    password=${password//\"/\\\"}
    definitions=${definitions//"\${$variable}"/"$password"}
    # RabbitMQ takes every RABBITMQ_* for a setting of its own.
    unset "$variable"
done
umask 077
printf '%s' "$definitions" >/run/notify/definitions.json
chown rabbitmq:rabbitmq /run/notify/definitions.json
exec docker-entrypoint.sh rabbitmq-server
