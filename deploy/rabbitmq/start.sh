#!/usr/bin/env bash
# Insert the passwords into the definitions that RabbitMQ loads at startup, then start RabbitMQ the way its image does.
set -euo pipefail

# This is in memory. A tmpfs of our own would not do: some versions of runc let only root write into it after a restart.
filled=/dev/shm/definitions.json
cookie=/var/lib/rabbitmq/.erlang.cookie

fail() {
    echo "$*" >&2
    exit 1
}

# Print what a file of a secret contains, without the newline at its end.
secret() {
    [[ -f $2 && -r $2 ]] || fail "$1: $2 cannot be read"
    [[ -s $2 ]] || fail "$1: $2 is empty"
    printf '%s' "$(<"$2")"
}

definitions=$(<"${0%/*}/definitions.json")
# The nodes of a cluster must share one cookie. Without this file, each volume gets a random one.
shared_cookie=
if [[ -n ${RABBITMQ_ERLANG_COOKIE_FILE:-} ]]; then
    shared_cookie=$(secret RABBITMQ_ERLANG_COOKIE_FILE "$RABBITMQ_ERLANG_COOKIE_FILE")
fi
unset RABBITMQ_ERLANG_COOKIE_FILE
examples=()
for variable in $(grep -o 'RABBITMQ_[A-Z_]*_PASSWORD' <<<"$definitions"); do
    password=${!variable:-}
    file_variable=${variable}_FILE
    file=${!file_variable:-}
    if [[ -n $file ]]; then
        [[ -z $password ]] || fail "$variable, $file_variable: only one of them may be set"
        password=$(secret "$file_variable" "$file")
    fi
    if [[ -z $password || $password == *[[:cntrl:]]* || $password == *"\${"* ]]; then
        fail "$variable or $file_variable must be set, and the password must not contain control characters or \${"
    fi
    [[ $password != *change-me* ]] || examples+=("$variable")
    # Escape the password for a JSON string.
    password=${password//\\/\\\\}
    password=${password//\"/\\\"}
    definitions=${definitions//"\${$variable}"/"$password"}
    # RabbitMQ would read every RABBITMQ_* variable as a setting of its own.
    unset "$variable" "$file_variable"
done
on() { [[ ${1,,} =~ ^(1|t|true|y|yes|on)$ ]]; } # the services accept the same spellings
if ((${#examples[@]})) && ! on "${ALLOW_INSECURE:-}"; then
    printf -v variables '%s, ' "${examples[@]}"
    fail "${variables%, }: must not contain change-me, because everyone can read examples;" \
        "\`make env\` creates random secrets, and ALLOW_INSECURE=1 allows those of examples"
fi
if on "${ALLOW_OLD_SENDERS:-}"; then
    echo "ALLOW_OLD_SENDERS: every sender can report results and dead letters for every channel" >&2
    definitions=$(sed -E -f "${0%/*}/old_senders.sed" <<<"$definitions")
fi
(
    umask 077
    printf '%s' "$definitions" >"$filled"
    # The cookie is created here, because otherwise the server and the first health check could each create one.
    if [[ -n $shared_cookie ]]; then
        rm -f "$cookie"
        printf '%s' "$shared_cookie" >"$cookie"
    fi
    [[ -e $cookie ]] || head -c 24 /dev/urandom | base64 >"$cookie"
)
chmod 400 "$cookie"
# Containers of older versions start as root, and run this script if they are restarted after an upgrade.
[[ $EUID != 0 ]] || chown rabbitmq:rabbitmq "$filled" "$cookie"
exec docker-entrypoint.sh rabbitmq-server
