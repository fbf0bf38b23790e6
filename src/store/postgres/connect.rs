//! Opens connections: names are resolved by the program's own resolver, TLS is rustls.

use std::{sync::Arc, time::Duration};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use rand::seq::SliceRandom as _;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_postgres::{
    Client, Connection, Socket,
    config::{Host, LoadBalanceHosts},
    tls::TlsStream,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::{
    text_of,
    url::{PostgresUrl, Verify},
};
use crate::provider::{
    resolve::Resolver,
    tls::{self, Roots},
};

/// Name, TCP, TLS and login of one host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take in all, over every address there is.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// The first version that notices by itself when nobody waits for an answer any more.
const OLDEST: u32 = 14;
/// Longer than this no dead connection goes unnoticed because nobody speaks on it.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What holds on every connection. Nobody may keep others waiting for ever: neither with a transaction left open (a
/// node that stands still), nor by waiting for a lock, nor for an answer that nobody wants any more. Small statements
/// are not compiled. A server that does not wait for its disk does so for us: the journal forgets what it has.
const SESSION: &str = "
    SET idle_in_transaction_session_timeout = '30s';
    SET lock_timeout = '5s';
    SET client_connection_check_interval = '1s';
    SET jit = off;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";

/// Opens connections to one database, all on the runtime that it was made on: they outlive whoever asked first. Cheap
/// to clone.
#[derive(Clone)]
pub(super) struct Connector(Arc<Parts>);

struct Parts {
    url: PostgresUrl,
    resolver: Resolver,
    tls: MakeRustlsConnect,
    runtime: Handle,
}

impl Connector {
    /// # Errors
    /// The roots of trust can't be read.
    pub(super) fn new(url: PostgresUrl, resolver: Resolver) -> Result<Self, String> {
        Ok(Self(Arc::new(Parts {
            tls: MakeRustlsConnect::new(tls_config(&url)?),
            url,
            resolver,
            runtime: Handle::current(),
        })))
    }

    pub(super) fn url(&self) -> &PostgresUrl {
        &self.0.url
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// A connection that is ready for use, and what must be polled for it to do anything.
    ///
    /// # Errors
    /// What failed, without the password.
    pub(super) async fn open(
        &self,
    ) -> Result<
        (
            Client,
            Connection<Socket, impl TlsStream + Unpin + Send + 'static>,
        ),
        String,
    > {
        let mut failures: Vec<String> = Vec::new();
        for (address, config) in self.addresses().await? {
            match config.connect(self.0.tls.clone()).await {
                Ok((client, connection)) => {
                    refuse_old(connection.parameter("server_version").unwrap_or_default())?;
                    return Ok((client, connection));
                }
                Err(error) => failures.push(format!("{address}: {}", text_of(&error))),
            }
        }
        Err(failures.join("; "))
    }

    /// As [`open`](Self::open), driven by a task of its own, and set up. A server that takes the connection and says
    /// nothing is given up on.
    pub(super) async fn open_driven(&self) -> Result<(Client, JoinHandle<()>), String> {
        let opened = tokio::time::timeout(OPENED_WITHIN, self.open_and_set_up()).await;
        opened.unwrap_or_else(|_| {
            let seconds = OPENED_WITHIN.as_secs();
            Err(format!("no answer within {seconds} s"))
        })
    }

    async fn open_and_set_up(&self) -> Result<(Client, JoinHandle<()>), String> {
        let (client, connection) = self.open().await?;
        let driven = self.0.runtime.spawn(async move {
            // What ends it is what the client's calls answer.
            let _ = connection.await;
        });
        match set_up(&client).await {
            Ok(()) => Ok((client, driven)),
            Err(error) => {
                driven.abort();
                Err(text_of(&error))
            }
        }
    }

    /// Where the database may be, in the order to try: each address of each host, as people read it and with all settings.
    async fn addresses(&self) -> Result<Vec<(String, tokio_postgres::Config)>, String> {
        let asked = self.0.url.config();
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for (index, host) in asked.get_hosts().iter().enumerate() {
            let ports = asked.get_ports();
            let port = *ports.get(index).or(ports.first()).unwrap_or(&5432);
            let (name, addresses) = match (host, asked.get_hostaddrs().get(index)) {
                (Host::Unix(path), _) => {
                    let mut config = self.settings();
                    config.host_path(path).port(port);
                    found.push((path.display().to_string(), config));
                    continue;
                }
                (Host::Tcp(name), Some(address)) => (name, Ok(vec![*address])),
                (Host::Tcp(name), None) => (name, self.0.resolver.resolve(name).await),
            };
            match addresses {
                Ok(addresses) => found.extend(addresses.into_iter().map(|address| {
                    let mut config = self.settings();
                    // The name is what a certificate must be for.
                    config.host(name).hostaddr(address).port(port);
                    (address.to_string(), config)
                })),
                Err(error) => failures.push(format!("{name}: {error}")),
            }
        }
        if asked.get_load_balance_hosts() == LoadBalanceHosts::Random {
            found.shuffle(&mut rand::rng());
        }
        if found.is_empty() {
            return Err(failures.join("; "));
        }
        Ok(found)
    }

    /// All that was asked for but the hosts.
    fn settings(&self) -> tokio_postgres::Config {
        let asked = self.0.url.config();
        let mut config = tokio_postgres::Config::new();
        config
            .user(asked.get_user().unwrap_or_default())
            .dbname(self.0.url.database())
            .ssl_mode(asked.get_ssl_mode())
            .ssl_negotiation(asked.get_ssl_negotiation())
            .channel_binding(asked.get_channel_binding())
            .target_session_attrs(asked.get_target_session_attrs())
            .keepalives(asked.get_keepalives())
            .keepalives_idle(asked.get_keepalives_idle().min(KEEPALIVE))
            .connect_timeout(*asked.get_connect_timeout().unwrap_or(&CONNECT_TIMEOUT));
        if let Some(password) = asked.get_password() {
            config.password(password);
        }
        if let Some(options) = asked.get_options() {
            config.options(options);
        }
        if let Some(name) = asked.get_application_name() {
            config.application_name(name);
        }
        if let Some(timeout) = asked.get_tcp_user_timeout() {
            config.tcp_user_timeout(*timeout);
        }
        config
    }
}

fn refuse_old(version: &str) -> Result<(), String> {
    let major = version.split(|it: char| !it.is_ascii_digit()).next();
    match major.and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < OLDEST => Err(format!(
            "it is Postgres {version}, and tollgate needs {OLDEST} or newer"
        )),
        _ => Ok(()),
    }
}

pub(super) async fn set_up(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(SESSION).await
}

impl managed::Manager for Connector {
    type Type = ClientWrapper;
    type Error = String;

    async fn create(&self) -> Result<ClientWrapper, String> {
        let connector = self.clone();
        let opened = self
            .0
            .runtime
            .spawn(async move { connector.open_driven().await });
        // Whoever gives up waiting ends the attempt.
        let opened = AbortOnDropHandle::new(opened).await;
        let (client, driven) = opened.map_err(|error| error.to_string())??;
        Ok(ClientWrapper::new(client, driven))
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<String> {
        if client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}

fn tls_config(url: &PostgresUrl) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let named = url.roots().cloned();
    let from_setting = if named.is_some() {
        "sslrootcert"
    } else {
        "SSL_CERT_FILE"
    };
    let roots = || {
        let from = named.map_or(Roots::Environment, Roots::File);
        tls::root_store(&from).map_err(|error| error.0.replacen("SSL_CERT_FILE", from_setting, 1))
    };
    let config = match url.verify() {
        Verify::RootsAndName => builder.with_root_certificates(roots()?),
        Verify::Roots => {
            let strict =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots()?), provider.clone())
                    .build()
                    .map_err(|error| format!("TLS cannot be set up: {error}"))?;
            let lenient = Lenient {
                strict: Some(strict),
                provider,
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(lenient))
        }
        Verify::Nobody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Lenient {
                strict: None,
                provider,
            })),
    };
    Ok(config.with_no_client_auth())
}

/// Looks away as `sslmode` says: from the name, or from the certificate altogether.
#[derive(Debug)]
struct Lenient {
    strict: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(strict) = &self.strict else {
            return Ok(ServerCertVerified::assertion());
        };
        match strict.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_refused_in_plain_words() {
        for version in [
            "14.0",
            "15.18 (Debian 15.18-0+deb12u1)",
            "17beta1",
            "of our own",
        ] {
            assert_eq!(refuse_old(version), Ok(()), "{version}");
        }
        let why = refuse_old("13.4").unwrap_err();
        assert_eq!(why, "it is Postgres 13.4, and tollgate needs 14 or newer");
    }
}
