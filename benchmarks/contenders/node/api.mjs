// The HTTP side: the request stores the row and publishes its delivery.
import { randomUUID } from "node:crypto";
import Fastify from "fastify";
import { openChannel, openPool, QUEUE } from "./servers.mjs";

const INSERT = {
  name: "insert",
  text: `INSERT INTO notifications (id, user_id, message, type, status, created_at)
         VALUES ($1, $2, $3, $4, 'pending', $5)`,
};
const request = {
  user_id: { type: "integer" },
  message: { type: "string" },
  type: { type: "string" },
};
const response = {
  ...request,
  id: { type: "string" },
  status: { type: "string" },
  created_at: { type: "string" },
};
const schema = {
  body: { type: "object", required: Object.keys(request), properties: request },
  response: { 201: { type: "object", properties: response } },
};

const pool = openPool();
const channel = await openChannel();
const app = Fastify();

app.post("/api/notifications", { schema }, async (received, reply) => {
  const { user_id, message, type } = received.body;
  const view = { user_id, message, type, id: randomUUID(), status: "pending", created_at: new Date().toISOString() };
  await pool.query({ ...INSERT, values: [view.id, user_id, message, type, view.created_at] });
  const delivery = Buffer.from(JSON.stringify({ id: view.id, user_id, message }));
  // The callback is called when the broker has confirmed this message.
  await new Promise((resolve, reject) => {
    channel.sendToQueue(QUEUE, delivery, { persistent: true }, (error) => (error ? reject(error) : resolve()));
  });
  reply.code(201);
  return view;
});
app.get("/ready", async () => ({}));

await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
