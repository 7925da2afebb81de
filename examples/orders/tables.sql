-- The tables of a shop, as its own program made them: PostgreSQL, SQLite and MariaDB take them as they are.
-- They follow the public TPC-H specification. The columns below "the shop's own" stay in the shop.

CREATE TABLE customers (
  customer_key     BIGINT        NOT NULL,
  tenant_id        VARCHAR(64)   NOT NULL,
  name             VARCHAR(25)   NOT NULL,
  address          VARCHAR(40)   NOT NULL,
  nation           VARCHAR(25)   NOT NULL,
  phone            VARCHAR(15)   NOT NULL,
  account_balance  DECIMAL(15,2) NOT NULL,
  market_segment   VARCHAR(10)   NOT NULL,
  comment          VARCHAR(117),
  -- the shop's own
  credit_limit     DECIMAL(15,2),
  known_since      TIMESTAMP     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (customer_key),
  UNIQUE (tenant_id, name)
);

CREATE TABLE products (
  tenant_id        VARCHAR(64)   NOT NULL,
  sku              VARCHAR(20)   NOT NULL,
  name             VARCHAR(55)   NOT NULL,
  manufacturer     VARCHAR(25)   NOT NULL,
  brand            VARCHAR(10)   NOT NULL,
  type             VARCHAR(25)   NOT NULL,
  size             INTEGER       NOT NULL,
  container        VARCHAR(10)   NOT NULL,
  retail_price     DECIMAL(15,2) NOT NULL,
  available        BOOLEAN       NOT NULL DEFAULT TRUE,
  comment          VARCHAR(23),
  -- the shop's own
  purchase_price   DECIMAL(15,2),
  PRIMARY KEY (tenant_id, sku)
);

CREATE TABLE orders (
  order_key        BIGINT        NOT NULL,
  tenant_id        VARCHAR(64)   NOT NULL,
  customer_key     BIGINT        NOT NULL,
  order_status     VARCHAR(1)    NOT NULL DEFAULT 'O' CHECK (order_status IN ('O', 'F', 'P')),
  total_price      DECIMAL(15,2) NOT NULL DEFAULT 0,
  order_date       DATE          NOT NULL,
  order_priority   VARCHAR(15)   NOT NULL,
  ship_priority    INTEGER       NOT NULL DEFAULT 0,
  comment          VARCHAR(79),
  -- the shop's own
  clerk            VARCHAR(15),
  placed_at        TIMESTAMP     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (order_key),
  FOREIGN KEY (customer_key) REFERENCES customers (customer_key)
);
CREATE INDEX orders_of_customer ON orders (customer_key);
CREATE INDEX orders_by_date ON orders (tenant_id, order_date);

CREATE TABLE order_line_items (
  order_key        BIGINT        NOT NULL,
  line_number      INTEGER       NOT NULL,
  tenant_id        VARCHAR(64)   NOT NULL,
  sku              VARCHAR(20)   NOT NULL,
  quantity         DECIMAL(15,2) NOT NULL,
  extended_price   DECIMAL(15,2) NOT NULL,
  discount         DECIMAL(15,2) NOT NULL DEFAULT 0,
  tax              DECIMAL(15,2) NOT NULL DEFAULT 0,
  return_flag      VARCHAR(1)    NOT NULL DEFAULT 'N' CHECK (return_flag IN ('R', 'A', 'N')),
  line_status      VARCHAR(1)    NOT NULL DEFAULT 'O' CHECK (line_status IN ('O', 'F')),
  ship_date        DATE,
  commit_date      DATE          NOT NULL,
  receipt_date     DATE,
  ship_mode        VARCHAR(10)   NOT NULL,
  comment          VARCHAR(44),
  -- the shop's own
  ship_instructions VARCHAR(25),
  PRIMARY KEY (order_key, line_number),
  FOREIGN KEY (order_key) REFERENCES orders (order_key),
  FOREIGN KEY (tenant_id, sku) REFERENCES products (tenant_id, sku)
);
CREATE INDEX order_line_items_of_product ON order_line_items (tenant_id, sku);
