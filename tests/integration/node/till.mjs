// A till on Node's `ws`: connects, receives, acknowledges, resumes, and reports JSON lines.
//
//   node till.mjs PLAN      PLAN is JSON: see `Plan` in test_wire_node.py
//
// It prints {"said": …} for the greeting, {"event": …} for each message, {"closed": …} for the end,
// {"refused": …} for an answer that was no upgrade, and stops after `count` events or the end.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const plan = JSON.parse(process.argv[2]);
const WebSocket = createRequire(`${plan.modules}/`)("ws");

const report = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const socket = new WebSocket(plan.url, {
  ca: readFileSync(plan.ca),
  headers: plan.headers,
  perMessageDeflate: plan.deflate ?? true,
});

let events = 0;
let failed = false;

socket.on("unexpected-response", (_request, response) => {
  let body = "";
  response.on("data", (part) => (body += part));
  response.on("end", () => {
    report({ refused: { status: response.statusCode, headers: response.headers, body: JSON.parse(body) } });
    process.exit(0);
  });
});

socket.on("message", (data, isBinary) => {
  const message = JSON.parse(data.toString());
  if (message.type === "connected") {
    report({ said: { ...message, extensions: socket.extensions } });
    for (const words of plan.say ?? []) socket.send(JSON.stringify(words));
    return;
  }
  report({ event: message, isBinary });
  if (message.id === undefined) return;
  events += 1;
  if (plan.ack) socket.send(JSON.stringify({ type: "ack", id: message.id }));
  if (events === plan.count) {
    // What was acknowledged is on its way before the Close frame; `terminate` is a lost network.
    if (plan.crash) socket.terminate();
    else socket.close(1000);
  }
});

socket.on("ping", () => report({ ping: true }));
socket.on("error", (error) => {
  failed = true;
  report({ error: String(error) });
});
socket.on("close", (code, reason) => {
  report({ closed: { code, reason: reason.toString() } });
  process.exit(failed ? 1 : 0);
});
