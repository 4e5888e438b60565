-- A shop that empties its table of orders, or starts its numbers again, gives a new order the id of an earlier one.
-- What terminals have said about the earlier order says nothing about the new one.
GRANT DELETE ON :"schema".pos_order_terminals TO posd;
