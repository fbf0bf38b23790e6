//! Row 10: the whole decision, two threads on one tenant: plan, limits, reservation, metrics.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tollgate::{
    app::App,
    clock::Clock,
    config::{Config, sources::Sources},
    domain::{
        administrator::Actor,
        ids::{KeyId, TenantId},
        plan::AllowedModels,
        quantity::Quantity,
    },
    provider::Endpoint,
    services::{
        guard::{Ask, Caller, OutputAsk},
        plans::{NewPlan, Plans},
        tenants::{NewTenant, Tenants},
    },
};
use uuid::Uuid;

use super::{
    fixtures,
    report::{median, micros, quantile, row},
};

const CALLS: usize = 200_000;

pub(crate) fn run() {
    let directory = fixtures::directory();
    let runtime = fixtures::runtime();
    let sources = Sources::none()
        .with_flag("TOLLGATE_DATA_DIR", directory.path().display().to_string())
        .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned())
        .with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned());
    let loaded = Config::load(&sources).expect("these settings are good");
    let app = runtime
        .block_on(App::open(loaded.config, Clock::System))
        .expect("a new directory can be opened");
    let tenant = runtime.block_on(make_tenant(&app));

    let start = Arc::new(Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (app, start) = (app.clone(), Arc::clone(&start));
            thread::spawn(move || admit_on_one_thread(&app, tenant, &start))
        })
        .collect();
    let mut took: Vec<Duration> = threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("no thread panics"))
        .collect();
    let (p50, p99) = (micros(median(&mut took)), micros(quantile(&mut took, 0.99)));
    row(
        10,
        "whole admit, two threads on one tenant, p50",
        &format!("{p50:.2} us"),
        "<= 2 us",
        p50 <= 2.0,
    );
    row(
        10,
        "whole admit, two threads on one tenant, p99",
        &format!("{p99:.2} us"),
        "<= 10 us",
        p99 <= 10.0,
    );
    runtime.block_on(app.close());
}

/// On an enterprise plan: three features, metered and without an end.
async fn make_tenant(app: &App) -> TenantId {
    let by = Actor {
        name: "bench".to_owned(),
        address: None,
        at: app.clock.now(),
    };
    let plan = NewPlan {
        code: "pro".parse().expect("a plan code"),
        name: "Pro".parse().expect("a name"),
        preset: Some("enterprise".to_owned()),
        allowed_models: AllowedModels::default(),
        features: Vec::new(),
    };
    let plan = Plans::new(Arc::clone(&app.store)).create(plan, &by).await;
    let tenant = NewTenant {
        slug: "acme".parse().expect("a slug"),
        name: "Acme".parse().expect("a name"),
        plan_code: Some(plan.expect("the preset is there").code),
    };
    let tenants = Tenants::new(Arc::clone(&app.store));
    let tenant = tenants.create(tenant, &by).await;
    tenant.expect("nobody has this slug yet").tenant_id
}

fn admit_on_one_thread(app: &App, tenant_id: TenantId, start: &Barrier) -> Vec<Duration> {
    let caller = Caller {
        tenant_id,
        key_id: KeyId::new(Uuid::from_u128(1)),
        user: "".into(),
        keyed: None,
        request_id: "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b".into(),
    };
    let ask = Ask {
        caller: &caller,
        endpoint: Endpoint::ChatCompletions,
        model: "gpt-5.1",
        input_bound: Quantity::new(300),
        tokenized_input: &|| std::future::ready(Quantity::new(20)).boxed(),
        open_input: None,
        output: Some(OutputAsk {
            named: Some(Quantity::new(256)),
            answers: 1,
        }),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async {
        app.guard.admit(&ask).await.expect("the plan has no end"); // its policy is in the cache from now on
        start.wait();
        let mut took = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let begun = Instant::now();
            let admitted = app.guard.admit(&ask).await;
            took.push(begun.elapsed());
            drop(admitted.expect("the plan has no end"));
        }
        took
    })
}
