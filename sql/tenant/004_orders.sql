-- How far each order has come towards its tills: where its events stand in the stream, when the first one was
-- written to a till's socket, and which terminal has said what about it.

ALTER TABLE :"schema".pos_orders
    -- The positions of the first and of the last event about the order; NULL while none has a position,
    -- since all of them were too large for tills.
    ADD COLUMN first_seq bigint,
    ADD COLUMN last_seq bigint,
    ADD COLUMN pushed_at timestamptz,
    -- When a till said that it was paid.
    ADD COLUMN paid_at timestamptz;

UPDATE :"schema".pos_orders AS o SET first_seq = e.first_seq, last_seq = e.last_seq
  FROM (SELECT event_data ->> 'orderId' AS order_id, min(seq) AS first_seq, max(seq) AS last_seq
          FROM :"schema".pos_events
         WHERE seq IS NOT NULL AND event_type IN ('new_order', 'order_updated') GROUP BY 1) AS e
 WHERE o.order_id = e.order_id;

-- What each terminal has said about an order, when it did so for the first time.
CREATE TABLE :"schema".pos_order_terminals (
    order_id text NOT NULL REFERENCES :"schema".pos_orders ON DELETE CASCADE,
    device_id text NOT NULL CHECK (device_id <> '' AND char_length(device_id) <= 128),
    received_at timestamptz NOT NULL,
    accepted_at timestamptz,
    printed_at timestamptz,
    failed_at timestamptz,
    PRIMARY KEY (order_id, device_id)
);
GRANT SELECT, INSERT, UPDATE ON :"schema".pos_order_terminals TO posd;

-- Orders that are still to be made: what a till asks for that may have missed some. In a shop whose tills never
-- say that they have printed, the orders of all times would be in here, were it not for their status. The
-- words are those of posd.orders.FINAL_STATUSES; a test compares them.
DROP INDEX :"schema".pos_orders_unprinted;
CREATE INDEX pos_orders_open ON :"schema".pos_orders (created_at)
 WHERE print_status <> 'printed' AND status <> ALL ('{abandoned,canceled,cancelled,closed,collected,complete,completed,declined,delivered,expired,failed,fulfilled,picked_up,refunded,rejected,served,void,voided}'::text[]);

-- An order is in one of these two: where posd looks for those that were sent meanwhile, or acknowledged, and
-- for the last one that a till has confirmed.
CREATE INDEX pos_orders_unreceived ON :"schema".pos_orders (print_status, first_seq) WHERE received_at IS NULL;
CREATE INDEX pos_orders_received ON :"schema".pos_orders (first_seq) WHERE received_at IS NOT NULL;
