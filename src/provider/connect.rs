//! Opens connections to the one upstream that the configuration names: name, TCP, TLS, HTTP/1.1 or HTTP/2.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{Uri, uri::Scheme};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{ProviderError, SetupError, resolve::Resolver};

/// Name, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an address is tried before the next is tried beside it (RFC 8305 §5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// An HTTP/2 connection that answers no ping for this long is dead; a stream may be silent for minutes.
const PING_EVERY: Duration = Duration::from_secs(20);

/// A base URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// As in the URL: host, and port if it names one.
    pub authority: String,
    /// `/v1`, or whatever the base URL has; no slash at its end.
    pub base_path: String,
}

impl Target {
    /// Takes a base URL apart, such as `https://api.openai.com/v1`.
    ///
    /// # Errors
    /// It is none: names `OPENAI_BASE_URL` and what is accepted.
    pub fn parse(base_url: &str) -> Result<Self, SetupError> {
        let refused = |why: &str| {
            SetupError(format!(
                "OPENAI_BASE_URL '{base_url}' {why}; write a URL such as https://api.openai.com/v1"
            ))
        };
        let uri: Uri = base_url.parse().map_err(|_| refused("is no URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(refused("has no scheme or no host"));
        };
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return Err(refused("has a scheme that is neither http nor https"));
        }
        if authority.as_str().contains('@') {
            // Not repeated in the message: what stands before the @ may be a secret.
            return Err(SetupError(
                "OPENAI_BASE_URL must not hold a user or password; the key goes into OPENAI_API_KEY"
                    .to_owned(),
            ));
        }
        if uri.query().is_some() || base_url.contains('#') {
            return Err(refused("has a query or a fragment"));
        }
        let bare = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        Ok(Self {
            scheme: scheme.clone(),
            host: bare.to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            authority: authority.as_str().to_owned(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The base URL again, without a slash at its end.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.base_path)
    }
}

/// A connection to send requests on. Its own task drives it, and ends with it.
pub(super) enum Connection {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many at a time.
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Opens connections to one target.
pub(super) struct Connector {
    target: Target,
    resolver: Resolver,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// `tls` is used if the target's scheme is https.
    pub(super) fn new(
        target: Target,
        resolver: Resolver,
        tls: rustls::ClientConfig,
    ) -> Result<Self, SetupError> {
        let tls = if target.scheme == Scheme::HTTPS {
            let name = ServerName::try_from(target.host.clone()).map_err(|_| {
                SetupError(format!(
                    "OPENAI_BASE_URL names '{}', which is no host",
                    target.host
                ))
            })?;
            Some((TlsConnector::from(Arc::new(tls)), name))
        } else {
            None
        };
        Ok(Self {
            target,
            resolver,
            tls,
        })
    }

    /// # Errors
    /// [`ProviderError::Unreachable`], which says what failed.
    pub(super) async fn connect(&self) -> Result<Connection, ProviderError> {
        let failed = |why: String| {
            ProviderError::Unreachable(format!("no connection to {}: {why}", self.target.authority))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(opened) => opened.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("none within {CONNECT_TIMEOUT:?}"))),
        }
    }

    async fn open(&self) -> io::Result<Connection> {
        let addresses = self.resolver.resolve(&self.target.host).await?;
        let stream = dial(
            &addresses
                .iter()
                .map(|ip| SocketAddr::new(*ip, self.target.port))
                .collect::<Vec<_>>(),
        )
        .await?;
        // Frames are small and each is written at once: waiting for more would hold them back by 40 ms.
        stream.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else {
            return speak_http1(stream).await;
        };
        let stream = connector.connect(name.clone(), stream).await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            return speak_http2(stream).await;
        }
        speak_http1(stream).await
    }
}

/// The first of the addresses that answers.
pub(crate) async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut untried = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last_error = io::Error::other("the name has no address");
    loop {
        match untried.next() {
            Some(address) => attempts.push(TcpStream::connect(*address)),
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if untried.len() > 0 => {}
        }
    }
}

async fn speak_http1<S>(stream: S) -> io::Result<Connection>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    drive(connection);
    Ok(Connection::Http1(sender))
}

async fn speak_http2(stream: TlsStream<TcpStream>) -> io::Result<Connection> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    drive(connection);
    Ok(Connection::Http2(sender))
}

#[expect(
    clippy::disallowed_methods,
    reason = "it only moves bytes for requests that are tracked themselves, and ends when the last of their handles is dropped"
)]
fn drive<C>(connection: C)
where
    C: Future<Output = hyper::Result<()>> + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever waits for an answer on it is told by its own error.
            tracing::debug!(%error, "a connection to the provider ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_apart() {
        for (url, host, port, path) in [
            ("https://api.openai.com/v1", "api.openai.com", 443, "/v1"),
            ("http://localhost:8081/v1/", "localhost", 8081, "/v1"),
            ("http://[::1]:9000/openai/v1", "::1", 9000, "/openai/v1"),
            ("http://127.0.0.1", "127.0.0.1", 80, ""),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
            assert_eq!(target.base_path, path, "{url}");
            assert_eq!(target.base_url(), url.trim_end_matches('/'), "{url}");
        }
    }

    #[test]
    fn a_base_url_that_is_none_is_refused_by_name() {
        for url in [
            "",
            "api.openai.com",
            "/v1",
            "ftp://host/v1",
            "https://host/v1?key=1",
            "https://host/v1#x",
            "https://user:secret@host/v1",
            "http://ho st/v1",
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(error.0.contains("OPENAI_BASE_URL"), "{url}: {error}");
            assert!(!error.0.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_passed_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let dead = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        assert_eq!(
            dial(&[dead, live]).await.unwrap().peer_addr().unwrap(),
            live
        );
        let error = dial(&[dead]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(dial(&[]).await.is_err());
    }
}
