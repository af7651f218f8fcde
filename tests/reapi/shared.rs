//! The nodes that tests talk to. Must never leave one behind: a node lives while a test holds it.

use ringforge_tests::{Node, client::Client, is_root};
use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tonic::{Code, Status};

/// The node of all tests that want nothing special of it.
static SHARED: Mutex<Weak<Running>> = Mutex::new(Weak::new());
/// Between two looks at something that will change.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is looked: what takes longer has failed.
const LOOKS_MAX: u32 = 3000;

/// A node and the directory of its blobs.
pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) directory: TempDir,
}

/// A node, with a client.
pub(crate) struct Connected {
    pub(crate) running: Arc<Running>,
    client: Client,
}

impl Deref for Connected {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A client of the shared node.
pub(crate) async fn shared() -> Connected {
    let running = {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let running = start(&[]);
            *shared = Arc::downgrade(&running);
            running
        })
    };
    connect(running).await
}

/// A client of a node of one's own, with these settings.
pub(crate) async fn own(settings: &[(&str, &str)]) -> Connected {
    connect(start(settings)).await
}

/// Whether actions can be executed here; the name of the test that asks is its thread's.
pub(crate) fn can_execute() -> bool {
    is_root(thread::current().name().unwrap_or("this test"))
}

fn start(settings: &[(&str, &str)]) -> Arc<Running> {
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start_with(&parent.path().join("store"), settings);
    Arc::new(Running { node, directory: parent })
}

async fn connect(running: Arc<Running>) -> Connected {
    let client = Client::connect(&running.node.address()).await;
    Connected { running, client }
}

/// Waits until `holds`; what never does is a failure.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if holds().await {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    panic!("never: {what}");
}

/// Asserts the code of a refusal, and that it says why.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    what: &str,
) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(!status.message().is_empty(), "{what}: a refusal without a reason");
}
