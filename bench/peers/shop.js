/* node shop.js MODE PORT CERTIFICATE KEY [CONNECTION]: a server that a shop could write instead of using posd.
 *
 *   alone     tills and publishing, without keys and database: Node `ws` by itself
 *   pool      keys, and PostgreSQL with a pool of eight connections: COMMIT, then push, then answer
 *   deployed  keys, and a new connection to PostgreSQL for each statement
 *
 * It is one process with the addresses and the JSON of posd. `id` is a counter in memory for each tenant:
 * unlike that of posd it is not durable, and a till cannot resume after it. CONNECTION is JSON for `pg`.
 */
"use strict";
const { createHash, randomUUID } = require("node:crypto");
const fs = require("node:fs");
const https = require("node:https");
const { WebSocketServer } = require("ws");
const pg = require("pg");

const [mode, port, certificate, privateKey, connection] = process.argv.slice(2);
const KEY_SECONDS = 10; // How long a key is cached, as in posd.

const options = connection ? JSON.parse(connection) : null;
const pool = mode === "pool" ? new pg.Pool({ ...options, max: 8 }) : null;

async function query(text, values) {
    if (pool) return pool.query(text, values);
    const client = new pg.Client(options);
    await client.connect();
    try {
        return await client.query(text, values);
    } finally {
        await client.end();
    }
}

/* Tenants by slug: id, connected tills, last id. */
const tenants = new Map();

function tenantOf(slug) {
    let tenant = tenants.get(slug);
    if (!tenant) tenants.set(slug, (tenant = { slug, tills: new Set(), last: 0 }));
    return tenant;
}

const keys = new Map();

/* Return the rights of a key for this tenant: {tenantId, kind}, or undefined. */
async function authenticate(request, slug) {
    const given = request.headers["x-api-key"] || "";
    const hash = createHash("sha256").update(given).digest();
    const name = `${slug} ${hash.toString("base64")}`;
    const known = keys.get(name);
    if (known && known.until > Date.now()) return known;
    const { rows } = await query({
        name: "key",
        text: `SELECT t.id AS tenant, k.kind FROM tenants AS t JOIN api_keys AS k
                   ON k.tenant = t.id OR k.tenant IS NULL WHERE t.slug = $1 AND k.sha256 = $2`,
        values: [slug, hash],
    });
    if (!rows.length) return undefined;
    const found = { tenantId: rows[0].tenant, kind: rows[0].kind, until: Date.now() + KEY_SECONDS * 1000 };
    keys.set(name, found);
    return found;
}

/* Send a text frame, which is encoded once, to all tills of a tenant. */
function push(tenant, type, data) {
    const text = JSON.stringify({
        type,
        id: ++tenant.last,
        tenant: tenant.slug,
        timestamp: new Date().toISOString(),
        data,
    });
    const bytes = Buffer.from(text);
    for (const till of tenant.tills) till.send(bytes, { binary: false });
}

function answer(response, status, body) {
    const bytes = Buffer.from(JSON.stringify(body));
    response.writeHead(status, {
        "Content-Type": "application/json",
        "Content-Length": bytes.length,
    });
    response.end(bytes);
}

async function publish(tenant, key, body, response) {
    const events = body.events || [body];
    if (mode !== "alone")
        await query({
            name: "publish",
            text: `INSERT INTO events (tenant, event_type, event_data)
                       SELECT $1, * FROM unnest($2::text[], $3::json[])`,
            values: [
                key.tenantId,
                events.map((event) => event.type),
                events.map((event) => JSON.stringify(event.data)),
            ],
        });
    for (const event of events) push(tenant, event.type, event.data);
    const sent = { success: true, connections: tenant.tills.size };
    answer(response, 201, body.events ? { ...sent, ids: events.map(() => tenant.last) } : sent);
}

async function balance(tenant, key, number, response) {
    const { rows } = await query({
        name: "balance",
        text: `SELECT card_number AS "cardNumber", balance::float8 AS balance, status FROM gift_cards
                   WHERE tenant = $1 AND card_number = $2`,
        values: [key.tenantId, number.toUpperCase()],
    });
    if (rows.length) answer(response, 200, { success: true, ...rows[0], data: rows[0] });
    else answer(response, 404, { success: false, code: "card_not_found" });
}

