//! What an operator should know of the servers.

use std::sync::Arc;

use redis::Value;
use secrecy::SecretString;

use super::{RedisLedger, link::Link};

/// What the servers say of themselves; the same word once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    pub count: usize,
    pub versions: Vec<String>,
    /// `noeviction` is wanted: what is evicted must be read from the store again, and holds are lost.
    pub policies: Vec<String>,
}

impl RedisLedger {
    /// Asks every server.
    ///
    /// # Errors
    /// Why not, as a line for people.
    pub async fn examine(&self) -> Result<Servers, String> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        self.link.examine().await
    }
}

/// Asks servers that no ledger stands on yet.
///
/// # Errors
/// Why they can't be asked, as a line for people.
pub async fn look_at_servers(urls: Vec<SecretString>) -> Result<Servers, String> {
    Arc::new(Link::new(urls)).examine().await
}

impl Link {
    async fn examine(self: &Arc<Self>) -> Result<Servers, String> {
        let told = self.ask(redis::cmd("INFO")).await;
        let told = told.map_err(|fault| fault.to_string())?;
        let mut texts = Vec::new();
        collect_texts(&told, &mut texts);
        let of = |name: &str| {
            let mut found: Vec<String> = texts.iter().filter_map(|it| field(it, name)).collect();
            found.sort();
            found.dedup();
            found
        };
        Ok(Servers {
            count: texts.len(),
            versions: of("redis_version"),
            policies: of("maxmemory_policy"),
        })
    }
}

/// A cluster's answer is one text a server, with its name.
fn collect_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } => texts.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|it| collect_texts(it, texts)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, it)| collect_texts(it, texts)),
        _ => {}
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(value.trim().to_owned())
    })
}
