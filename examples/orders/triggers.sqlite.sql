-- The shop's own triggers: an order's total and status follow from its lines.

CREATE TRIGGER order_follows_insert AFTER INSERT ON order_line_items
BEGIN
  UPDATE orders
  SET total_price = (SELECT COALESCE(ROUND(SUM(extended_price * (1 - discount) * (1 + tax)), 2), 0)
                     FROM order_line_items WHERE order_key = NEW.order_key),
      order_status = (SELECT CASE WHEN COUNT(DISTINCT line_status) = 2 THEN 'P'
                                  ELSE COALESCE(MIN(line_status), 'O') END
                      FROM order_line_items WHERE order_key = NEW.order_key)
  WHERE order_key = NEW.order_key;
END;

CREATE TRIGGER order_follows_update AFTER UPDATE ON order_line_items
BEGIN
  UPDATE orders
  SET total_price = (SELECT COALESCE(ROUND(SUM(extended_price * (1 - discount) * (1 + tax)), 2), 0)
                     FROM order_line_items WHERE order_key = NEW.order_key),
      order_status = (SELECT CASE WHEN COUNT(DISTINCT line_status) = 2 THEN 'P'
                                  ELSE COALESCE(MIN(line_status), 'O') END
                      FROM order_line_items WHERE order_key = NEW.order_key)
  WHERE order_key = NEW.order_key;
END;

CREATE TRIGGER order_follows_delete AFTER DELETE ON order_line_items
BEGIN
  UPDATE orders
  SET total_price = (SELECT COALESCE(ROUND(SUM(extended_price * (1 - discount) * (1 + tax)), 2), 0)
                     FROM order_line_items WHERE order_key = OLD.order_key),
      order_status = (SELECT CASE WHEN COUNT(DISTINCT line_status) = 2 THEN 'P'
                                  ELSE COALESCE(MIN(line_status), 'O') END
                      FROM order_line_items WHERE order_key = OLD.order_key)
  WHERE order_key = OLD.order_key;
END;
