"""A private cluster: three RabbitMQ nodes, and three PostgreSQL members under Patroni and etcd, on one machine.

Each node can be killed, frozen, cut off from the others, and brought back with or without its data.
"""
