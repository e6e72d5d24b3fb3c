// The connections to PostgreSQL and RabbitMQ.
import amqp from "amqplib";
import pg from "pg";

export const QUEUE = "node.deliveries";
export const PREFETCH = 1000; // deliveries in progress at a time, as in the other contenders
const POOL_SIZE = 20;

export function openPool() {
  // A fixed pool, as the other contenders have: by default, connections that are idle for 10 s are closed.
  return new pg.Pool({ connectionString: process.env.DATABASE_URL, max: POOL_SIZE, idleTimeoutMillis: 0 });
}

export async function openChannel() {
  // By default, amqplib uses Nagle's algorithm, which holds a small frame back until the broker has acknowledged the last.
  const connection = await amqp.connect(process.env.RABBITMQ_URL, { noDelay: true });
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum" } });
  return channel;
}