/* As in posd, the movement and its event are stored before the tills and the caller are notified. */
async function deduct(tenant, key, number, body, request, response) {
    const client = pool ? await pool.connect() : new pg.Client(options);
    if (!pool) await client.connect();
    let moved;
    try {
        await client.query("BEGIN");
        ({ rows: [moved] } = await client.query({
            name: "deduct",
            text: `UPDATE gift_cards SET balance = balance - $3
                       WHERE tenant = $1 AND card_number = $2 AND balance >= $3 AND status = 'active'
                       RETURNING id, balance::float8 AS balance`,
            values: [key.tenantId, number.toUpperCase(), body.amount],
        }));
        if (moved) {
            await client.query({
                name: "movement",
                text: `INSERT INTO movements (card, amount, balance, idempotency_key) VALUES ($1, -$2::numeric, $3, $4)`,
                values: [moved.id, body.amount, moved.balance, request.headers["idempotency-key"]],
            });
            moved.event = { cardNumber: number, balance: moved.balance, change: -body.amount };
            await client.query({
                name: "event",
                text: "INSERT INTO events (tenant, event_type, event_data) VALUES ($1, 'gift_card_updated', $2)",
                values: [key.tenantId, JSON.stringify(moved.event)],
            });
        }
        await client.query("COMMIT");
    } finally {
        if (pool) client.release();
        else await client.end();
    }
    if (!moved) return answer(response, 400, { success: false, code: "insufficient_balance" });
    push(tenant, "gift_card_updated", moved.event);
    return answer(response, 200, { success: true, newBalance: moved.balance, amountDeducted: body.amount });
}

async function pending(tenant, key, response) {
    const { rows } = await query({
        name: "pending",
        text: `SELECT snapshot FROM orders WHERE tenant = $1 AND NOT printed ORDER BY created_at LIMIT 50`,
        values: [key.tenantId],
    });
    answer(response, 200, { success: true, orders: rows.map((row) => row.snapshot), count: rows.length });
}

async function serve(request, response) {
    const [, , slug, ...rest] = request.url.split("/");
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const key = mode === "alone" ? {} : await authenticate(request, slug);
    if (!key) return answer(response, 401, { success: false, code: "unauthorized" });
    const tenant = tenantOf(slug);
    const road = `${request.method} ${rest[0]}`;
    const body = chunks.length ? JSON.parse(Buffer.concat(chunks)) : {};
    if (road === "POST events") return publish(tenant, key, body, response);
    if (road === "GET gift-cards") return balance(tenant, key, rest[1], response);
    if (road === "POST gift-cards") return deduct(tenant, key, rest[1], body, request, response);
    if (road === "GET orders") return pending(tenant, key, response);
    if (road === "GET health") return answer(response, 200, { success: true });
    return answer(response, 404, { success: false, code: "not_found" });
}

const server = https.createServer({
    cert: fs.readFileSync(certificate),
    key: fs.readFileSync(privateKey),
    minVersion: "TLSv1.3",
    noDelay: true,
});
server.on("request", (request, response) => {
    serve(request, response).catch((error) => {
        console.error(error);
        answer(response, 500, { success: false, code: "internal_error" });
    });
});

const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
server.on("upgrade", async (request, socket, head) => {
    const slug = request.url.split("?")[0].split("/")[3];
    const key = mode === "alone" ? {} : await authenticate(request, slug);
    if (!key) return socket.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    const tenant = tenantOf(slug);
    sockets.handleUpgrade(request, socket, head, (till) => {
        till.on("error", () => till.terminate());
        till.on("close", () => tenant.tills.delete(till));
        tenant.tills.add(till);
        till.send(
            JSON.stringify({
                type: "connected",
                tenant: slug,
                timestamp: new Date().toISOString(),
                connectionId: randomUUID(),
                deviceId: request.headers["x-device-id"] || null,
                lastEventId: tenant.last,
                resumedFrom: null,
            }),
        );
    });
});
server.listen(Number(port), "127.0.0.1", 4096);
process.on("SIGTERM", () => process.exit(0));
