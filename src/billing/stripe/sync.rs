//! Brings plans' features to Stripe's entitlements, checks meters, and looks at subscriptions.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Stripe, StripeError};
use crate::domain::plan::Plan;

/// What is to be synced.
#[derive(Clone, Debug, Default)]
pub struct SyncAsk {
    /// Whatever their case; none: all.
    pub plans: Vec<String>,
}

/// What was done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Synced {
    pub plans: Vec<PlanSynced>,
    /// Subscriptions that were looked at.
    pub subscriptions: u64,
    /// Those of which the tenant or the plan is not known, and why.
    pub unmatched: Vec<String>,
}

/// What was done for one plan.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlanSynced {
    pub plan_code: String,
    /// Stripe's product; null: it has none, and nothing was written.
    pub product: Option<String>,
    /// Features that were made at Stripe.
    pub created: Vec<String>,
    /// That got another name.
    pub renamed: Vec<String>,
    /// That the product got.
    pub attached: Vec<String>,
}

/// A feature of Stripe's entitlements.
#[derive(Clone, Debug)]
struct Feature {
    id: String,
    name: String,
}

impl Stripe {
    /// Everything: meters are checked first, and a fault of any stops it before anything is written.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn sync(&self, ask: &SyncAsk) -> Result<Synced, StripeError> {
        let mut synced = self.sync_features(ask).await?;
        (synced.subscriptions, synced.unmatched) = self.pull_subscriptions().await?;
        Ok(synced)
    }

    /// Features to products only.
    ///
    /// # Errors
    /// [`StripeError`].
    pub async fn sync_features(&self, ask: &SyncAsk) -> Result<Synced, StripeError> {
        let mut plans = self.parts.store.list_plans().await?;
        plans.retain(|plan| {
            let code = plan.code.as_str();
            ask.plans.is_empty() || ask.plans.iter().any(|it| it.eq_ignore_ascii_case(code))
        });
        if plans.is_empty() && !ask.plans.is_empty() {
            let asked = ask.plans.join(", ");
            return Err(StripeError::Refused(format!(
                "no plan is called {asked}; `tollgate plan list` lists them"
            )));
        }
        let faults = self.meter_faults(&plans).await?;
        if !faults.is_empty() {
            return Err(StripeError::Refused(format!(
                "nothing was written: {}",
                faults.join("; ")
            )));
        }
        let products = self.products_of(&plans).await?;
        let mut features = self.features().await?;
        let mut synced = Synced::default();
        for plan in &plans {
            let product = products.get(plan.code.as_str());
            let one = match product {
                Some(product) => self.sync_plan(plan, product, &mut features).await?,
                None => PlanSynced {
                    plan_code: plan.code.to_string(),
                    ..PlanSynced::default()
                },
            };
            synced.plans.push(one);
        }
        Ok(synced)
    }

    /// What is wrong with the meters that plans name, each once.
    ///
    /// # Errors
    /// [`CallError`](super::CallError).
    pub async fn meter_faults(&self, plans: &[Plan]) -> Result<Vec<String>, super::CallError> {
        let mut faults = BTreeMap::new();
        let names_any = |plan: &Plan| plan.features.iter().any(|it| it.stripe_meter.is_some());
        if plans.iter().any(names_any) {
            self.meters.read_again(&self.client, self.now()).await?;
        }
        for plan in plans {
            for feature in plan.features.iter().filter(|it| it.is_metered) {
                let Some(name) = &feature.stripe_meter else {
                    continue;
                };
                if faults.contains_key(name) {
                    continue;
                }
                let found = self.meters.find(&self.client, name, self.now()).await?;
                let fault = match found {
                    Some(meter) => meter.fault(),
                    None => Some(format!(
                        "there is no meter '{name}', which feature {} of plan {} names; make it at Stripe",
                        feature.key, plan.code
                    )),
                };
                faults.insert(name.clone(), fault);
            }
        }
        Ok(faults.into_values().flatten().collect())
    }

    /// The product of each plan: of the price whose `lookup_key` is the plan's code, else the one whose
    /// `metadata.plan_code` is.
    async fn products_of(&self, plans: &[Plan]) -> Result<BTreeMap<String, String>, StripeError> {
        let mut products = BTreeMap::new();
        for plan in plans {
            let query = [("lookup_keys[]", plan.code.as_str()), ("active", "true")];
            let (prices, _) = self.client.list("/v1/prices", &query).await?;
            let product = prices.first().map(|price| &price["product"]);
            let product = product.and_then(|it| it.as_str().or_else(|| it["id"].as_str()));
            if let Some(product) = product {
                products.insert(plan.code.to_string(), product.to_owned());
            }
        }
        if products.len() < plans.len() {
            let (listed, _) = self
                .client
                .list("/v1/products", &[("active", "true")])
                .await?;
            for product in &listed {
                let code = product["metadata"]["plan_code"].as_str();
                if let (Some(code), Some(id)) = (code, product["id"].as_str()) {
                    products
                        .entry(code.to_owned())
                        .or_insert_with(|| id.to_owned());
                }
            }
        }
        Ok(products)
    }

    /// Stripe's features by their `lookup_key`.
    async fn features(&self) -> Result<BTreeMap<String, Feature>, StripeError> {
        let (listed, _) = self.client.list("/v1/entitlements/features", &[]).await?;
        let features = listed.iter().filter_map(|it| {
            let feature = feature_of(it)?;
            Some((it["lookup_key"].as_str()?.to_owned(), feature))
        });
        Ok(features.collect())
    }

    async fn sync_plan(
        &self,
        plan: &Plan,
        product: &str,
        features: &mut BTreeMap<String, Feature>,
    ) -> Result<PlanSynced, StripeError> {
        let mut synced = PlanSynced {
            plan_code: plan.code.to_string(),
            product: Some(product.to_owned()),
            ..PlanSynced::default()
        };
        let path = format!("/v1/products/{product}/features");
        let (attached, _) = self.client.list(&path, &[]).await?;
        let has = |id: &str| {
            attached
                .iter()
                .any(|it| it["entitlement_feature"]["id"] == id)
        };
        for feature in &plan.features {
            let (key, name) = (feature.key.as_str(), feature.display_name.as_str());
            let id = match features.get(key) {
                None => {
                    let form = [("lookup_key", key), ("name", name)];
                    let made = self.client.post("/v1/entitlements/features", &form).await?;
                    let made = feature_of(&made.json).ok_or_else(|| {
                        StripeError::Refused(
                            "Stripe made a feature and did not say which".to_owned(),
                        )
                    })?;
                    let id = made.id.clone();
                    features.insert(key.to_owned(), made);
                    synced.created.push(key.to_owned());
                    id
                }
                Some(known) if known.name != name => {
                    let id = known.id.clone();
                    let path = format!("/v1/entitlements/features/{id}");
                    self.client.post(&path, &[("name", name)]).await?;
                    let renamed = Feature {
                        id: id.clone(),
                        name: name.to_owned(),
                    };
                    features.insert(key.to_owned(), renamed);
                    synced.renamed.push(key.to_owned());
                    id
                }
                Some(known) => known.id.clone(),
            };
            if !has(&id) {
                let form = [("entitlement_feature", id.as_str())];
                self.client.post(&path, &form).await?;
                synced.attached.push(key.to_owned());
            }
        }
        Ok(synced)
    }
}

fn feature_of(json: &Value) -> Option<Feature> {
    Some(Feature {
        id: json["id"].as_str()?.to_owned(),
        name: json["name"].as_str().unwrap_or_default().to_owned(),
    })
}
