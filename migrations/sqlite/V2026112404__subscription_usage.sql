-- Views for reporting tools (docs/reference/sql-view.md). The server itself does not read them: it takes time from
-- its own clock. They use nothing that SQLite 3.37, the first to read STRICT tables, lacks.

CREATE VIEW reporting_now (at) AS                   -- µs; the one place where a view reads the clock
    SELECT CAST(strftime('%s', 'now') AS INTEGER) * 1000000;

-- The current period of every subscription, µs. Subscriptions store their first period only; the current one is
-- computed here as src/domain/subscription.rs (`Period::window_at`) does it, and so rolls over by itself. A test
-- compares the two.
CREATE VIEW subscription_periods (tenant_id, window_start, window_end) AS
WITH
    first_periods AS (
        SELECT tenant_id, period_start, period_end, period_months, at AS now,
               strftime('%Y-%m-01', period_start / 1000000, 'unixepoch') AS month_start,
               CAST(strftime('%d', period_start / 1000000, 'unixepoch') AS INTEGER) AS day,
               period_start % 86400000000 AS time_of_day,
               -- calendar months from the first period's to the present one
               (CAST(strftime('%Y', at / 1000000, 'unixepoch') AS INTEGER)
                   - CAST(strftime('%Y', period_start / 1000000, 'unixepoch') AS INTEGER)) * 12
               + CAST(strftime('%m', at / 1000000, 'unixepoch') AS INTEGER)
               - CAST(strftime('%m', period_start / 1000000, 'unixepoch') AS INTEGER) AS months
        FROM subscriptions, reporting_now
    ),
    -- Bounds of the periods that can be the current one: the last whole number of periods, one less, one more.
    months_added AS (
        SELECT *, months - ((months % period_months) + period_months) % period_months + step * period_months AS added
        FROM first_periods, (SELECT -1 AS step UNION ALL SELECT 0 UNION ALL SELECT 1)
        WHERE period_months IS NOT NULL
    ),
    month_bounds AS (
        SELECT tenant_id, now,
               -- A day that the month lacks becomes its last day.
               (CAST(strftime('%s', month_start, added || ' months') AS INTEGER)
                   + (min(day, CAST(strftime('%d', month_start, (added + 1) || ' months', '-1 day') AS INTEGER)) - 1) * 86400
               ) * 1000000 + time_of_day AS bound
        FROM months_added
    ),
    length_starts AS (
        SELECT tenant_id, period_end - period_start AS length,
               now - (((now - period_start) % (period_end - period_start)) + (period_end - period_start))
                   % (period_end - period_start) AS start
        FROM first_periods
        WHERE period_months IS NULL
    )
SELECT tenant_id, max(CASE WHEN bound <= now THEN bound END), min(CASE WHEN bound > now THEN bound END)
FROM month_bounds
GROUP BY tenant_id
UNION ALL
SELECT tenant_id, start, start + length FROM length_starts;

-- Settled usage of every subscription's metered features in its current period.
CREATE VIEW subscription_usage
    (tenant_id, tenant_slug, plan_code, subscription_status, feature_key, unit, window_start, window_end, quantity) AS
WITH
    features AS (
        SELECT tenants.tenant_id, tenants.slug, subscriptions.plan_code, subscriptions.status,
               plan_features.feature_key, plan_features.unit, periods.window_start, periods.window_end,
               -- the whole hours inside the period: from first_hour to last_hour, excluded
               (periods.window_start + 3600000000 - 1) / 3600000000 * 3600000000 AS first_hour,
               periods.window_end / 3600000000 * 3600000000 AS last_hour
        FROM tenants
        JOIN subscriptions ON subscriptions.tenant_id = tenants.tenant_id
        JOIN subscription_periods AS periods ON periods.tenant_id = tenants.tenant_id
        JOIN plan_features ON plan_features.plan_code = subscriptions.plan_code
        WHERE tenants.deleted_at IS NULL AND plan_features.is_metered = 1
    )
SELECT
    'ten_' || lower(hex(tenant_id)), slug, plan_code, status, feature_key, unit,
    strftime('%Y-%m-%dT%H:%M:%SZ', window_start / 1000000, 'unixepoch'),
    strftime('%Y-%m-%dT%H:%M:%SZ', window_end / 1000000, 'unixepoch'),
    -- total() does not fail on a sum beyond 64 bits as sum() does, and is exact up to 2^53, where quantities end.
    CAST(
        (SELECT total(quantity) FROM usage_rollups
         WHERE usage_rollups.tenant_id = features.tenant_id AND usage_rollups.feature_key = features.feature_key
           AND dimension = 'all' AND value = '' AND hour >= first_hour AND hour < last_hour)
        -- the cut hour at the start, and, unless it is the same one, that at the end
        + (SELECT total(CASE feature_key
                    WHEN 'messages' THEN messages WHEN 'input_tokens' THEN input_tokens
                    WHEN 'output_tokens' THEN output_tokens WHEN 'cost' THEN cost
                    ELSE json_extract(extra, '$."' || feature_key || '"') END)
           FROM usage_events
           WHERE usage_events.tenant_id = features.tenant_id AND admitted_at >= window_start AND admitted_at < min(first_hour, window_end))
        + (SELECT total(CASE feature_key
                    WHEN 'messages' THEN messages WHEN 'input_tokens' THEN input_tokens
                    WHEN 'output_tokens' THEN output_tokens WHEN 'cost' THEN cost
                    ELSE json_extract(extra, '$."' || feature_key || '"') END)
           FROM usage_events
           WHERE usage_events.tenant_id = features.tenant_id AND admitted_at >= max(first_hour, last_hour) AND admitted_at < window_end)
        AS INTEGER)
FROM features;
