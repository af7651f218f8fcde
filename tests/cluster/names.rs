//! Operations by their names, asked of nodes that are not theirs.

use proto::{
    longrunning::{CancelOperationRequest, GetOperationRequest, Operation},
    reapi::WaitExecutionRequest,
};
use ringforge_tests::{
    action::Job,
    client::{Client, Watched},
    cluster::{
        Cluster, begin_elsewhere, eventually, runs_on, sleepers, succeeded, until_spread, worker,
    },
    is_root,
};
use tonic::{Code, Status};

async fn get(client: &Client, name: &str) -> Result<Operation, Status> {
    let request = GetOperationRequest { name: name.to_owned() };
    Ok(client.operations.clone().get_operation(request).await?.into_inner())
}

async fn wait(client: &Client, name: &str) -> Result<Watched, Status> {
    let request = WaitExecutionRequest { name: name.to_owned() };
    let stream = client.execution.clone().wait_execution(request).await?;
    Watched::new(stream.into_inner()).await
}

async fn cancel(client: &Client, name: &str) -> Result<(), Status> {
    let request = CancelOperationRequest { name: name.to_owned() };
    client.operations.clone().cancel_operation(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_can_be_asked_for_an_operation_as_long_as_its_own_lives() {
    if !is_root("any_node_can_be_asked_for_an_operation_as_long_as_its_own_lives") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    cluster.until_whole().await;
    let seconds = format!("72{}", std::process::id());
    let doomed = Job::new(&["sleep", &seconds]);
    let (here, there) = begin_elsewhere(&cluster.client(1), &doomed, "3").await;
    let names = [here.last.name.clone(), there.last.name.clone()];
    assert!(names.iter().all(|name| name.starts_with("n1:")), "{names:?}");
    let executor = runs_on(&there);
    assert_ne!(executor, "n1");
    for i in 2..=3 {
        let client = cluster.client(i);
        for name in &names {
            assert_eq!(&get(&client, name).await.unwrap().name, name);
        }
        let unknown = "n1:6a2f41a3-c54c-4c50-a4f1-8a5d2ad2a5d6";
        assert_eq!(get(&client, unknown).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(wait(&client, unknown).await.err().unwrap().code(), Code::NotFound);
    }
    let waiting = wait(&cluster.client(3), &names[0]).await.unwrap();
    let doomed = wait(&cluster.client(2), &names[1]).await.unwrap();
    eventually("its process lives", async || sleepers(&seconds) == 1).await;
    cancel(&cluster.client(3), &names[1]).await.unwrap();
    for watched in [doomed, there] {
        let status = watched.end().await.unwrap().status.unwrap();
        assert_eq!(status.code, Code::Cancelled as i32, "{status:?}");
    }
    eventually("its process is dead", async || sleepers(&seconds) == 0).await;
    let seen = waiting.end().await.unwrap();
    assert_eq!(worker(succeeded(&seen)), "n1");
    assert_eq!(here.end().await.unwrap(), seen);
    cluster.kill(1);
    for i in 2..=3 {
        let client = cluster.client(i);
        let name = &names[0];
        let allowed = [Code::NotFound, Code::Unavailable];
        eventually("the operations of the dead are not found", async || {
            let codes = [
                get(&client, name).await.unwrap_err().code(),
                wait(&client, name).await.err().unwrap().code(),
                cancel(&client, name).await.unwrap_err().code(),
            ];
            assert!(codes.iter().all(|code| allowed.contains(code)), "{codes:?}");
            codes == [Code::NotFound; 3]
        })
        .await;
    }
    until_spread(&cluster.client(2), 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_of_a_node_that_nobody_knows_is_not_found() {
    let cluster = Cluster::start(2, &[]);
    let client = cluster.client(1);
    for name in ["n9:6a2f41a3-c54c-4c50-a4f1-8a5d2ad2a5d6", "n9:", ":", "::", "n2", ""] {
        assert_eq!(get(&client, name).await.unwrap_err().code(), Code::NotFound, "{name:?}");
        let waited = wait(&client, name).await.err().unwrap();
        assert_eq!(waited.code(), Code::NotFound, "{name:?}");
        assert_eq!(cancel(&client, name).await.unwrap_err().code(), Code::NotFound, "{name:?}");
    }
}
