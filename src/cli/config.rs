//! `tollgate config`.

use super::output::{Output, or_dash};
use crate::config::Loaded;

/// Shows every setting, its value and where the value came from
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate config --output json")]
pub(super) struct ShowConfig {}

impl ShowConfig {
    pub(super) fn run(self, loaded: &Loaded) -> Output {
        Output::list(
            &loaded.config.listing,
            &["name", "value", "source"],
            |listed| {
                vec![
                    listed.name.to_owned(),
                    or_dash(listed.value.as_ref()),
                    listed.source.to_string(),
                ]
            },
        )
    }
}
