//! `serve --dev`: something to try at once, and the lines to paste.

use std::{io, net::SocketAddr, path::Path};

use secrecy::{ExposeSecret, SecretString};

use super::{
    App,
    serve::{announce, reachable},
};
use crate::{
    config::ProviderKind,
    domain::administrator::Actor,
    services::{
        AdminError,
        keys::{Keys, NewKey},
        plans::{NewPlan, Plans},
        presets,
        tenants::{NewTenant, Tenants},
    },
};

const TENANT: &str = "demo";
const PLAN: &str = "starter";

/// What was made.
pub(super) struct Dev {
    key: SecretString,
    ignored: Vec<&'static str>,
    model: String,
}

/// Makes the presets, tenant `demo` on plan `starter`, and a key for it; what is there already stays.
pub(super) async fn seed(app: &App, ignored: &[&'static str]) -> anyhow::Result<Dev> {
    let by = Actor {
        name: "serve --dev".to_owned(),
        address: None,
        at: app.clock.now(),
    };
    let plans = Plans::new(app.store.clone());
    for preset in presets::all() {
        let plan = NewPlan {
            code: preset.code.clone(),
            name: preset.name.clone(),
            preset: Some(preset.code.to_string()),
            allowed_models: Default::default(),
            features: Vec::new(),
        };
        unless_there(plans.create(plan, &by).await)?;
    }
    let tenant = NewTenant {
        slug: TENANT.parse()?,
        name: "Demo".parse()?,
        plan_code: Some(PLAN.parse()?),
    };
    unless_there(Tenants::new(app.store.clone()).create(tenant, &by).await)?;
    let key = NewKey {
        name: "made by serve --dev".parse()?,
        user: None,
        expires_at: None,
    };
    let issued = Keys::new(app.store.clone())
        .create(&TENANT.parse()?, key, &by)
        .await?;
    let model = match app.config.provider {
        ProviderKind::Simulated => "simulated".to_owned(),
        ProviderKind::OpenAi => app.config.default_model.clone(),
    };
    Ok(Dev {
        key: issued.secret,
        ignored: ignored.to_vec(),
        model,
    })
}

fn unless_there<T>(made: Result<T, AdminError>) -> Result<(), AdminError> {
    match made {
        Ok(_) | Err(AdminError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Dev {
    /// Prints what to do next; every line can be pasted into a shell.
    pub(super) fn announce(
        &self,
        address: SocketAddr,
        data_dir: &Path,
        admin_token: Option<&SecretString>,
    ) -> io::Result<()> {
        let base = format!("http://{}", reachable(address));
        let key = self.key.expose_secret();
        let model = &self.model;
        if !self.ignored.is_empty() {
            announce(&format!(
                "# ignored with --dev: {}",
                self.ignored.join(", ")
            ))?;
        }
        announce("\n# commands in another terminal use this server:")?;
        announce(&format!(
            "export TOLLGATE_DATA_DIR={}",
            quoted(&data_dir.display().to_string())
        ))?;
        announce(&format!("\n# administration: {base}/admin"))?;
        if let Some(token) = admin_token {
            announce(&format!(
                "export TOLLGATE_ADMIN_TOKEN={}",
                token.expose_secret()
            ))?;
        }
        announce(&format!("\n# tenant {TENANT} on plan {PLAN} asks:"))?;
        announce(&format!("export TENANT_KEY={key}"))?;
        announce(&format!(
            "curl -s {base}/api/v1/chat -H \"Authorization: Bearer $TENANT_KEY\" -d '{{\"message\":\"hi\"}}'"
        ))?;
        announce(&format!(
            "curl -s {base}/v1/chat/completions -H \"Authorization: Bearer $TENANT_KEY\" \
             -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}'"
        ))?;
        announce(&format!(
            "curl -s {base}/api/v1/usage -H \"Authorization: Bearer $TENANT_KEY\""
        ))?;
        announce("\n# one message left, then a refusal:")?;
        announce(&format!(
            "tollgate plan feature set {PLAN} messages --soft none --hard 3"
        ))
    }
}

/// A shell word.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if text.bytes().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
