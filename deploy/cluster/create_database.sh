#!/usr/bin/env bash
# Patroni calls this once, with a connection string, when it has created the cluster.
set -euo pipefail
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname "$1" --command 'CREATE DATABASE notifications'
