-- Views for reporting tools (docs/reference/sql-view.md). The server itself does not read them: it takes time from
-- its own clock.

CREATE VIEW reporting_now (at) AS                   -- µs; the one place where a view reads the clock
    SELECT (extract(epoch FROM date_trunc('second', now())) * 1000000)::bigint;

-- The instant `micros`, µs since 1970, as a timestamp in UTC, and back.
CREATE FUNCTION reporting_time(micros BIGINT) RETURNS timestamp LANGUAGE sql IMMUTABLE AS $$
    SELECT timestamp '1970-01-01' + (micros / 86400000000) * interval '1 day'
        + (micros % 86400000000) * interval '1 microsecond'
$$;
CREATE FUNCTION reporting_micros(at timestamp) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS $$
    SELECT (extract(epoch FROM at) * 1000000)::bigint
$$;

-- The current period of every subscription, µs. Subscriptions store their first period only; the current one is
-- computed here as src/domain/subscription.rs (`Period::window_at`) does it, and so rolls over by itself. A test
-- compares the two.
CREATE VIEW subscription_periods (tenant_id, window_start, window_end) AS
WITH
    first_periods AS (
        SELECT tenant_id, period_start, period_end, period_months, at AS now, reporting_time(period_start) AS begins,
               -- calendar months from the first period's to the present one
               ((extract(year FROM reporting_time(at)) - extract(year FROM reporting_time(period_start))) * 12
                   + extract(month FROM reporting_time(at)) - extract(month FROM reporting_time(period_start)))::integer
                   AS months
        FROM subscriptions, reporting_now
    ),
    -- Bounds of the periods that can be the current one: the last whole number of periods, one less, one more.
    months_added AS (
        SELECT *, (months - ((months % period_months) + period_months) % period_months + step * period_months)::integer
                   AS added
        FROM first_periods, (VALUES (-1), (0), (1)) AS steps (step)
        WHERE period_months IS NOT NULL
    ),
    month_bounds AS (
        -- A day that the month lacks becomes its last day.
        SELECT tenant_id, now, reporting_micros(begins + make_interval(months => added)) AS bound
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

-- What an event used of a feature.
CREATE FUNCTION reporting_used(event usage_events, feature_key TEXT) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE feature_key
        WHEN 'messages' THEN event.messages WHEN 'input_tokens' THEN event.input_tokens
        WHEN 'output_tokens' THEN event.output_tokens WHEN 'cost' THEN event.cost
        ELSE (event.extra::jsonb ->> feature_key)::numeric END
$$;

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
        WHERE tenants.deleted_at IS NULL AND plan_features.is_metered
    ),
    sums AS (
        SELECT features.*,
            coalesce((SELECT sum(quantity) FROM usage_rollups
             WHERE usage_rollups.tenant_id = features.tenant_id AND usage_rollups.feature_key = features.feature_key
               AND dimension = 'all' AND value = '' AND hour >= first_hour AND hour < last_hour), 0)
            -- the cut hour at the start, and, unless it is the same one, that at the end
            + coalesce((SELECT sum(reporting_used(usage_events, features.feature_key)) FROM usage_events
               WHERE usage_events.tenant_id = features.tenant_id
                 AND admitted_at >= window_start AND admitted_at < least(first_hour, window_end)), 0)
            + coalesce((SELECT sum(reporting_used(usage_events, features.feature_key)) FROM usage_events
               WHERE usage_events.tenant_id = features.tenant_id
                 AND admitted_at >= greatest(first_hour, last_hour) AND admitted_at < window_end), 0) AS quantity
        FROM features
    )
SELECT
    'ten_' || replace(tenant_id::text, '-', ''), slug, plan_code, status, feature_key, unit,
    to_char(reporting_time(window_start), 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
    to_char(reporting_time(window_end), 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
    -- A sum may pass 64 bits; quantities end at 2^53.
    least(greatest(quantity, -9223372036854775807), 9223372036854775807)::bigint
FROM sums;
