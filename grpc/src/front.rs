//! What stands before one core's store: its connections, and the services on them. Must only
//! compose: no parsing, no decisions.

use crate::{
    deadline::{self, Deadline, TimedBody},
    metrics::{Call, Calls, CoreCalls, MeasuredBody},
    services::{
        Node,
        action_cache::ActionCacheService,
        byte_stream::{self, ByteStreamService, ReplyBody, refusal},
        capabilities::CapabilitiesService,
        cas::CasService,
        cluster::ClusterService,
        execution::ExecutionService,
        operations::OperationsService,
    },
    transport::{Accepted, Connections, ControlTimer, Opening, ServeConfig, Timers, serve},
};
use engine::cores::{CoreContext, Front};
use futures_util::future::{self, LocalBoxFuture, select};
use http::{Request, Response};
use http_body_util::Either;
use hyper::{body::Incoming, service::Service};
use hyper_util::service::TowerToHyperService;
use proto::{
    longrunning::operations_server::OperationsServer,
    node::cluster_server::ClusterServer,
    reapi::{
        action_cache_server::ActionCacheServer, capabilities_server::CapabilitiesServer,
        content_addressable_storage_server::ContentAddressableStorageServer,
        execution_server::ExecutionServer,
    },
};
use std::{
    convert::Infallible, future::poll_fn, net::TcpStream, pin::pin, sync::Arc, time::Duration,
};
use tokio::sync::watch;
use tonic::{Status, body::Body, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};

/// What is served, by its full name: for reflection and health.
pub(crate) const SERVICES: [&str; 10] = [
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.Execution",
    "google.bytestream.ByteStream",
    "google.longrunning.Operations",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "ringforge.v1.Cluster",
];

/// All that the front of every core is made of.
pub(crate) struct FrontParts<H> {
    pub(crate) node: Node,
    pub(crate) health: HealthServer<H>,
    pub(crate) connections: Connections,
    pub(crate) calls: Calls,
    pub(crate) accepted: Vec<async_channel::Receiver<TcpStream>>,
    pub(crate) opening: Opening,
    pub(crate) config: ServeConfig,
    pub(crate) draining: watch::Receiver<bool>,
}

/// The front that each core runs beside its store.
pub(crate) fn front<H: Health>(
    parts: FrontParts<H>,
) -> Result<Front, tonic_reflection::server::Error> {
    let routes = routes(&parts.node, parts.health)?;
    let FrontParts { node, connections, calls, accepted, opening, config, draining, .. } = parts;
    Ok(Arc::new(move |core: CoreContext| -> LocalBoxFuture<'static, ()> {
        let id = core.id;
        let queue = accepted[usize::from(id)].clone();
        let (connections, opening) = (connections.clone(), opening.clone());
        let accepted = Accepted { core: id, queue, connections, opening };
        let control = ControlTimer::new(node.control.clone());
        let timer = Timers { control, alarms: core.env.alarms.clone() };
        let service = CoreService {
            routes: TowerToHyperService::new(routes.clone()),
            byte_stream: ByteStreamService { node: node.clone(), core },
            calls: calls.on(id),
        };
        Box::pin(serve(accepted, config, draining.clone(), timer, service))
    }))
}

/// The services whose messages tonic reads and writes.
fn routes<H: Health>(
    node: &Node,
    health: HealthServer<H>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let bound = node.bounds.message_bytes_max;
    let descriptors = [proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        let builder = descriptors
            .iter()
            .fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
        SERVICES.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    let v1 = reflection(tonic_reflection::server::Builder::configure()).build_v1()?;
    let v1alpha = reflection(tonic_reflection::server::Builder::configure()).build_v1alpha()?;
    let cas = ContentAddressableStorageServer::new(CasService { node: node.clone() });
    let actions = ActionCacheServer::new(ActionCacheService { node: node.clone() });
    let capabilities = CapabilitiesServer::new(CapabilitiesService { node: node.clone() });
    let execution = ExecutionServer::new(ExecutionService { node: node.clone() });
    let operations = OperationsServer::new(OperationsService { node: node.clone() });
    let cluster = ClusterServer::new(ClusterService { node: node.clone() });
    let routes = Routes::new(capabilities)
        .add_service(cas.max_decoding_message_size(bound).max_encoding_message_size(usize::MAX))
        .add_service(actions.max_decoding_message_size(bound))
        .add_service(execution.max_decoding_message_size(bound))
        .add_service(operations)
        .add_service(cluster)
        .add_service(health)
        .add_service(v1)
        .add_service(v1alpha);
    Ok(routes.prepare())
}

/// One core's services, each on its path.
#[derive(Clone)]
struct CoreService {
    routes: TowerToHyperService<Routes>,
    byte_stream: ByteStreamService,
    calls: CoreCalls,
}

impl Service<Request<Incoming>> for CoreService {
    type Response = CoreReply;
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = self.calls.begin(request.uri().path());
        let deadline = match deadline::asked(request.headers()) {
            Ok(asked) => asked.map(|wait| self.deadline(wait)),
            Err(status) => return Box::pin(async move { Ok(refused(&status, call)) }),
        };
        if request.uri().path().starts_with(byte_stream::PATH) {
            let reply = self.byte_stream.clone().call(request);
            return timed(async { Ok(reply.await.map(Either::Left)) }, deadline, call);
        }
        let reply = self.routes.call(request);
        let control = self.byte_stream.node.control.clone();
        let mut reply = Box::pin(async { Ok(reply.await?.map(Either::Right)) });
        // Reflection spawns, and expects a tokio runtime around it: the control core's.
        let reply = poll_fn(move |cx| {
            let _control = control.enter();
            reply.as_mut().poll(cx)
        });
        timed(reply, deadline, call)
    }
}

impl CoreService {
    fn deadline(&self, wait: Duration) -> Deadline {
        Box::pin(self.byte_stream.core.env.alarms.sleep(wait))
    }
}

type CoreReply = Response<MeasuredBody<TimedBody<Either<ReplyBody, Body>>>>;

fn refused(status: &Status, call: Call) -> CoreReply {
    call.measure(refusal(status).map(|body| TimedBody::new(Either::Left(body), None)))
}

/// A reply, or the end of the caller's patience with it: before its headers, or within its body.
fn timed(
    reply: impl Future<Output = Result<Response<Either<ReplyBody, Body>>, Infallible>> + 'static,
    deadline: Option<Deadline>,
    call: Call,
) -> LocalBoxFuture<'static, Result<CoreReply, Infallible>> {
    Box::pin(async move {
        let Some(deadline) = deadline else {
            return Ok(call.measure(reply.await?.map(|body| TimedBody::new(body, None))));
        };
        match select(pin!(reply), deadline).await {
            future::Either::Left((reply, deadline)) => {
                Ok(call.measure(reply?.map(|body| TimedBody::new(body, Some(deadline)))))
            }
            future::Either::Right(_) => Ok(refused(&deadline::exceeded(), call)),
        }
    })
}
