//! Nodes that know each other, as processes on loopback or on the hosts of a net, and what a test
//! does to all of them. Must never know more of a cluster than its clients see.

use super::{
    Node,
    action::Job,
    client::{Client, Watched, metadata, wire},
    free_port,
    netns::Net,
};
use proto::{
    reapi::{
        BatchUpdateBlobsRequest, ExecuteResponse, batch_update_blobs_request,
        execution_stage::Value as Stage,
    },
    rpc,
};
use std::{
    collections::BTreeSet,
    fs,
    process::ExitStatus,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::{Code, Status};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Between two attempts of a client that was sent away.
const AGAIN: Duration = Duration::from_millis(100);
/// How long anything may take that has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// User ids of one node's actions.
const UIDS: u32 = 100;
/// The first of all of them: other tests' nodes begin at 900000.
const UID_FIRST: u32 = 1_000_000;
/// Where nodes on hosts of a net gossip.
const GOSSIP_PORT: u16 = 7946;

/// Gives every node of a process its own user ids.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Settings by name: `SECTION__KEY` and value.
pub type Settings = Vec<(String, String)>;

/// Nodes `n1`, `n2`, … with one slot each. Dropped, all are killed.
pub struct Cluster {
    members: Vec<Member>,
    directory: TempDir,
}

struct Member {
    node: Option<Node>,
    host: Option<u8>,
    settings: Settings,
    uid_first: u32,
}

impl Cluster {
    /// So many on loopback, all with these settings.
    ///
    /// # Panics
    /// Where one does not come up.
    #[must_use]
    pub fn start(count: u8, settings: &[(&str, &str)]) -> Self {
        Self::start_each(count, |_| settings.iter().copied().map(owned).collect())
    }

    /// The same with settings for each, by number from 1.
    ///
    /// # Panics
    /// Where one does not come up.
    #[must_use]
    pub fn start_each(count: u8, settings: impl Fn(u8) -> Settings) -> Self {
        let gossip: Vec<String> =
            (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let members = (1..=count).zip(&gossip).map(|(i, listen)| {
            let own = [("CLUSTER__LISTEN", &**listen), ("CLUSTER__PEERS", &gossip.join(","))];
            Member::new(i, None, &own, settings(i))
        });
        Self::of(members.collect(), None)
    }

    /// One on each host from 1 to `count`; peers as given, or all of them by address.
    ///
    /// # Panics
    /// Where one does not come up.
    #[must_use]
    pub fn start_on(net: &Net, count: u8, peers: Option<&str>) -> Self {
        let gossip = |i| format!("{}:{GOSSIP_PORT}", net.node(i).v4());
        let all = (1..=count).map(gossip).collect::<Vec<_>>().join(",");
        let members = (1..=count).map(|i| {
            let own = [
                ("CLUSTER__LISTEN", &*gossip(i)),
                ("CLUSTER__PEERS", peers.unwrap_or(&all)),
                ("CLUSTER__SECRET", "what the nodes of this net know"),
                ("CLUSTER__RESOLVE_EVERY", "1s"),
            ];
            Member::new(i, Some(i), &own, Vec::new())
        });
        Self::of(members.collect(), Some(net))
    }

    fn of(members: Vec<Member>, net: Option<&Net>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut cluster = Self { members, directory };
        for i in 1..=cluster.members.len() {
            cluster.restart_on(net, i);
        }
        cluster
    }

    /// Starts one that was ended, with its blobs and at another port.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn restart(&mut self, i: usize) {
        self.restart_on(None, i);
    }

    /// The same on a host of its net.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn restart_on(&mut self, net: Option<&Net>, i: usize) {
        let directory = self.directory.path().join(format!("n{i}"));
        let member = &mut self.members[i - 1];
        let settings: Vec<(&str, &str)> =
            member.settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        member.node = Some(match (net, member.host) {
            (Some(net), Some(host)) => Node::start_in(net.node(host), &directory, &settings),
            _ => Node::start_with(&directory, &settings),
        });
    }

    /// How many there are, ended ones too.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Node `i`, from 1.
    ///
    /// # Panics
    /// Where it was ended.
    #[must_use]
    pub fn node(&self, i: usize) -> &Node {
        self.members[i - 1].node.as_ref().expect("it lives")
    }

    /// Where those that live listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().filter_map(|member| Some(member.node.as_ref()?.address())).collect()
    }

    /// A client of node `i`.
    #[must_use]
    pub fn client(&self, i: usize) -> Client {
        Client::lazy(&self.node(i).address())
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// Where it was ended.
    pub fn kill(&mut self, i: usize) {
        self.members[i - 1].node.take().expect("it lives").kill();
    }

    /// SIGTERM, and how it ended. Blocks.
    ///
    /// # Panics
    /// Where it was ended, or does not end.
    pub fn stop(&mut self, i: usize) -> ExitStatus {
        let mut node = self.members[i - 1].node.take().expect("it lives");
        node.signal("TERM");
        let status = node.wait();
        assert!(status.success(), "n{i} {status}\n{}", node.log());
        status
    }

    /// Whether an action's process runs on node `i`: its user id says whose it is.
    #[must_use]
    pub fn works(&self, i: usize) -> bool {
        let first = self.members[i - 1].uid_first;
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        processes.flatten().any(|process| {
            use std::os::unix::fs::MetadataExt;
            process.metadata().is_ok_and(|of| (first..first + UIDS).contains(&of.uid()))
        })
    }

    /// Waits until an action's process runs on node `i`.
    ///
    /// # Panics
    /// Where none comes to run.
    pub async fn until_works(&self, i: usize) {
        eventually(&format!("n{i} works"), async || self.works(i)).await;
    }

    /// Waits until what is asked of any node is done by all that live.
    ///
    /// # Panics
    /// Where that does not come.
    pub async fn until_whole(&self) {
        let alive = self.members.iter().filter(|member| member.node.is_some()).count();
        for i in 1..=self.len() {
            if self.members[i - 1].node.is_some() {
                until_spread(&self.client(i), alive).await;
            }
        }
    }
}

