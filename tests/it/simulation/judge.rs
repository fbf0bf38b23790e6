//! What is compared: every event, every total, every limit as it is shown, and what went past limits.

use http::StatusCode;
use serde_json::Value;
use tollgate::domain::{
    limit::Scope,
    time::Timestamp,
    usage::UsageEvent,
    window::{Window, WindowKind},
};

use super::{
    model::{FEATURES, Placed, Usage, Who},
    play::{Step, World, ensure},
    world::{TEMPLATE, everyone, feature, tenant_ref},
};

impl World {
    /// What one of those who may ask is shown, after every operation.
    pub(super) fn glance(&self) -> Step {
        let turn = self.model.events.len() + self.model.holds.len() + usize::from(self.is_away());
        let who = everyone()
            .nth(turn % everyone().count())
            .expect("there is somebody");
        self.compare_usage(who)
    }

    /// Everything, once the store has all of it.
    pub(super) fn check(&mut self) -> Step {
        if self.is_away() {
            return Ok(());
        }
        let life = self.life();
        life.rt
            .block_on(life.app.recorder.flush())
            .map_err(|error| error.to_string())?;
        self.compare_events()?;
        self.compare_totals()?;
        for who in everyone() {
            self.compare_usage(who)?;
        }
        self.compare_overshoot()
    }

    /// After a crash: of what nobody was told, each event is there whole or not at all.
    pub(super) fn resolve(&mut self, unsure: Vec<(String, Usage)>) -> Step {
        let life = self.life();
        let events = life.app.recorder.journal().last_seq().0;
        life.rt
            .block_on(life.app.recorder.flush())
            .map_err(|error| error.to_string())?;
        let stored = self.stored()?;
        for (name, usage) in unsure {
            if stored.iter().any(|event| event.request_id == name) {
                self.model.events.insert(name, usage);
            }
        }
        self.events = events;
        self.compare_events()
    }

    fn stored(&self) -> Result<Vec<UsageEvent>, String> {
        let life = self.life();
        let mut events = Vec::new();
        for tenant in &TEMPLATE.tenants {
            let found = life
                .rt
                .block_on(life.app.store.list_events(*tenant, None, 100_000));
            events.extend(found.map_err(|error| error.to_string())?);
        }
        Ok(events)
    }

    /// No event lost, none twice, none changed.
    fn compare_events(&self) -> Step {
        let pending = self.life().app.recorder.journal().pending();
        ensure!(
            pending == 0,
            "{pending} events wait in the journal after a flush"
        );
        let mut expected = self.model.events.clone();
        for event in self.stored()? {
            let id = event.event_id.to_string();
            let name = self.reported.get(&id).unwrap_or(&event.request_id);
            let usage = expected.remove(name);
            let usage = usage.ok_or_else(|| {
                format!("{name} is in the store and must not be, or is there twice")
            })?;
            ensure!(
                usage == read(&event),
                "{name} is {event:?}, and must be {usage:?}"
            );
        }
        ensure!(expected.is_empty(), "lost: {expected:?}");
        let life = self.life();
        let differences = life
            .rt
            .block_on(life.app.store.check_rollups())
            .map_err(|error| error.to_string())?;
        ensure!(
            differences.is_empty(),
            "rollups differ from events: {differences:?}"
        );
        Ok(())
    }

    /// Totals over windows that whole hours make up, and over one that cuts them.
    fn compare_totals(&self) -> Step {
        let life = self.life();
        let features: Vec<_> = (0..FEATURES.len()).map(feature).collect();
        for tenant in 0..TEMPLATE.tenants.len() {
            let policy = life
                .rt
                .block_on(life.app.reports.policy(&tenant_ref(tenant)));
            let policy = policy.map_err(|error| error.to_string())?;
            let day =
                super::model::window(WindowKind::Day, self.model.now, &self.model.tenants[tenant]);
            let cut = (day.0 + 1_234_567, self.model.now + 1);
            for (start, end) in [day, (0, day.1), cut] {
                if end <= start {
                    continue;
                }
                let window =
                    Window::new(Timestamp::from_micros(start), Timestamp::from_micros(end))
                        .unwrap();
                let totals = life
                    .rt
                    .block_on(life.app.reports.totals(&policy, &features, window, None));
                let totals = totals.map_err(|error| error.to_string())?;
                for (index, total) in totals.totals.iter().enumerate() {
                    let must_be = self.model.used_between(tenant, index, (start, end));
                    let is = total.quantity.get();
                    ensure!(
                        is == must_be,
                        "total {} of {tenant} in {window:?}: {is} for {must_be}",
                        FEATURES[index]
                    );
                }
            }
        }
        Ok(())
    }

