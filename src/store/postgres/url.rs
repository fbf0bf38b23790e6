//! `DATABASE_URL` of a Postgres database, taken apart.

use std::{fmt, path::PathBuf, str::FromStr};

use tokio_postgres::config::{Config, Host, SslMode};

/// Whom to trust of those who answer, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verify {
    /// Whoever answers: encrypted or not, but proven by nobody.
    Nobody,
    /// Whoever has a certificate of the roots.
    Roots,
    /// Whoever has a certificate of the roots for the host's name.
    RootsAndName,
}

/// The address of a database, with what is needed to get in. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    config: Box<Config>,
    verify: Verify,
    roots: Option<PathBuf>,
}

impl PostgresUrl {
    /// Whether it is one, by its scheme.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with("postgres://") || text.starts_with("postgresql://")
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn verify(&self) -> Verify {
        self.verify
    }

    /// A file of PEM certificates that is trusted in place of the usual roots.
    pub(super) fn roots(&self) -> Option<&PathBuf> {
        self.roots.as_ref()
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        let same_as_user = || self.config.get_user().unwrap_or_default();
        self.config.get_dbname().unwrap_or_else(same_as_user)
    }

    /// Whether what is sent may be read or changed by others on the way: TLS is not asked for, or nobody proves who
    /// answers, and it is not on this machine.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        let is_near = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                let address: Result<std::net::IpAddr, _> = name.parse();
                name == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
            }
        };
        self.verify == Verify::Nobody && !self.config.get_hosts().iter().all(is_near)
    }
}

impl FromStr for PostgresUrl {
    type Err = String;

    /// Takes what libpq takes, as far as it can be served. The error says what is wrong, without the text: it may hold
    /// a password.
    fn from_str(text: &str) -> Result<Self, String> {
        if !Self::is_one(text) {
            return Err("it begins with neither postgres:// nor postgresql://".to_owned());
        }
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        // The parser ends the password at the first '@', and what is behind it would be shown as host and database.
        if address.matches('@').count() > 1 {
            return Err("an '@' in its user or password is written %40".to_owned());
        }
        let mut ssl_mode = "prefer".to_owned();
        let mut roots = None;
        let mut rest = form_urlencoded::Serializer::new(String::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "sslmode" => ssl_mode = value.into_owned(),
                "sslrootcert" => roots = Some(PathBuf::from(&*value)),
                _ => {
                    rest.append_pair(&name, &value);
                }
            }
        }
        // The parser reads `+` as it stands, and blanks as `%20`.
        let rest = rest.finish().replace('+', "%20");
        let mut config: Config = format!("{address}?{rest}")
            .parse()
            .map_err(|error| super::text_of(&error))?;
        let verify = match (ssl_mode.as_str(), &roots) {
            ("disable", _) => {
                config.ssl_mode(SslMode::Disable);
                Verify::Nobody
            }
            ("prefer", _) => {
                config.ssl_mode(SslMode::Prefer);
                Verify::Nobody
            }
            ("require", None) => {
                config.ssl_mode(SslMode::Require);
                Verify::Nobody
            }
            // As libpq does where roots are named.
            ("require", Some(_)) | ("verify-ca", _) => {
                config.ssl_mode(SslMode::Require);
                Verify::Roots
            }
            ("verify-full", _) => {
                config.ssl_mode(SslMode::Require);
                Verify::RootsAndName
            }
            (other, _) => {
                return Err(format!(
                    "sslmode `{other}` is not known; write disable, prefer, require, verify-ca or verify-full"
                ));
            }
        };
        if config.get_user().is_none_or(str::is_empty) {
            return Err(
                "it names no user: write postgres://USER:PASSWORD@HOST/DATABASE".to_owned(),
            );
        }
        if config.get_hosts().is_empty() {
            return Err("it names no host".to_owned());
        }
        if config.get_application_name().is_none() {
            config.application_name("tollgate");
        }
        Ok(Self {
            config: Box::new(config),
            verify,
            roots,
        })
    }
}

impl fmt::Display for PostgresUrl {
    /// Such as `database tollgate at db.example.com:5432`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database {} at ", self.database())?;
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            if index > 0 {
                f.write_str(" or ")?;
            }
            let ports = self.config.get_ports();
            let port = ports.get(index).or(ports.first()).unwrap_or(&5432);
            match host {
                Host::Tcp(name) => write!(f, "{name}:{port}")?,
                Host::Unix(path) => write!(f, "{} (port {port})", path.display())?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self}, {:?})", self.verify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> PostgresUrl {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn an_address_shows_where_it_leads_and_never_the_password() {
        for (text, shown) in [
            (
                "postgres://app:s3cret@db/tollgate",
                "database tollgate at db:5432",
            ),
            (
                "postgresql://app:s3cret@[::1]:6000",
                "database app at ::1:6000",
            ),
            (
                "postgres://app:s3cret@one:1,two:2/d?target_session_attrs=read-write",
                "database d at one:1 or two:2",
            ),
            (
                "postgres:///d?host=/run/pg&user=app&password=s3cret",
                "database d at /run/pg (port 5432)",
            ),
        ] {
            let url = parsed(text);
            assert_eq!(url.to_string(), shown, "{text}");
            assert!(!format!("{url:?} {url}").contains("s3cret"));
        }
    }

    #[test]
    fn sslmode_says_who_is_trusted() {
        for (query, mode, verify) in [
            ("", SslMode::Prefer, Verify::Nobody),
            ("?sslmode=disable", SslMode::Disable, Verify::Nobody),
            ("?sslmode=require", SslMode::Require, Verify::Nobody),
            (
                "?sslmode=require&sslrootcert=/ca.pem",
                SslMode::Require,
                Verify::Roots,
            ),
            ("?sslmode=verify-ca", SslMode::Require, Verify::Roots),
            (
                "?sslmode=verify-full",
                SslMode::Require,
                Verify::RootsAndName,
            ),
        ] {
            let url = parsed(&format!("postgres://app@db/d{query}"));
            assert_eq!(
                (url.config.get_ssl_mode(), url.verify),
                (mode, verify),
                "{query}"
            );
        }
        assert!(parsed("postgres://app@db/d?sslmode=require").is_open_to_others());
        assert!(!parsed("postgres://app@127.0.0.1/d").is_open_to_others());
        assert!(!parsed("postgres://app@db/d?sslmode=verify-full").is_open_to_others());
    }

    #[test]
    fn what_can_not_be_served_is_refused_without_the_password() {
        for text in [
            "mysql://app:s3cret@db/d",
            "postgres://app:s3cret@db/d?sslmode=maybe",
            "postgres://app:s3cret@db/d?no_such_option=1",
            "postgres://db/d",
            "postgres://app:s3@s3cret/s3cret@db/d",
            "postgres://app:s3cret@db:port/d",
        ] {
            let why = text.parse::<PostgresUrl>().expect_err(text);
            assert!(!why.contains("s3cret"), "{why}");
        }
    }
}
