//! What start-up would find wrong with the settings and the files that they name, without starting
//! anything. Must never touch the store, a socket, or another machine.

use super::cluster;
use crate::{backing, config::Config, tls::Tls};
use anyhow::Context;

/// Looks at all of them; one line for each part that is more than a default.
///
/// # Errors
/// The first that is wrong.
pub(crate) fn check(config: &Config) -> anyhow::Result<String> {
    let tls = config.tls.as_ref().map(Tls::open).transpose().context("tls")?;
    let tls = tls.map(|(tls, _)| tls);
    let mut found =
        vec![format!("serving  {}", super::serving(config.server.listen, tls.as_ref()))];
    if let Some(listen) = config.cluster.listen {
        let standing = cluster::standing(config, listen, config.server.listen, tls.as_ref())?;
        found.push(format!("cluster  others reach this node as {}", standing.endpoint));
    }
    if !config.backing.url.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let below = backing::open(&config.backing).context("the cache below")?;
        found.push(format!("backing  {}", below.name()));
    }
    Ok(found.join("\n"))
}