    /// `/api/v1/usage` as it is shown to `who`.
    pub(super) fn compare_usage(&self, who: Who) -> Step {
        let key = who.key.expect("who asks has a key");
        let (status, body) = self
            .life()
            .get((who.tenant, key, who.user), "/api/v1/usage");
        if self.is_away() && status == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(());
        }
        ensure!(
            status == StatusCode::OK,
            "/usage of {who:?}: {status} {body}"
        );
        let items = body["features"]
            .as_array()
            .ok_or_else(|| format!("no features: {body}"))?;
        let limits = self.model.limits(who);
        let limited = items
            .iter()
            .filter(|item| !item["hard_limit"].is_null())
            .count();
        ensure!(
            limited == limits.len(),
            "/usage of {who:?} must show {limits:?}, and shows {body}"
        );
        for placed in limits {
            let item = items.iter().find(|item| is_of(item, &placed));
            let item =
                item.ok_or_else(|| format!("/usage of {who:?} does not show {placed:?}: {body}"))?;
            let (used, held) = self.model.counted(who, &placed);
            let shown =
                ["used", "reserved", "hard_limit"].map(|field| item[field].as_i64().unwrap_or(-1));
            // Corrections may take away more than was used: nothing is shown below zero.
            let is_below_zero = item["percent"].as_f64().is_some_and(|it| it < 0.0);
            ensure!(!is_below_zero, "{placed:?} is shown as {item}");
            ensure!(
                shown == [used.max(0), held, placed.hard],
                "{who:?}, {placed:?}: {used} used, {held} held, and shown {item}"
            );
            let start = item["window_start"].as_str().unwrap_or_default();
            let end = item["window_end"].as_str();
            let is_right = start == time(placed.window.0)
                && (end.map_or(placed.window.1 == i64::MAX, |end| {
                    end == time(placed.window.1)
                }));
            ensure!(is_right, "{placed:?} is shown as {item}");
        }
        Ok(())
    }

    /// What the providers' own deviation took past limits is counted, neither more nor less.
    fn compare_overshoot(&self) -> Step {
        let Some((least, most)) = self.overshoot else {
            return Ok(());
        };
        let text = self.life().app.metrics.render();
        for (index, name) in FEATURES.iter().enumerate() {
            let series =
                format!(r#"usage_overshoot_total{{cause="provider",feature_key="{name}"}} "#);
            let counted = text.lines().find_map(|line| line.strip_prefix(&series));
            let counted: i64 = counted.map_or(0, |text| text.parse().unwrap_or(-1));
            ensure!(
                (least[index]..=most[index]).contains(&counted),
                "overshoot of {name} is counted as {counted}, and is {} to {}",
                least[index],
                most[index]
            );
        }
        Ok(())
    }
}

fn is_of(item: &Value, placed: &Placed) -> bool {
    let scope = match placed.limit.scope {
        Scope::Tenant => "tenant",
        Scope::Key => "key",
        Scope::User => "user",
    };
    item["feature_key"] == FEATURES[placed.limit.feature]
        && item["scope"] == scope
        && item["window"] == placed.limit.window.as_str()
}

fn time(micros: i64) -> String {
    Timestamp::from_micros(micros).to_string()
}

/// An event of the store as the model sees it.
fn read(event: &UsageEvent) -> Usage {
    let position = |id| TEMPLATE.tenants.iter().position(|tenant| *tenant == id);
    let tenant = position(event.tenant_id).expect("a tenant of the template");
    let keys = &TEMPLATE.keys[tenant];
    let user = everyone()
        .map(|who| who.user)
        .find(|user| *user == event.user);
    Usage {
        who: Who {
            tenant,
            key: event.key_id.map(|id| {
                keys.iter()
                    .position(|(key, _)| *key == id)
                    .expect("a key of its own")
            }),
            user: user.expect("a user of the simulation"),
        },
        at: event.admitted_at.micros(),
        amounts: [0, 1, 2].map(|index| event.quantities.of(&feature(index)).get()),
        estimated: event.estimated,
    }
}
