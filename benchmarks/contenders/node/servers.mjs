// The connections to PostgreSQL and RabbitMQ.
import amqp from "amqplib";
import pg from "pg";

export const QUEUE = "node.deliveries";
export const PREFETCH = 500; // deliveries in progress at a time, as in the other contenders
const POOL_SIZE = 20;

export function openPool() {
  return new pg.Pool({ connectionString: process.env.DATABASE_URL, max: POOL_SIZE });
}

export async function openChannel() {
  const connection = await amqp.connect(process.env.RABBITMQ_URL);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum" } });
  return channel;
}
