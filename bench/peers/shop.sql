-- The tables of the peers: the minimum for a shop with the same requests.
CREATE TABLE tenants (id integer PRIMARY KEY, slug text NOT NULL UNIQUE);
CREATE TABLE api_keys (sha256 bytea NOT NULL, tenant integer REFERENCES tenants, kind text NOT NULL);
CREATE INDEX ON api_keys (sha256);
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant integer NOT NULL,
    event_type text NOT NULL,
    event_data json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON events (tenant, id);
CREATE TABLE orders (
    tenant integer NOT NULL,
    order_id text NOT NULL,
    snapshot json NOT NULL,
    printed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, order_id)
);
CREATE INDEX ON orders (tenant, created_at) WHERE NOT printed;
CREATE TABLE gift_cards (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant integer NOT NULL,
    card_number text NOT NULL,
    balance numeric(12, 2) NOT NULL,
    status text NOT NULL DEFAULT 'active',
    UNIQUE (tenant, card_number)
);
CREATE TABLE movements (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card bigint NOT NULL REFERENCES gift_cards,
    amount numeric(12, 2) NOT NULL,
    balance numeric(12, 2) NOT NULL,
    idempotency_key text UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
