//! Turns names into addresses without the C library, so that the static binary needs none of its plug-ins.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};

/// Resolves by `/etc/hosts` and the name servers of `/etc/resolv.conf`, both read when the first name is asked for;
/// answers are kept as long as they say. Without a readable `/etc/resolv.conf` the name server of this machine is
/// asked, as resolv.conf(5) says. Cheap to clone.
#[derive(Clone, Default)]
pub struct Resolver(Arc<OnceLock<Lookup>>);

/// The addresses of a name. Of no named type: nearly everything holds a [`Resolver`], and wherever a future may go to
/// another thread the compiler would look through all types of the library for it: a tenth of a build's time.
type Lookup = Box<dyn Fn(&str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> + Send + Sync>;

impl Resolver {
    /// The addresses of `host`, at least one, both families taking turns.
    ///
    /// # Errors
    /// The name has no address, or nobody answered.
    pub async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if is_localhost(host) {
            // No file and no server is needed to know it (RFC 6761 §6.3).
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let found = (self.lookup()?)(host).await.map_err(io::Error::other)?;
        let addresses = take_turns(found);
        if addresses.is_empty() {
            return Err(io::Error::other(format!("{host} has no address")));
        }
        Ok(addresses)
    }

    fn lookup(&self) -> io::Result<&Lookup> {
        if let Some(lookup) = self.0.get() {
            return Ok(lookup);
        }
        let built = build().map_err(io::Error::other)?;
        Ok(self.0.get_or_init(|| built))
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.resolve(name.as_str()).await?;
            // Port 0 stands for the port of the URL.
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}

fn build() -> Result<Lookup, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        let this_machine = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        TokioResolver::builder_with_config(
            ResolverConfig::from_name_servers(vec![this_machine]),
            TokioRuntimeProvider::default(),
        )
    });
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let resolver = builder.build()?;
    Ok(Box::new(move |host| {
        let (resolver, host) = (resolver.clone(), host.to_owned());
        async move {
            let found = resolver.lookup_ip(host).await?;
            Ok(found.iter().collect())
        }
        .boxed()
    }))
}

fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last_label = host.rsplit('.').next().unwrap_or(host);
    last_label.eq_ignore_ascii_case("localhost")
}

/// IPv6 first, then the families by turns: where one of them leads nowhere, the second try succeeds (RFC 8305 §4).
fn take_turns(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let longer = six.len().max(four.len());
    (0..longer)
        .flat_map(|index| [six.get(index), four.get(index)])
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_and_localhost_need_no_name_server() {
        let resolver = Resolver::default();
        for (host, first) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("localhost", "127.0.0.1"),
            ("LOCALHOST.", "127.0.0.1"),
            ("model.localhost", "127.0.0.1"),
        ] {
            let addresses = resolver.resolve(host).await.unwrap();
            assert_eq!(addresses[0].to_string(), first, "{host}");
        }
        assert!(resolver.0.get().is_none());
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_an_error() {
        let resolver = Resolver::default();
        assert!(resolver.resolve("no name at all").await.is_err());
    }

    #[test]
    fn the_families_take_turns() {
        let all = ["1.1.1.1", "::1", "2.2.2.2", "3.3.3.3", "::2"];
        let turns = take_turns(all.map(|ip| ip.parse().unwrap()).to_vec());
        let turns: Vec<_> = turns.iter().map(IpAddr::to_string).collect();
        assert_eq!(turns, ["::1", "1.1.1.1", "::2", "2.2.2.2", "3.3.3.3"]);
    }
}
