//! `tollgate healthcheck`.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::output::Output;
use crate::config::Config;

/// A container's own check must never hang for longer than the one who asks for it waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// The readiness of all parts, with a detail each, is far below this.
const LONGEST_ANSWER_BYTES: u64 = 64 * 1024;

/// Asks the running server whether it would take a chat, for containers and scripts
///
/// The server is the one that listens where the settings say. Exit code 1 if it does not answer, or says that it would
/// not take a chat.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate healthcheck --listen 127.0.0.1:8080")]
pub(super) struct Healthcheck {
    /// Ask only whether the process lives (`/healthz` in place of `/readyz`)
    #[arg(long)]
    live: bool,
}

impl Healthcheck {
    pub(super) fn run(&self, config: &Config) -> anyhow::Result<Output> {
        let path = if self.live { "/healthz" } else { "/readyz" };
        if config.listen.port() == 0 {
            bail!(
                "TOLLGATE_LISTEN has port 0, which names no server; give --listen with the address it printed"
            );
        }
        let address = near(config.listen);
        let (status, body) = ask(address, path)
            .with_context(|| format!("http://{address}{path} does not answer"))?;
        let shown = body["status"].as_str().unwrap_or_default().to_owned();
        let answered = json!({ "url": format!("http://{address}{path}"), "status_code": status, "status": shown });
        let facts = vec![
            ("status", shown.clone()),
            ("HTTP status", status.to_string()),
        ];
        let output = Output::object(&answered, facts);
        if status == 200 {
            return Ok(output);
        }
        Ok(output.failing(format!("{path} answers {status} {shown}{}", worst(&body))))
    }
}

/// The address by which a server that listens everywhere is reached from here.
fn near(listen: SocketAddr) -> SocketAddr {
    let here = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(here, listen.port())
}

/// `GET path`; its status and its JSON. Plain sockets: it runs every few seconds, and has no use for a client.
fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, serde_json::Value)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .take(LONGEST_ANSWER_BYTES)
        .read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("what answers does not speak HTTP")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.context("what answers does not speak HTTP")?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

/// The parts that are to blame, for a line.
fn worst(readiness: &serde_json::Value) -> String {
    let parts = readiness["parts"].as_object().into_iter().flatten();
    let down = parts.filter(|(_, part)| part["status"] == "down");
    down.map(|(name, part)| format!("; {name}: {}", part["detail"].as_str().unwrap_or("down")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_asked_here() {
        for (listen, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:80", "[::1]:80"),
            ("10.1.2.3:8080", "10.1.2.3:8080"),
        ] {
            assert_eq!(near(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }

    #[test]
    fn the_parts_that_are_down_are_named() {
        let body = json!({ "status": "not_ready", "parts": {
            "store": { "status": "ok", "detail": null },
            "journal": { "status": "down", "detail": "no space left" },
        }});
        assert_eq!(worst(&body), "; journal: no space left");
    }
}
