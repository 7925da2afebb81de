-- The shop's own trigger: an order's total and status follow from its lines.

CREATE FUNCTION order_follows_lines() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE orders
  SET (total_price, order_status) = (
    SELECT COALESCE(ROUND(SUM(extended_price * (1 - discount) * (1 + tax)), 2), 0),
           CASE WHEN COALESCE(MIN(line_status), 'O') <> COALESCE(MAX(line_status), 'O') THEN 'P'
                ELSE COALESCE(MIN(line_status), 'O') END
    FROM order_line_items WHERE order_key = COALESCE(NEW.order_key, OLD.order_key))
  WHERE order_key = COALESCE(NEW.order_key, OLD.order_key);
  RETURN NULL;
END $$;

CREATE TRIGGER order_follows_lines AFTER INSERT OR UPDATE OR DELETE ON order_line_items
FOR EACH ROW EXECUTE FUNCTION order_follows_lines();
