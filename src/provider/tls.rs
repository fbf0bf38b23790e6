//! Whom TLS connections trust.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::SetupError;

/// Where the roots of trust come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The file that `SSL_CERT_FILE` names, else the system's, else Mozilla's as embedded in this program, so that
    /// an empty root file system works.
    Environment,
    /// A file of PEM certificates, and nothing else.
    File(PathBuf),
}

/// A configuration that trusts `roots` and offers these protocols, the preferred one first.
///
/// # Errors
/// The file named cannot be read or has no certificate in it.
pub fn client_config(roots: &Roots, protocols: &[&[u8]]) -> Result<ClientConfig, SetupError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(root_store(roots)?)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// # Errors
/// As of [`client_config`].
pub(crate) fn root_store(roots: &Roots) -> Result<RootCertStore, SetupError> {
    match roots {
        Roots::File(path) => store_of_file(path),
        Roots::Environment => match std::env::var_os("SSL_CERT_FILE") {
            Some(path) if !path.is_empty() => store_of_file(Path::new(&path)),
            _ => Ok(system_store()),
        },
    }
}

fn store_of_file(path: &Path) -> Result<RootCertStore, SetupError> {
    let read = rustls_native_certs::load_certs_from_paths(Some(path), None);
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(read.certs);
    if added > 0 {
        return Ok(store);
    }
    let why = match read.errors.first() {
        Some(error) => error.to_string(),
        None => "it holds no certificate".to_owned(),
    };
    Err(SetupError(format!(
        "SSL_CERT_FILE '{}' cannot be used: {why}; name a file of PEM certificates",
        path.display()
    )))
}

fn system_store() -> RootCertStore {
    let mut store = RootCertStore::empty();
    // Single certificates that cannot be read are common and harmless: the rest are there.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        store
            .roots
            .extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_certificates_that_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "no certificate\n").unwrap();
        for path in [empty, directory.path().join("missing.pem")] {
            let error = client_config(&Roots::File(path.clone()), &[]).unwrap_err();
            assert!(error.0.contains(path.to_str().unwrap()), "{error}");
            assert!(error.0.contains("PEM"), "{error}");
        }
    }

    #[test]
    fn without_a_file_somebody_is_trusted_whatever_the_system_has() {
        assert!(!system_store().is_empty());
    }
}
