//! Caches below this node, as tiers of the engine: one file a kind. Must never hash, retry or
//! queue; layers around a tier do.

pub(crate) mod channel;
mod object;
pub(crate) mod remote;
mod zstd;

use self::{
    channel::{Connect, Target},
    object::{ObjectSettings, ObjectTier},
    remote::{Remote, RemoteSettings},
};
use crate::config::BackingSettings;
use anyhow::Context;
use engine::tier::Below;
use std::sync::Arc;

/// The cache that the settings name; it is asked nothing yet. Within a tokio runtime only.
///
/// # Errors
/// What is wrong with the settings.
pub(crate) fn open(settings: &BackingSettings) -> anyhow::Result<Arc<dyn Below>> {
    if settings.url.starts_with("grpc://") || settings.url.starts_with("grpcs://") {
        let own = settings.tls.own.clone();
        let (certificate, key) = own.unzip();
        let connect = Connect {
            url: settings.url.clone(),
            ca: settings.tls.ca.clone(),
            certificate,
            key,
            headers: settings.headers.clone(),
            connect_timeout: settings.connect_timeout,
        };
        let target = Target::new(&connect).context("backing")?;
        let remote = RemoteSettings {
            instance: settings.instance.clone(),
            compression: settings.compression,
            call_deadline: settings.timeout,
            idle_deadline: settings.idle_timeout,
        };
        return Ok(Arc::new(Remote::new(&target, remote)));
    }
    let object = ObjectSettings {
        url: settings.url.clone(),
        options: settings.options.clone(),
        concurrency: settings.concurrency_max,
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.timeout,
        idle_timeout: settings.idle_timeout,
    };
    Ok(Arc::new(ObjectTier::new(&object).context("backing")?))
}
