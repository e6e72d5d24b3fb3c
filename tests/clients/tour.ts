// Use a client that @hey-api/openapi-ts has generated; the argument is the URL of the gateway.

import { client } from "./notify/client.gen.js";
import {
  cancelNotification, createNotification, getNotification, listDeliveries, listNotifications, putUserChannel,
} from "./notify/sdk.gen.js";
import type { NotificationRequest } from "./notify/types.gen.js";

declare const process: { argv: string[] };

const user = "3fa85f64-5717-4562-b3fc-2c963f66afa6";

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(`not true: ${what}`);
}

client.setConfig({ baseUrl: process.argv[2].replace(/\/$/, "") as `${string}://${string}` });
await putUserChannel({ path: { user_id: user, channel: "email" }, body: { recipient: "a@example.org" }, throwOnError: true });
const body: NotificationRequest = {
  user_id: user,
  channels: ["telegram", "email"],
  message: "Your order has left our warehouse.",
  to: { telegram: "123456789" },
  reference: "order-5512",
};
const headers = { "idempotency-key": "order-5512" };
const { data: created } = await createNotification({ body, headers, throwOnError: true });
const { data: repeated } = await createNotification({ body, headers, throwOnError: true });
check(repeated.id === created.id, "a repeated request creates nothing");

let { data: notification } = await getNotification({ path: { id: created.id }, throwOnError: true });
while (notification.status === "pending") {
  await new Promise((resolve) => setTimeout(resolve, 50));
  ({ data: notification } = await getNotification({ path: { id: created.id }, throwOnError: true }));
}
check(notification.status === "sent", "the notification is sent");
check(notification.deliveries[0].recipient === "a@example.org", "the stored recipient is used");
check(notification.deliveries.every((delivery) => delivery.attempts?.length === 1), "there is one attempt for each");

const { data: page } = await listNotifications({ query: { reference: "order-5512" }, throwOnError: true });
check(page.items.length === 1 && !page.has_more, "the reference finds it");
const { data: deliveries } = await listDeliveries({ query: { status: ["sent"], user_id: user, limit: 1 }, throwOnError: true });
check(deliveries.has_more, "there is a second page");

const sendAt = new Date(Date.now() + 3_600_000).toISOString();
const later: NotificationRequest = { user_id: user, channels: ["email"], message: "x", send_at: sendAt };
const { data: scheduled } = await createNotification({ body: later, throwOnError: true });
const { data: cancelled } = await cancelNotification({ path: { id: scheduled.id }, throwOnError: true });
check(cancelled.status === "cancelled", "a scheduled notification can be cancelled");

const { error: problem } = await createNotification({ body: { ...body, message: "" } });
check(problem?.code === "invalid_request" && problem.errors?.[0].field === "message", "the problem names the field");
