-- What the whole gate did by hour, so that the admin page's overview need not sum all tenants.

CREATE TABLE usage_trends (                         -- sums of usage_rollups of dimension 'all' over all tenants
    feature_key TEXT    NOT NULL,
    hour        INTEGER NOT NULL,                   -- µs; as in usage_rollups
    quantity    INTEGER NOT NULL,
    PRIMARY KEY (feature_key, hour)
) STRICT, WITHOUT ROWID;
-- total() does not fail on a sum beyond 64 bits as sum() does, and is exact up to 2^53, where quantities end.
INSERT INTO usage_trends (feature_key, hour, quantity)
    SELECT feature_key, hour, CAST(total(quantity) AS INTEGER) FROM usage_rollups WHERE dimension = 'all'
    GROUP BY feature_key, hour;

CREATE TABLE decision_trends (                      -- how the guard decided; a crash loses the last few seconds
    hour       INTEGER NOT NULL PRIMARY KEY,        -- µs; the start of the hour in which it was decided
    allow      INTEGER NOT NULL,
    soft_limit INTEGER NOT NULL,                    -- let by with a warning
    hard_limit INTEGER NOT NULL                     -- refused
) STRICT, WITHOUT ROWID;
