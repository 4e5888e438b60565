-- The tenant's orders as posd knows them, and what its terminals have said about them: views as in 001_stream.sql.

CREATE VIEW :"schema".pos_orders WITH (security_barrier) AS
    SELECT o.order_id, o.snapshot, o.status, o.version, o.print_status, o.print_reason, o.payment_status,
           o.device_id, o.received_at, o.accepted_at, o.printed_at, o.created_at, o.updated_at, o.first_seq,
           o.last_seq, o.pushed_at, o.paid_at
      FROM dinedesk_main.pos_orders AS o WHERE o.tenant_id = :tenant_id;

CREATE VIEW :"schema".pos_order_terminals WITH (security_barrier) AS
    SELECT t.order_id, t.device_id, t.received_at, t.accepted_at, t.printed_at, t.failed_at
      FROM dinedesk_main.pos_order_terminals AS t WHERE t.tenant_id = :tenant_id;

GRANT SELECT ON :"schema".pos_orders, :"schema".pos_order_terminals TO posd;
