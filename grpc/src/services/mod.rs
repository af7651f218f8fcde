//! One file a REAPI service. Owns what all of them check first: the instance, the digest function,
//! the digests. Must never answer for an instance that is not served.

pub(crate) mod action_cache;
pub(crate) mod byte_stream;
pub(crate) mod capabilities;
pub(crate) mod cas;
pub(crate) mod cluster;
pub(crate) mod execution;
mod messages;
pub(crate) mod operations;

use crate::{
    peer::{Asking, Link, Peering, proof::HEADER},
    resource_name::KEYWORDS,
};
use engine::{
    cores::Cores,
    digest::{Digest, DigestFunction},
    exec::Executions,
    limits::Limits,
    tier::{Backing, Backlog, Blobs, Tier, WriteMode},
};
use http::HeaderMap;
use proto::reapi;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tonic::Status;

/// Longest instance name taken, in bytes.
const INSTANCE_BYTES_MAX: usize = 1024;

/// What every service stands on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) node_id: Arc<str>,
    pub(crate) cores: Cores,
    pub(crate) limits: Arc<Limits>,
    pub(crate) bounds: Arc<Bounds>,
    /// What lies below, if anything does.
    pub(crate) backing: Option<BackingRule>,
    /// The other nodes, where there are any.
    pub(crate) peering: Option<Arc<Peering>>,
    /// Their blobs, by their homes, where nodes share.
    pub(crate) share: Option<Tier>,
    /// Where actions are executed here.
    pub(crate) executions: Option<Executions>,
    /// The control core, for what has to wait and be `Send`.
    pub(crate) control: tokio::runtime::Handle,
}

/// The tier below, and what each instance is promised of it.
#[derive(Clone)]
pub(crate) struct BackingRule {
    pub(crate) tier: Tier,
    pub(crate) backlog: Backlog,
    pub(crate) mode: WriteMode,
    /// Instances that have another mode.
    pub(crate) mode_by_instance: Arc<HashMap<String, WriteMode>>,
}

/// Another node of the cluster, and the way to it.
pub(crate) type There<'a> = (&'a Arc<Peering>, Arc<Link>);

/// Bounds of the protocol's front.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Instances that are served; none named = all.
    pub(crate) instances: Vec<String>,
    /// Sum of the blobs in one batch request, in bytes.
    pub(crate) batch_bytes_max: usize,
    /// One request message, in bytes.
    pub(crate) message_bytes_max: usize,
    /// Digests in one FindMissingBlobs.
    pub(crate) find_missing_digests_max: usize,
}

impl Node {
    /// Refuses an instance that is not served, or a name that is not one.
    fn check_instance(&self, instance: &str) -> Result<(), Status> {
        let segments = || instance.split('/');
        let malformed = !instance.is_empty()
            && segments().any(|segment| segment.is_empty() || KEYWORDS.contains(&segment));
        if malformed || instance.len() > INSTANCE_BYTES_MAX || instance.contains('\0') {
            let shown: String = instance.chars().take(100).collect();
            return Err(Status::invalid_argument(format!("{shown:?} can't be an instance name")));
        }
        let served = &self.bounds.instances;
        if served.is_empty() || served.iter().any(|name| name == instance) {
            return Ok(());
        }
        let message = format!("instance {instance:?} is not served here");
        Err(Status::invalid_argument(crate::status::short(message)))
    }

    /// What an instance can be given, and where what it brings goes.
    pub(crate) fn blobs(&self, instance: &str, headers: &HeaderMap) -> Result<Blobs, Status> {
        self.check_instance(instance)?;
        let backing = self.backing.as_ref().map(|rule| {
            let mode = rule.mode_by_instance.get(instance).copied().unwrap_or(rule.mode);
            Backing { tier: rule.tier.clone(), mode, backlog: rule.backlog.clone() }
        });
        // What a peer asks is not asked of a third node: two that take each other for a home would
        // ask for ever.
        let share = self.share.as_ref().filter(|_| !headers.contains_key(HEADER));
        Ok(Blobs::new(self.cores.clone(), share.cloned().into_iter().collect(), backing))
    }

    /// The way to the peer that makes a request; `None` for a client.
    ///
    /// # Errors
    /// PERMISSION_DENIED where it can't prove to be one, UNAVAILABLE where it is not known yet.
    pub(crate) fn caller(&self, asking: Asking<'_>) -> Result<Option<Arc<Link>>, Status> {
        let Some(peering) = &self.peering else { return Ok(None) };
        let Some(caller) = peering.caller(asking)? else { return Ok(None) };
        let unknown = || {
            let message = format!("{caller} has not said yet where it serves");
            crate::status::retry(tonic::Code::Unavailable, message)
        };
        peering.link(&caller).map(Some).ok_or_else(unknown)
    }

    /// The way to the node that has an operation; `None` where that is this one.
    ///
    /// # Errors
    /// NOT_FOUND where its node is gone.
    pub(crate) fn origin(
        &self,
        operation: &str,
        asking: Asking<'_>,
    ) -> Result<Option<There<'_>>, Status> {
        let Some(peering) = &self.peering else { return Ok(None) };
        let link = peering.origin(operation, asking)?;
        Ok(link.map(|link| (peering, link)))
    }

    /// The executions of this node.
    pub(crate) fn executions(&self) -> Result<&Executions, Status> {
        let executions = self.executions.as_ref();
        executions.ok_or_else(|| Status::unimplemented("no actions are executed here"))
    }

    /// Waits, by the control core's clock.
    pub(crate) fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let _control = self.control.enter();
        tokio::time::sleep(duration)
    }
}

/// The function that a request names, or that its digests' length implies.
pub(crate) fn function(wire: i32) -> Result<DigestFunction, Status> {
    use reapi::digest_function::Value;
    match Value::try_from(wire) {
        Ok(Value::Unknown | Value::Sha256) => Ok(DigestFunction::Sha256),
        Ok(other) => Err(Status::invalid_argument(format!(
            "digest function {} is not served; SHA256 is",
            other.as_str_name()
        ))),
        Err(_) => Err(Status::invalid_argument(format!("digest function {wire} is unknown"))),
    }
}

/// A digest that the request must have.
pub(crate) fn digest(
    wire: Option<&reapi::Digest>,
    function: DigestFunction,
) -> Result<Digest, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("a digest is missing"))?;
    Digest::parse(function, &wire.hash, wire.size_bytes)
        .map_err(|bad| Status::invalid_argument(bad.to_string()))
}

/// A digest as a message has it.
pub(crate) fn to_wire(digest: &Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hex(), size_bytes: digest.size_i64() }
}