impl Member {
    fn new(i: u8, host: Option<u8>, own: &[(&str, &str)], more: Settings) -> Self {
        let uid_first = UID_FIRST + UIDS * NEXT.fetch_add(1, Ordering::Relaxed);
        let mut settings: Settings = own.iter().copied().map(owned).collect();
        settings.push(("EXECUTION__NODE_ID".to_owned(), format!("n{i}")));
        settings.push(("EXECUTION__SLOTS".to_owned(), "1".to_owned()));
        settings.push(("SANDBOX__UID_FIRST".to_owned(), uid_first.to_string()));
        settings.extend(more);
        Self { node: None, host, settings, uid_first }
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// Looks again and again until it holds.
///
/// # Panics
/// Where it does not come to hold.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// The node whose worker ran it.
///
/// # Panics
/// Where there is no result.
#[must_use]
pub fn worker(response: &ExecuteResponse) -> String {
    let result = response.result.as_ref().expect("a result");
    result.execution_metadata.clone().unwrap_or_default().worker
}

/// Sends these at once; all their ends, in their order.
pub async fn together(client: &Client, jobs: &[Job]) -> Vec<Result<ExecuteResponse, Status>> {
    let sent = jobs.iter().map(async |job| {
        client.put(job.blobs()).await;
        client.execute(job.request()).await
    });
    futures_util::future::join_all(sent).await
}

/// Those who did jobs that were sent to one node at once. All have to succeed.
///
/// # Panics
/// Where one does not.
pub async fn workers(client: &Client, jobs: &[Job]) -> BTreeSet<String> {
    let ends = together(client, jobs).await.into_iter();
    ends.map(|end| worker(succeeded(&end.expect("it is accepted")))).collect()
}

/// The response, which says that the action ran and its process succeeded.
///
/// # Panics
/// Where it does not.
pub fn succeeded(response: &ExecuteResponse) -> &ExecuteResponse {
    let status = response.status.clone().unwrap_or_default();
    assert_eq!(status.code, 0, "{}", status.message);
    assert_eq!(response.result.as_ref().expect("a result").exit_code, 0);
    response
}

/// Waits until work for one node is done by so many.
///
/// # Panics
/// Where that does not come.
pub async fn until_spread(client: &Client, count: usize) {
    eventually(&format!("{count} nodes work for one"), async || {
        let jobs: Vec<Job> = (0..2 * count).map(|_| Job::shell("sleep 0.2")).collect();
        workers(client, &jobs).await.len() == count
    })
    .await;
}

/// As a client that comes again: uploads and executes at one address after the other, as long as
/// it is told that somebody is not there.
///
/// # Panics
/// Where the action fails in another way, or nobody takes it.
pub async fn insist(addresses: impl Fn() -> Vec<String>, job: &Job) -> ExecuteResponse {
    let started = Instant::now();
    for turn in 0.. {
        let addresses = addresses();
        let end = attempt(&addresses[turn % addresses.len()], job).await;
        let Err(status) = end else { return end.expect("it was looked at") };
        let code = Code::from_i32(status.code);
        let again = [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::Internal];
        assert!(again.contains(&code), "{status:?}");
        assert!(started.elapsed() < PATIENCE, "waited in vain: {status:?}");
        tokio::time::sleep(AGAIN).await;
    }
    unreachable!("turns do not end")
}

async fn attempt(address: &str, job: &Job) -> Result<ExecuteResponse, rpc::Status> {
    let client = Client::lazy(address);
    let requests = job.blobs().into_iter().map(|data| batch_update_blobs_request::Request {
        digest: Some(super::client::digest(&data)),
        data,
        compressor: 0,
    });
    let request = BatchUpdateBlobsRequest { requests: requests.collect(), ..Default::default() };
    let stored = client.cas.clone().batch_update_blobs(request).await.map_err(|no| wire(&no))?;
    for one in stored.into_inner().responses {
        match one.status.unwrap_or_default() {
            status if status.code == 0 => {}
            status => return Err(status),
        }
    }
    let mut watched = client.begin(job.request()).await.map_err(|no| wire(&no))?;
    // A stream that breaks is no fault of the protocol's.
    while !watched.last.done {
        watched.next().await.map_err(|no| wire(&no))?;
    }
    let response = watched.end().await.map_err(|no| wire(&no))?;
    match response.status.clone().unwrap_or_default() {
        status if status.code == 0 => Ok(response),
        status => Err(status),
    }
}

/// Starts a job that takes the one slot of the node that is asked, and then one more, which has to
/// go elsewhere; both run when this returns.
///
/// # Panics
/// Where they do not come to run.
pub async fn begin_elsewhere(client: &Client, job: &Job, seconds: &str) -> (Watched, Watched) {
    let here = Job::new(&["sleep", seconds]);
    client.put(here.blobs()).await;
    let mut here = client.begin(here.request()).await.expect("it is accepted");
    here.until(Stage::Executing).await;
    client.put(job.blobs()).await;
    let mut there = client.begin(job.request()).await.expect("it is accepted");
    there.until(Stage::Executing).await;
    (here, there)
}

/// Who runs an action, by what is said while it runs.
#[must_use]
pub fn runs_on(watched: &Watched) -> String {
    metadata(&watched.last).partial_execution_metadata.unwrap_or_default().worker
}

/// Living processes that are `sleep` for so many seconds.
#[must_use]
pub fn sleepers(seconds: &str) -> usize {
    let wanted = format!("sleep\0{seconds}\0");
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let lines = processes.flatten().map(|process| fs::read(process.path().join("cmdline")));
    lines.flatten().filter(|line| line == wanted.as_bytes()).count()
}
