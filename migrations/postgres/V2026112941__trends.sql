-- What the whole gate did by hour, so that the admin page's overview need not sum all tenants.

CREATE TABLE usage_trends (                         -- sums of usage_rollups of dimension 'all' over all tenants
    feature_key TEXT COLLATE "C" NOT NULL,
    hour        BIGINT NOT NULL,                                    -- µs; as in usage_rollups
    quantity    BIGINT NOT NULL,
    PRIMARY KEY (feature_key, hour)
);
-- A sum may pass 64 bits; quantities end at 2^53.
INSERT INTO usage_trends (feature_key, hour, quantity)
    SELECT feature_key, hour, least(greatest(sum(quantity), -4611686018427387903), 4611686018427387903)::bigint FROM usage_rollups WHERE dimension = 'all'
    GROUP BY feature_key, hour;

CREATE TABLE decision_trends (                      -- how the guard decided; a crash loses the last few seconds
    hour       BIGINT NOT NULL PRIMARY KEY,                         -- µs; the start of the hour in which it was decided
    allow      BIGINT NOT NULL,
    soft_limit BIGINT NOT NULL,                                     -- let by with a warning
    hard_limit BIGINT NOT NULL                                      -- refused
);
