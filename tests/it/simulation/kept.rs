//! Reservations of applications that call a model themselves: made, settled once, given back, expired, and held again
//! after any end of the process.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    model::{Amounts, Decision, FEATURES, Usage, Who},
    play::{Step, World, ensure},
    world::{KEYS_USER, USERS},
};

const PATH: &str = "/api/v1/usage/reservations";

/// A reservation that was made.
pub(super) struct Kept {
    name: String,
    id: String,
    who: Who,
    at: i64,
    expires_at: i64,
    amounts: Amounts,
    /// By which idempotency key it was settled.
    settled: Option<usize>,
    is_released: bool,
}

impl Kept {
    /// Whether it holds something at `now`.
    fn is_open(&self, now: i64) -> bool {
        self.settled.is_none() && !self.is_released && now < self.expires_at
    }

    fn usage(&self, amounts: Amounts) -> Usage {
        Usage {
            who: self.who,
            at: self.at,
            amounts,
            estimated: false,
        }
    }

    fn owner(&self) -> (usize, usize, &'static str) {
        (
            self.who.tenant,
            self.who.key.expect("it was reserved with a key"),
            self.who.user,
        )
    }

    fn path(&self, action: &str) -> String {
        format!("{PATH}/{}{action}", self.id)
    }
}

fn named(amounts: Amounts) -> Value {
    let some = FEATURES.iter().zip(amounts).filter(|(_, it)| *it > 0);
    let named: Map<String, Value> = some
        .map(|(name, it)| ((*name).to_owned(), json!(it)))
        .collect();
    Value::Object(named)
}

impl World {
    pub(super) fn reserve(
        &mut self,
        (tenant, key, user): (usize, usize, usize),
        mut amounts: Amounts,
        seconds: i64,
    ) -> Step {
        if amounts == [0; 3] {
            amounts[0] = 1;
        }
        let name = format!("kept-{}", self.next);
        self.next += 1;
        let user = if key == 1 { KEYS_USER } else { USERS[user] };
        let who = Who {
            tenant,
            key: Some(key),
            user,
        };
        let expected = self.model.decide_exactly(who, amounts);
        let body = json!({"quantities": named(amounts), "ttl_seconds": seconds});
        let (status, answer) = self.life().post((tenant, key, user), &name, PATH, &body);
        let code = answer["error"]["code"].as_str().unwrap_or_default();
        let is_right = match expected {
            _ if self.is_away() && status == StatusCode::SERVICE_UNAVAILABLE => return Ok(()),
            Decision::Held(_) => {
                status == StatusCode::CREATED && answer["granted"] == body["quantities"]
            }
            Decision::Spent => {
                status == StatusCode::TOO_MANY_REQUESTS && code == "usage_limit_exceeded"
            }
            Decision::Reserved => {
                status == StatusCode::TOO_MANY_REQUESTS && code == "usage_limit_reserved"
            }
            Decision::Inactive => status == StatusCode::PAYMENT_REQUIRED,
        };
        ensure!(
            is_right,
            "{name} of {who:?} for {amounts:?} must be {expected:?}, but is {status} {answer}"
        );
        if status != StatusCode::CREATED {
            return Ok(());
        }
        let (at, second) = (self.model.now, 1_000_000);
        let end = at + seconds * second;
        let kept = Kept {
            id: answer["reservation_id"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            who,
            at,
            expires_at: end + (second - end % second) % second,
            amounts,
            settled: None,
            is_released: false,
            name,
        };
        self.model
            .holds
            .insert(kept.name.clone(), kept.usage(amounts));
        self.kept.push(kept);
        Ok(())
    }

    pub(super) fn settle_kept(&mut self, which: usize, amounts: Amounts, key: usize) -> Step {
        if self.kept.is_empty() {
            return Ok(());
        }
        let which = which % self.kept.len();
        let (status, answer) = self.send_settle(which, amounts, key);
        let kept = &mut self.kept[which];
        let is_right = match kept.settled {
            None => status == StatusCode::OK,
            Some(before) if before == key => status == StatusCode::OK,
            Some(_) => status == StatusCode::CONFLICT,
        };
        if self.is_away {
            ensure!(
                !status.is_success(),
                "{} is settled without a store: {answer}",
                kept.name
            );
            return Ok(());
        }
        ensure!(
            is_right,
            "{}, settled by {:?}, is settled by {key}: {status} {answer}",
            kept.name,
            kept.settled
        );
        if kept.settled.is_none() {
            self.note_settled(which, amounts, key);
        }
        Ok(())
    }

    fn send_settle(&self, which: usize, amounts: Amounts, key: usize) -> (StatusCode, Value) {
        let kept = &self.kept[which];
        let body = json!({"quantities": named(amounts), "idempotency_key": format!("key-{key}")});
        // Its own name stays that of the reservation: the event is the reservation's.
        self.life()
            .post(kept.owner(), "settling", &kept.path("/settle"), &body)
    }

    fn note_settled(&mut self, which: usize, amounts: Amounts, key: usize) {
        let kept = &mut self.kept[which];
        kept.settled = Some(key);
        self.events += 1;
        self.model.holds.remove(&kept.name);
        self.model
            .events
            .insert(kept.name.clone(), kept.usage(amounts));
    }

    pub(super) fn release_kept(&mut self, which: usize) -> Step {
        if self.kept.is_empty() || self.is_away {
            return Ok(());
        }
        let which = which % self.kept.len();
        let kept = &self.kept[which];
        let is_open = kept.is_open(self.model.now);
        if !is_open && kept.settled.is_none() {
            return Ok(()); // what is said of one that has expired is not told
        }
        let status = self.life().delete(kept.owner(), &kept.path(""));
        let must_be = if is_open {
            StatusCode::NO_CONTENT
        } else {
            StatusCode::CONFLICT
        };
        ensure!(status == must_be, "{} is released: {status}", kept.name);
        if is_open {
            self.model.holds.remove(&self.kept[which].name);
            self.kept[which].is_released = true;
        }
        Ok(())
    }

    /// What the clock has passed holds nothing any more.
    pub(super) fn expire_kept(&mut self) {
        self.life().app.reservations.expire();
        let now = self.model.now;
        for kept in self.kept.iter().filter(|kept| !kept.is_open(now)) {
            self.model.holds.remove(&kept.name);
        }
    }

    /// The end of a process ends all holds but those of reservations.
    pub(super) fn only_kept_is_held(&mut self) {
        self.model.holds.clear();
        let now = self.model.now;
        for kept in self.kept.iter().filter(|kept| kept.is_open(now)) {
            let usage = kept.usage(kept.amounts);
            self.model.holds.insert(kept.name.clone(), usage);
        }
    }

    /// Settles a reservation while the journal's power may go. The store knows by then that it is settled, so that its
    /// usage counts after the next start if not before.
    pub(super) fn settle_into_the_dark(&mut self, writes: i64, which: usize, amounts: Amounts) {
        if self.kept.is_empty() || self.is_away {
            return;
        }
        let which = which % self.kept.len();
        self.life().power.cut_after(writes);
        let _ = self.send_settle(which, amounts, 0);
        if self.kept[which].settled.is_none() {
            self.note_settled(which, amounts, 0);
        }
    }

    /// Gives back all that is left, so that nothing is held at the end.
    pub(super) fn end_kept(&mut self) -> Step {
        for which in 0..self.kept.len() {
            if self.kept[which].is_open(self.model.now) {
                self.release_kept(which)?;
            }
        }
        Ok(())
    }
}
