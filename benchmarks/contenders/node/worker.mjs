// The worker: it sends each delivery and stores its status.
import { setTimeout as sleep } from "node:timers/promises";
import { openChannel, openPool, PREFETCH, QUEUE } from "./servers.mjs";

const UPDATE = { name: "update", text: "UPDATE notifications SET status = 'sent' WHERE id = $1" };
const LATENCY = Number(process.env.LATENCY) * 1000; // milliseconds

const pool = openPool();
const channel = await openChannel();
await channel.prefetch(PREFETCH);
await channel.consume(QUEUE, async (message) => {
  if (message === null) throw new Error("the broker has cancelled the consumer");
  const { id } = JSON.parse(message.content.toString());
  if (LATENCY) await sleep(LATENCY);
  await pool.query({ ...UPDATE, values: [id] });
  channel.ack(message);
});
